import math

import pytest
import torch
from torch import nn

from mmdiff.nn.attention import SelfAttention
from mmdiff.nn.blocks import CONV, Pointwise, ResBlock, depth_to_space, norm, space_to_depth
from mmdiff.nn.embed import FourierFeatures
from mmdiff.nn.unet import UNet
from mmdiff.types import Context

# Sizes that the pyramid divides and sizes that it does not, a size of 1 among them.
SHAPES = [(1, 8), (3, 11), (2, 1), (2, 8, 4), (1, 5, 7), (2, 1, 6), (1, 4, 4, 4), (2, 3, 5, 2), (1, 1, 5, 3)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_batch = pytest.mark.parametrize("batch", [1, 3])
FEATURES = 6


def build(shape, **options):
    """A small U-Net whose weights are all random."""
    options = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,)} | options
    network = UNet(shape, FEATURES, **options)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


def inputs(batch, shape):
    return torch.randn(batch, *shape), torch.randn(batch), Context(vector=torch.randn(batch, FEATURES))


@every_shape
@every_batch
@pytest.mark.parametrize("patch", [1, 2])
def test_unet_returns_the_shape_it_was_given(shape, batch, patch):
    network = build(shape, patch=patch)
    x, noise, context = inputs(batch, shape)
    got = network(x, noise, context)
    assert got.shape == x.shape
    assert got.isfinite().all()
    assert network(x, noise, Context()).shape == x.shape


@pytest.mark.parametrize("multipliers", [(1,), (1, 1, 2), (1, 2, 1, 2)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_unet_of_any_depth(multipliers, blocks):
    network = build((2, 9), multipliers=multipliers, blocks=blocks, attention=range(len(multipliers)))
    x, noise, context = inputs(2, (2, 9))
    assert network(x, noise, context).shape == x.shape


@every_shape
def test_unet_is_zero_at_the_start(shape):
    network = UNet(shape, FEATURES, width=8, multipliers=(1, 2), blocks=1, attention=(0, 1))
    x, noise, context = inputs(2, shape)
    assert torch.equal(network(x, noise, context), torch.zeros_like(x))


@every_shape
@pytest.mark.parametrize("patch", [1, 2])
def test_levels_per_part_that_are_all_the_same_are_one_level(shape, patch):
    network = build(shape, patch=patch)
    x, noise, context = inputs(3, shape)
    expected = network(x, noise, context)
    ones = [1] * len(shape)
    for size in (ones, [1, *shape[1:]], [1, *ones[2:], shape[-1]], [1, shape[1], *ones[2:]]):
        levels = noise.reshape(-1, *ones).expand(3, *size)
        torch.testing.assert_close(network(x, levels, context), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 16), (1, 6, 4)], ids=str)
def test_levels_per_part_matter_where_they_are(shape):
    network = build(shape, attention=(), multipliers=(1,))
    x, noise, context = inputs(2, shape)
    axis = torch.zeros(2, 1, shape[1], *[1] * (len(shape) - 2)) + noise[0]
    changed = axis.clone()
    changed[:, :, -1] += 1
    moved = (network(x, changed, context) - network(x, axis, context)).abs().amax(1).reshape(2, shape[1], -1).amax(-1)
    assert (moved[:, -1] > 1e-3).all()


@every_shape
def test_examples_do_not_see_each_other(shape):
    network = build(shape)
    x, noise, context = inputs(3, shape)
    together = network(x, noise, context)
    others = torch.tensor([0.0, 1.0, 1.0])
    changed = network(
        x + others.reshape(-1, *[1] * len(shape)), noise + others, Context(vector=context.vector + others[:, None])
    )
    assert torch.equal(changed[0], together[0])
    assert not torch.isclose(changed[1:], together[1:]).all()
    for i in range(3):
        alone = network(x[i : i + 1], noise[i : i + 1], Context(vector=context.vector[i : i + 1]))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


@every_shape
def test_noise_and_context_are_heard(shape):
    network = build(shape)
    x, noise, context = inputs(2, shape)
    expected = network(x, noise, context)
    for other in (network(x, noise + 1, context), network(x, noise, Context(vector=context.vector + 1))):
        assert not torch.allclose(other, expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 8), (2, 5, 7), (1, 4, 4, 4)], ids=str)
