import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdiff.nn.attention import attend, rotate
from mmdiff.nn.transformer import Transformer
from mmdiff.types import Context

FEATURES = 6
CASES = {
    1: ((2, 12), (3,), [[0]]),
    2: ((1, 6, 8), (2, 4), [[0, 1]]),
    3: ((3, 4, 6, 4), (1, 2, 2), [[1, 2], [0]]),
}
every_rank = pytest.mark.parametrize("rank", CASES)


def build(rank, **options):
    """A small transformer whose weights are all random."""
    shape, patch, attention = CASES[rank]
    network = Transformer(
        shape, FEATURES, **{"width": 24, "depth": 4, "patch": patch, "attention": attention, "head": 12} | options
    )
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.eval(), torch.randn(3, *shape), torch.randn(3), Context(vector=torch.randn(3, FEATURES))


@every_rank
def test_returns_the_shape_it_was_given(rank):
    network, x, noise, context = build(rank)
    assert network(x, noise, context).shape == x.shape
    assert network(x, noise, Context()).shape == x.shape
    twice = torch.cat([x, x], -1)
    assert network(twice, noise, context).shape == twice.shape


@every_rank
def test_is_zero_at_the_start(rank):
    shape, patch, attention = CASES[rank]
    network = Transformer(shape, FEATURES, width=24, depth=2, patch=patch, attention=attention, head=12)
    x = torch.randn(2, *shape)
    assert torch.equal(network(x, torch.randn(2), Context(vector=torch.randn(2, FEATURES))), torch.zeros_like(x))


@every_rank
def test_levels_per_part_that_are_all_the_same_are_one_level(rank):
    network, x, noise, context = build(rank)
    levels = noise.reshape(-1, *[1] * rank, 1).expand(3, 1, *x.shape[2:])
    torch.testing.assert_close(network(x, levels, context), network(x, noise, context), rtol=1e-4, atol=1e-5)


@every_rank
def test_noise_and_context_are_heard_where_they_are(rank):
    network, x, noise, context = build(rank)
    expected = network(x, noise, context)
    assert not torch.allclose(network(x, noise, Context(vector=context.vector + 1)), expected, atol=1e-3)
    levels = noise.reshape(-1, *[1] * rank, 1).expand(3, 1, *x.shape[2:]).clone()
    levels[..., -1] += 1
    moved = (network(x, levels, context) - expected).abs().flatten(1, -2).amax(1)
    assert (moved[:, -1] > 1e-3).all()


@every_rank
def test_every_parameter_learns_and_recomputing_changes_nothing(rank):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        network, x, noise, context = build(rank, recompute=recompute, detail=8)
        network(x, noise, context).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    silent = [name for name, gradient in gradients[0].items() if gradient is None or not gradient.any()]
    assert silent == []
    torch.testing.assert_close(gradients[1], gradients[0])


@every_rank
@pytest.mark.parametrize("detail", [0, 8])
def test_convolutions_look_two_places_beyond_a_patch_where_patches_cover(rank, detail):
    """Without blocks the first patch hears of itself, and through two convolutions of two places more."""
    network, x, noise, context = build(rank, detail=detail, depth=0)
    x.requires_grad_()
    first = tuple(slice(0, side) for side in network.patch)
    network(x, noise, context)[..., *first].square().sum().backward()
    heard = x.grad.abs().sum((0, 1)) > 0
    expected = torch.zeros_like(heard)
    expected[tuple(slice(0, side + 2 * bool(detail) * (side > 1)) for side in network.patch)] = True
    assert torch.equal(heard, expected)


def test_blocks_attend_along_their_dimensions_alone():
    """Attention within frames only: a frame hears nothing of another."""
    network, x, noise, context = build(3, attention=[[1, 2]])
    changed = x.clone()
    changed[:, :, 0] += 1
    moved = (network(changed, noise, context) - network(x, noise, context)).abs().amax((1, 3, 4))
    assert (moved[:, 0] > 1e-3).all()
    assert moved[:, 1:].max() < 1e-6
    network, x, noise, context = build(3)
    changed = x.clone()
    changed[:, :, 0] += 1
    assert ((network(changed, noise, context) - network(x, noise, context)).abs().amax((1, 3, 4)) > 1e-4).all()


class Devices(TorchDispatchMode):
    """The devices of all tensors that operations return."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        self.seen |= {leaf.device.type for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        return out


@every_rank
def test_nothing_is_made_on_another_device(rank):
    """Which would make each block wait for a copy."""
    network, x, noise, context = build(rank)
    with Devices() as devices:
        network.to("meta")(x.to("meta"), noise.to("meta"), Context(vector=context.vector.to("meta")))
    assert devices.seen == {"meta"}


def test_patches_have_to_fit():
    with pytest.raises(ValueError, match=r"network\.patch \[5\] does not divide an example of size \[12\]"):
        Transformer((2, 12), FEATURES, patch=(5,))
    with pytest.raises(ValueError, match=r"network\.patch \[2, 2\]"):
        Transformer((2, 12), FEATURES, patch=(2, 2))


# Rotary positions


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("channels", [6, 16])
def test_products_of_rotated_vectors_depend_on_differences_of_positions(axes, channels):
    q, k = torch.randn(2, 7, channels, dtype=torch.float64)
    here, there = torch.randn(2, 7, axes, dtype=torch.float64)
    shift = torch.randn(axes, dtype=torch.float64) * 10
    products = (rotate(q, here) * rotate(k, there)).sum(-1)
    torch.testing.assert_close((rotate(q, here + shift) * rotate(k, there + shift)).sum(-1), products)
    assert not torch.allclose((rotate(q, here + shift) * rotate(k, there)).sum(-1), products, atol=1e-3)
    torch.testing.assert_close(rotate(q, here).norm(dim=-1), q.norm(dim=-1))


def test_rotation_by_hand():
    """Two channels, one axis: a turn by the position in radians."""
    angle = torch.tensor([[0.3]])
    expected = torch.tensor([[math.cos(0.3), math.sin(0.3)]])
    torch.testing.assert_close(rotate(torch.tensor([[1.0, 0.0]]), angle), expected)


def test_attention_over_several_dimensions_of_batch_is_fused():
    """PyTorch's kernel that keeps no matrix of weights takes it, and each entry is as alone."""
    qkv, places = torch.randn(2, 3, 5, 24), torch.arange(5.0)[:, None]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        seen = attend(qkv, 2, places)
    torch.testing.assert_close(seen[1, 2], attend(qkv[1, 2], 2, places))


def test_attention_with_positions_knows_order():
    qkv, order = torch.randn(5, 24), torch.tensor([2, 0, 3, 1, 4])
    places = torch.arange(5.0)[:, None]
    torch.testing.assert_close(attend(qkv[order], 2), attend(qkv, 2)[order])
    torch.testing.assert_close(attend(qkv[order], 2, places[order]), attend(qkv, 2, places)[order])
    assert not torch.allclose(attend(qkv[order], 2, places), attend(qkv, 2, places)[order], atol=1e-3)
