"""The network of point clouds: no order, any number of points, levels and conditions heard where they are."""

import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmdiff.types import Context
from mmdiff_pointcloud.network import Attention, PointCells, PointEmbedding, modulate, part

FEATURES = 6


def build(channels: int = 3, **options) -> PointCells:
    """A small network whose weights are all random."""
    options = {"width": 16, "cell_width": 24, "cells": 4, "stages": 2, "depth": 1, "head": 8} | options
    network = PointCells((channels, 20), FEATURES, **options)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return network.eval()


def inputs(batch: int = 2, channels: int = 3, points: int = 20, tokens: int = 4):
    context = Context(
        vector=torch.randn(batch, FEATURES),
        tokens=torch.randn(batch, tokens, FEATURES),
        token_mask=torch.arange(tokens).expand(batch, -1) < tokens - 1,
    )
    return torch.randn(batch, channels, points), torch.randn(batch), context


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize("points", [1, 20, 33])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_number_of_points_keeps_its_shape(channels, points, batch):
    network = build(channels)
    x, noise, context = inputs(batch, channels, points)
    for given in (context, Context(vector=context.vector), Context(tokens=context.tokens), Context()):
        got = network(x, noise, given)
        assert got.shape == x.shape
        assert got.isfinite().all()


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize(("width", "head"), [(16, 4), (24, 32), (10, 3)])
def test_any_size_of_network(width, head, depth):
    network = build(width=width, head=head, depth=depth)
    x, noise, context = inputs()
    assert network(x, noise, context).shape == x.shape


@pytest.mark.parametrize(
    ("name", "least"), [("width", 1), ("cells", 1), ("cell_width", 1), ("stages", 1), ("head", 1), ("depth", 0)]
)
def test_sizes_that_make_no_network_are_named(name, least):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least {least}, got {least - 1}"):
        build(**{name: least - 1})


def test_it_is_zero_at_the_start():
    x, noise, context = inputs()
    network = PointCells((3, 20), FEATURES, width=16, cell_width=24, cells=4, stages=2)
    assert torch.equal(network(x, noise, context), torch.zeros_like(x))


@pytest.mark.parametrize("per_point", [False, True])
def test_points_have_no_order(per_point):
    network = build()
    x, noise, context = inputs(points=200)
    order = torch.randperm(200)
    if per_point:
        noise = torch.randn(2, 1, 200)
    expected = network(x, noise, context)[..., order]
    got = network(x[..., order], noise[..., order] if per_point else noise, context)
    assert (got - expected).norm() < 1e-5 * expected.norm()
    assert (expected - network(x, noise, context)).norm() > 0.1 * expected.norm()


def test_levels_that_are_all_the_same_are_one_level():
    network = build()
    x, noise, context = inputs()
    expected = network(x, noise, context)
    for size in (1, 20):
        assert close(network(x, noise[:, None, None].expand(2, 1, size), context), expected)


def test_the_level_of_a_point_matters_most_there():
    network = build()
    x, noise, context = inputs()
    levels = noise[:, None, None].repeat(1, 1, 20)
    changed = levels.clone()
    changed[..., 7] += 1
    moved = (network(x, changed, context) - network(x, levels, context)).norm(dim=1)
    assert (moved.argmax(1) == 7).all()
    assert (moved > 0).all(), "the cells hear it too"


def test_levels_tell_known_points_apart():
    """The same points, the same levels, but others of them known."""
    network = build()
    x, _, context = inputs()
    levels = torch.zeros(2, 1, 20)
    levels[..., :10] = -2
    assert not close(network(x, levels, context), network(x, levels.flip(2), context))


@pytest.mark.parametrize("part", ["noise", "vector", "tokens"])
def test_noise_and_context_are_heard(part):
    network = build()
    x, noise, context = inputs()
    changed = {
        "noise": (x, noise + 1, context),
        "vector": (x, noise, context._replace(vector=context.vector + 1)),
        "tokens": (x, noise, context._replace(tokens=context.tokens.flip(2))),
    }[part]
    assert (network(*changed) - network(x, noise, context)).abs().amax((1, 2)).min() > 1e-3


def test_tokens_are_a_set_and_masked_ones_are_not_heard():
    network = build()
    x, noise, context = inputs()
    expected = network(x, noise, context)
    other = context.tokens.clone()
    other[:, -1] = 100
    assert torch.equal(network(x, noise, context._replace(tokens=other)), expected)
    short = context._replace(tokens=context.tokens[:, [2, 0, 1]], token_mask=None)
    assert close(network(x, noise, short), expected)
    assert not close(network(x, noise, context._replace(token_mask=None)), expected)


def test_examples_do_not_see_each_other():
    network = build()
    x, noise, context = inputs(3)
    together = network(x, noise, context)
    for i in range(3):
        alone = network(x[i : i + 1], noise[i : i + 1], Context(*[c if c is None else c[i : i + 1] for c in context]))
        assert close(alone[0], together[i])