@pytest.mark.parametrize("patch", [1, 2])
def test_every_parameter_learns(shape, patch):
    network = build(shape, patch=patch, attention=(0, 1), blocks=2).train()
    x, noise, context = inputs(3, shape)
    network(x, noise, context).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_a_fresh_network_starts_to_learn():
    """The zero head passes gradient to itself, and to all others once it has moved."""
    network = UNet((1, 8), FEATURES, width=8, multipliers=(1, 2), blocks=1, attention=(1,))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x, noise, context = inputs(4, (1, 8))
    for _ in range(3):
        loss = (network(x, noise, context) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    silent = [name for name, p in network.named_parameters() if not p.grad.any()]
    assert silent == []


# Tokens and dense signals


def told(batch, shape, tokens=4, dense=2):
    """A context with everything; the last token is padding."""
    known = torch.arange(tokens).expand(batch, -1) < tokens - 1
    return Context(
        torch.randn(batch, FEATURES), torch.randn(batch, tokens, FEATURES), known, torch.randn(batch, dense, *shape[1:])
    )


@pytest.mark.parametrize("attention", [(), (0, 1)])
@pytest.mark.parametrize("shape", [(1, 8), (2, 5, 7), (1, 4, 4, 4)], ids=str)
def test_tokens_and_dense_signals_are_heard(shape, attention):
    network = build(shape, attention=attention, tokens=True, dense=2)
    (x, noise, _), context = inputs(2, shape), told(2, shape)
    expected = network(x, noise, context)
    assert expected.shape == x.shape
    for field in ("tokens", "dense"):
        part = getattr(context, field)
        assert not torch.allclose(network(x, noise, context._replace(**{field: part + 1})), expected, atol=1e-3)
        assert network(x, noise, context._replace(**{field: None})).isfinite().all()
    padded = context.tokens.clone()
    padded[:, -1] += 1
    assert torch.equal(network(x, noise, context._replace(tokens=padded)), expected)
    mixed = context.tokens[:, [2, 0, 1]]
    torch.testing.assert_close(
        network(x, noise, context._replace(tokens=mixed, token_mask=None)), expected, rtol=1e-4, atol=1e-5
    )


def test_what_a_network_does_not_read_is_a_mistake():
    x, noise, _ = inputs(2, (1, 8))
    context = told(2, (1, 8))
    with pytest.raises(ValueError, match=r"set network.tokens=true"):
        build((1, 8), dense=2)(x, noise, context)
    with pytest.raises(ValueError, match=r"give 2 dense channels; set network.dense=2 \(it is 1\)"):
        build((1, 8), tokens=True, dense=1)(x, noise, context)


def test_parameters_for_tokens_learn_with_and_without_them():
    network = build((1, 8), tokens=True, dense=2).train()
    x, noise, context = inputs(3, (1, 8))
    network(x, noise, context).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    network.zero_grad()
    network(x, noise, told(3, (1, 8))).square().mean().backward()
    assert [name for name, p in network.named_parameters() if not p.grad.any()] == []


# Blocks


@pytest.mark.parametrize("size", [(6,), (4, 6), (2, 4, 6)])
@pytest.mark.parametrize("patch", [1, 2])
@every_batch
def test_depth_to_space_undoes_space_to_depth(size, patch, batch):
    x = torch.randn(batch, 3, *size)
    deep = space_to_depth(x, patch)
    assert deep.shape == (batch, 3 * patch ** len(size), *[n // patch for n in size])
    assert torch.equal(depth_to_space(deep, patch), x)
    # One column of channels holds one patch and nothing else.
    corner = x[(..., *[slice(patch)] * len(size))]
    assert torch.equal(deep[(..., *[0] * len(size))], corner.flatten(1))


@pytest.mark.parametrize("size", [(5,), (1, 4), (3, 2, 2)])
def test_a_pointwise_map_is_a_convolution_of_one_place(size):
    pointwise, x = Pointwise(3, 4), torch.randn(2, 3, *size)
    conv = CONV[len(size)](3, 4, 1)
    conv.load_state_dict({"weight": pointwise.weight.reshape(conv.weight.shape), "bias": pointwise.bias})
    torch.testing.assert_close(pointwise(x), conv(x))


@pytest.mark.parametrize("channels", [1, 4, 8, 12, 24, 64, 100, 512])
def test_norm_has_groups_that_divide_the_channels(channels):
    groups = norm(channels).num_groups
    assert channels % groups == 0
    assert groups <= 32
    assert channels // groups >= min(8, channels)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_residual_block_starts_as_the_identity(dims):
    block = ResBlock(dims, 8, 8, 5)
    x = torch.randn(2, 8, *[4] * dims)
    assert torch.equal(block(x, torch.randn(2, 5, *[1] * dims)), x)


@pytest.mark.parametrize("size", [(6,), (3, 4), (2, 2, 3)])
@every_batch
def test_attention_starts_as_the_identity_and_knows_no_order(size, batch):
    attention = SelfAttention(8, head=4)
    x = torch.randn(batch, 8, *size)
    assert torch.equal(attention(x), x)
    for parameter in attention.out.parameters():
        nn.init.normal_(parameter)
    places = torch.randperm(math.prod(size))

    def permute(x):
        return x.flatten(2)[..., places].reshape(x.shape)

    torch.testing.assert_close(attention(permute(x)), permute(attention(x)), rtol=1e-4, atol=1e-5)
    assert (attention(x) - x).abs().max() > 1e-2


def test_attention_is_softmax_of_cosines():
    """One head by hand: queries and keys of unit root mean square."""
    attention = SelfAttention(4, head=4).requires_grad_(False)
    nn.init.eye_(attention.out.weight)
    x = torch.randn(1, 4, 5)
    q, k, v = attention.qkv(attention.norm(x)[0].T).chunk(3, 1)
    q, k = (t / t.square().mean(1, keepdim=True).sqrt() for t in (q, k))
    expected = x[0].T + torch.softmax(q @ k.T / math.sqrt(4), 1) @ v
    torch.testing.assert_close(attention(x)[0].T, expected)


@pytest.mark.parametrize(("channels", "head", "heads"), [(8, 32, 1), (64, 32, 2), (96, 32, 3), (100, 32, 2), (7, 2, 1)])
def test_attention_takes_the_most_heads_that_divide_the_channels(channels, head, heads):
    assert SelfAttention(channels, head).heads == heads


# Embeddings


@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 4)])
def test_fourier_features_have_a_new_last_dimension(shape):
    assert FourierFeatures(6)(torch.randn(shape)).shape == (*shape, 6)