def test_points_speak_to_each_other():
    network = build()
    x, noise, context = inputs()
    x.requires_grad_()
    network(x, noise, context)[..., 0].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


def test_every_parameter_learns():
    network = build().train()
    x, noise, context = inputs(3)
    network(x, noise, context).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_every_parameter_is_used_without_conditions():
    """As processes that train together ask of each step."""
    network = build().train()
    x, noise, _ = inputs()
    network(x, noise, Context()).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_a_fresh_network_starts_to_learn():
    """The zero output passes gradient to itself, then to the gates, then to all."""
    network = PointCells((3, 20), FEATURES, width=16, cell_width=24, cells=4, stages=2, depth=1, head=8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x, noise, context = inputs(4)
    for _ in range(6):
        loss = (network(x, noise, context) - x.roll(1, 0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [name for name, p in network.named_parameters() if not p.grad.any()] == []


def test_cost_is_linear_in_points():
    network = build()

    def flops(points: int) -> int:
        x, noise, context = inputs(1, points=points)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(x, noise, context)
        return counter.get_total_flops()

    first, second, third = (flops(n) for n in (100, 200, 300))
    assert third - second == second - first > 0


def test_half_precision_by_autocast():
    network = build(width=64, head=32)
    x, noise, context = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        got = network(x, noise, context).float()
    expected = network(x, noise, context)
    assert (got - expected).norm() < 0.05 * expected.norm()


# Parts


@pytest.mark.parametrize("points", [1, 3, 64, 100, 1000, 1024])
@pytest.mark.parametrize("cells", [1, 4, 64])
def test_a_partition_has_every_point_in_one_small_cell(points, cells):
    x = torch.randn(2, 3, points)
    partition = part(x, cells)
    count, size = partition.members.shape[1:]
    assert count == 2 ** min(cells.bit_length() - 1, points.bit_length() - 1)
    assert size == math.ceil(points / count)
    for members in partition.members:
        assert [len(set(cell.tolist())) in (size, points // count) for cell in members] == [True] * count
        assert sorted({i for cell in members for i in cell.tolist()}) == list(range(points))
    assert torch.equal(partition.scatter(partition.gather(x.mT)), x.mT)


def test_cells_hold_neighbors():
    """Cells of a cube of uniform points are boxes of the size of their share, not slices or scatterings."""
    x = torch.rand(1, 3, 4096)
    cells = part(x, 64).gather(x.mT)[0]
    extents = cells.amax(1) - cells.amin(1)
    assert 0.1 < extents.min() <= extents.max() < 0.5  # 64 cubes would have 0.25


def test_cells_are_a_power_of_two():
    with pytest.raises(ValueError, match=r"network\.cells must be a power of 2, got 12"):
        build(cells=12)


def test_attention_is_softmax_of_cosines():
    """One head by hand: keys of unit deviation, queries of a learned one."""
    attention = Attention(4, head=4).requires_grad_(False)
    nn.init.uniform_(attention.gain, 0.5, 2)
    x, words = torch.randn(1, 5, 4), torch.randn(1, 2, 4)
    mask = torch.tensor([True] * 6 + [False])
    q = attention.query(x)[0]
    k, v = attention.key_value(torch.cat([x, words], 1))[0].chunk(2, 1)
    q, k = ((t - t.mean(1, keepdim=True)) / t.std(1, correction=0, keepdim=True) for t in (q, k))
    scores = (q * attention.gain) @ k.T / math.sqrt(4)
    expected = attention.out(torch.softmax(scores.masked_fill(~mask, -math.inf), 1) @ v)
    torch.testing.assert_close(attention(x, words, mask[None, None, None])[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 5])
def test_modulation_sets_mean_and_deviation(rows):
    shift, scale = torch.randn(2, rows, 1), torch.rand(2, rows, 1)
    y = modulate(3 + 7 * torch.randn(2, 5, 400), shift.expand(-1, -1, 400), scale.expand(-1, -1, 400))
    torch.testing.assert_close(y.mean(2), shift[..., 0].expand(2, 5), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(y.std(2), 1 + scale[..., 0].expand(2, 5), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_waves_run_in_all_directions_at_the_frequencies_asked_for(channels):
    embed = PointEmbedding(channels, 4000, coarsest=0.5, finest=2.0)
    frequencies = embed.waves.norm(dim=0) / (2 * math.pi)
    assert frequencies.min().item() == pytest.approx(0.5)
    assert frequencies.max().item() == pytest.approx(2)
    # Evenly in octaves: half of them below the middle octave's 1, whose logarithm is the mean.
    assert frequencies.log().mean().item() == pytest.approx(0, abs=1e-4)
    directions = embed.waves / embed.waves.norm(dim=0)
    dims = min(channels, 3)
    assert len(directions) == dims
    torch.testing.assert_close(directions @ directions.T / 4000, torch.eye(dims) / dims, rtol=0, atol=0.04)