@pytest.mark.parametrize("bandwidth", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("x", [0.0, 0.3, -20.0])
def test_fourier_features_have_unit_variance(bandwidth, x):
    n = 100_000
    features = FourierFeatures(n, bandwidth)(torch.tensor(x))
    # With a uniform phase each is sqrt(2) cos(uniform): its square has variance 1 / 2, its mean is 0.
    assert features.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(0.5 / n))
    assert features.mean().item() == pytest.approx(0, abs=5 / math.sqrt(n))


def test_fourier_features_are_close_for_close_numbers():
    """Their correlation is the Gaussian kernel exp(-(2 pi bandwidth distance)^2 / 2)."""
    n, bandwidth = 100_000, 0.5
    embed = FourierFeatures(n, bandwidth)
    here = embed(torch.tensor(1.0))
    for distance in (0.0, 0.1, 0.3, 1.0):
        kernel = math.exp(-((2 * math.pi * bandwidth * distance) ** 2) / 2)
        there = embed(torch.tensor(1.0 + distance))
        assert (here * there).mean().item() == pytest.approx(kernel, abs=5 / math.sqrt(n))


# Sequences and memory


class Mean(nn.Module):
    """Mixes by adding the mean of a sequence to each of its members."""

    def forward(self, x, emb, length):
        return x + x.unflatten(0, (-1, length)).mean(1).repeat_interleave(length, 0)


@pytest.mark.parametrize("shape", [(2, 8), (1, 6, 4)], ids=str)
def test_mixers_join_the_members_of_a_sequence(shape):
    built = []
    network = build(shape, mixer=lambda channels, features, level: built.append((channels, level)) or Mean())
    assert set(built) == {(8, 0), (16, 1)}
    x, noise, context = inputs(6, shape)
    expected = network(x, noise, context, 3)
    changed = x.clone()
    changed[0] += 1
    moved = (network(changed, noise, context, 3) - expected).abs().flatten(1).amax(1)
    assert (moved[:3] > 1e-4).all()
    assert (moved[3:] == 0).all()


@pytest.mark.parametrize("shape", [(2, 8), (1, 6, 4)], ids=str)
def test_recomputing_changes_no_gradient(shape):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        network = build(shape, recompute=recompute)
        x, noise, context = inputs(2, shape)
        network(x, noise, context).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])
