import math

import pytest
import torch
from torch import nn

from closed_forms import SIZES, Elementwise
from mmdiff.conditioning import Conditioner
from mmdiff.denoiser import Denoiser, expand_sigma
from mmdiff.scaling import EDM, Epsilon, Flow, V
from mmdiff.types import Context
from mmdiff.weighting import MinSNR, Sigmoid, Uniform

SCALINGS = {"edm": EDM(sigma_data=0.5), "epsilon": Epsilon(), "v": V(), "flow": Flow()}
NOTHING = Context()
every_scaling = pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
every_rank = pytest.mark.parametrize("rank", SIZES)
every_batch = pytest.mark.parametrize("batch", [1, 3])


def build(scaling, network=None):
    return Denoiser(network or Elementwise(), scaling, Conditioner(4))


def ones(x):
    return [1] * (x.ndim - 1)


@every_scaling
@every_rank
@every_batch
def test_every_way_to_say_one_level_gives_the_same(scaling, rank, batch):
    denoiser, x = build(scaling), torch.randn(batch, *SIZES[rank])
    expected = denoiser(x, 0.7, NOTHING)
    level = torch.tensor(0.7)
    ways = [
        level,
        level.double(),
        level.expand(batch),
        level.expand(batch, *ones(x)),
        level.expand(1, *ones(x)),
        level.expand(x.shape),
        level.expand(batch, 1, *x.shape[2:]),
    ]
    for sigma in ways:
        torch.testing.assert_close(denoiser(x, sigma, NOTHING), expected, rtol=1e-6, atol=1e-6)


@every_scaling
@every_rank
def test_each_example_has_its_own_level(scaling, rank):
    denoiser, x = build(scaling), torch.randn(3, *SIZES[rank])
    sigma = torch.tensor([0.0, 0.4, 9.0])
    alone = torch.cat([denoiser(x[i : i + 1], float(sigma[i]), NOTHING) for i in range(3)])
    torch.testing.assert_close(denoiser(x, sigma, NOTHING), alone)
    torch.testing.assert_close(denoiser(x, sigma.reshape(-1, *ones(x)), NOTHING), alone)


@every_scaling
@every_rank
@every_batch
def test_each_part_has_its_own_level(scaling, rank, batch):
    """The network treats elements alike, so each slice must come out as if the whole were at its level."""
    denoiser, x = build(scaling), torch.randn(batch, *SIZES[rank])
    sigma = torch.linspace(0, 3, x.shape[-1])
    together = denoiser(x, sigma.reshape(*[1] * (x.ndim - 1), -1), NOTHING)
    for i, level in enumerate(sigma):
        torch.testing.assert_close(together[..., i], denoiser(x, level, NOTHING)[..., i], rtol=1e-5, atol=1e-6)
    assert torch.equal(together[..., 0], x[..., 0])


@every_rank
@every_batch
def test_the_network_gets_one_level_per_example_unless_parts_differ(rank, batch):
    denoiser, x = build(V()), torch.randn(batch, *SIZES[rank])
    for sigma in (0.5, torch.full((batch,), 0.5), torch.full((1, *ones(x)), 0.5)):
        denoiser(x, sigma, NOTHING)
        assert denoiser.network.calls[-1][1].shape == (batch,)
    denoiser(x, torch.ones(1, *ones(x)[1:], x.shape[-1]), NOTHING)
    assert denoiser.network.calls[-1][1].shape == (batch, *ones(x)[1:], x.shape[-1])


def test_the_network_sees_the_scaled_input_and_the_context():
    denoiser, x = build(Flow()), torch.randn(2, 3)
    context = Context(vector=torch.randn(2, 4))
    denoiser(x, torch.tensor([1.0, 3.0]), context)
    seen, noise, bound = denoiser.network.calls[0]
    torch.testing.assert_close(seen, torch.stack([x[0] / 2, x[1] / 4]))
    torch.testing.assert_close(noise, torch.tensor([0.5, 0.75]))
    assert bound is context


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), (1, 2, 1), (3, 2, 5, 1), (2, 1, 1), (0,)])
def test_levels_that_do_not_fit_are_refused(shape):
    x = torch.zeros(3, 4, 5)
    with pytest.raises(ValueError, match=r"sigma of shape .* does not fit .*\(3, 4, 5\)"):
        expand_sigma(torch.ones(shape), x)
    with pytest.raises(ValueError, match="sigma of shape"):
        build(V())(x, torch.ones(shape), NOTHING)
    with pytest.raises(ValueError, match="sigma of shape"):
        build(V()).loss(x, torch.ones(shape), x, NOTHING)


@every_scaling
def test_a_double_state_keeps_its_precision_with_a_single_network(scaling):
    x = torch.randn(3, 5, dtype=torch.float64)
    denoiser = build(scaling)
    x0 = denoiser(x, 1e-3, NOTHING)
    assert x0.dtype == torch.float64
    assert denoiser.network.calls[0][0].dtype == denoiser.network.calls[0][1].dtype == torch.float32
    c = scaling(torch.tensor(1e-3, dtype=torch.float64))
    prediction = Elementwise()((c.input * x).float(), c.noise.float().expand(3), NOTHING)
    torch.testing.assert_close(x0, c.skip * x + c.out * prediction.double(), rtol=1e-13, atol=1e-15)
    assert torch.equal(denoiser(x, 0.0, NOTHING), x)


def test_a_network_of_the_wrong_shape_is_refused():
    class Flat(nn.Linear):
        def forward(self, x, noise, context):
            return super().forward(x)

    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        build(V(), Flat(4, 3))(torch.zeros(2, 4), 1.0, NOTHING)


@every_scaling
@every_rank
@every_batch
@pytest.mark.parametrize("weighting", [None, Uniform(), MinSNR(gamma=2.0), Sigmoid()], ids=lambda w: type(w).__name__)
def test_loss_is_the_weighted_mean_over_noisy_elements_that_count(scaling, rank, batch, weighting):
    torch.manual_seed(0)
    x0, noise = torch.randn(2, batch, *SIZES[rank], dtype=torch.float64)
    sigma = torch.rand(batch, *ones(x0)[1:], x0.shape[-1], dtype=torch.float64) + 0.1
    sigma[..., 0] = 0
    mask = torch.rand(x0.shape) < 0.7
    mask[0, ..., 1] = True
    denoiser = build(scaling)
    with torch.no_grad():
        estimate = denoiser(x0 + sigma * noise, sigma, NOTHING)
        got = denoiser.loss(x0, sigma, noise, NOTHING, mask=mask, weighting=weighting)
    assert got.shape == (batch,)
    for i in range(batch):
        terms = []
        levels = sigma.expand_as(x0)[i].flatten().tolist()
        for s, a, b, counts in zip(
            levels, estimate[i].flatten().tolist(), x0[i].flatten().tolist(), mask[i].flatten().tolist(), strict=True
        ):
            if s > 0 and counts:
                level = torch.tensor(s, dtype=torch.float64)
                weight = float(weighting(level)) if weighting else 1 / float(scaling(level).out) ** 2
                terms.append(weight * (a - b) ** 2)
        expected = math.fsum(terms) / max(len(terms), 1)
        assert got[i].item() == pytest.approx(expected, rel=1e-9)


@every_scaling
def test_native_weight_is_the_squared_error_of_the_networks_own_target(scaling):
    x0, noise = torch.randn(2, 3, 4, dtype=torch.float64)
    sigma = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)
    c = scaling(sigma[:, None])
    x = x0 + sigma[:, None] * noise
    network = Elementwise()
    error = network(c.input * x, c.noise[:, 0], NOTHING) - (x0 - c.skip * x) / c.out
    loss = build(scaling, network).loss(x0, sigma, noise, NOTHING)
    torch.testing.assert_close(loss, error.square().mean(1), rtol=1e-5, atol=1e-6)


@every_scaling
@pytest.mark.parametrize("weighting", [None, Uniform(), MinSNR(), Sigmoid()], ids=lambda w: type(w).__name__)
def test_clean_parts_carry_no_loss_and_no_nan(scaling, weighting):
    denoiser, x0 = build(scaling), torch.randn(2, 3, 6)
    sigma = torch.tensor([0.0, 0.0, 0.5, 1.0, 0.0, 2.0]).reshape(1, 1, 6)
    noise = torch.randn_like(x0)
    loss = denoiser.loss(x0, sigma, noise, NOTHING, weighting=weighting)
    other = noise + 100 * (sigma == 0)
    assert torch.equal(loss, denoiser.loss(x0, sigma, other, NOTHING, weighting=weighting))
    loss.sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in denoiser.network.parameters())

    denoiser.zero_grad()
    nothing = denoiser.loss(x0, 0.0, noise, NOTHING, weighting=weighting)
    nothing.sum().backward()
    assert torch.equal(nothing, torch.zeros(2))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in denoiser.network.parameters())


def test_padding_carries_no_loss():
    denoiser = build(V())
    x0, noise = torch.randn(2, 2, 1, 8)
    mask = torch.arange(8).expand(2, 1, 8) < torch.tensor([5, 0]).reshape(2, 1, 1)
    loss = denoiser.loss(x0, 0.8, noise, NOTHING, mask=mask)
    torch.testing.assert_close(loss[:1], denoiser.loss(x0[:1, :, :5], 0.8, noise[:1, :, :5], NOTHING))
    assert loss[1] == 0


class Gain(nn.Module):
    """F is linear in its input; the exact one for Gaussian data."""

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))

    def forward(self, x, noise, context):
        return self.gain * x


@every_scaling
@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.0])
def test_the_posterior_mean_of_gaussian_data_minimizes_the_loss(scaling, sigma):
    torch.manual_seed(0)
    n, std = 200_000, 0.5
    x0, eps = torch.randn(2, 1, n, dtype=torch.float64)
    x0 = std * x0
    c = scaling(torch.tensor(sigma, dtype=torch.float64))
    best = float((std**2 / (std**2 + sigma**2) - c.skip) / (c.out * c.input))
    loss = {
        shift: float(build(scaling, Gain(best + shift)).loss(x0, sigma, eps, NOTHING).detach())
        for shift in (-0.2, -0.05, 0.0, 0.05, 0.2)
    }
    assert loss[-0.2] > loss[-0.05] > loss[0.0] < loss[0.05] < loss[0.2]
    # What is left is the posterior's variance; the mean of n squares of Gaussians errs by sqrt(2 / n).
    variance = std**2 * sigma**2 / (std**2 + sigma**2) / float(c.out) ** 2
    assert loss[0.0] == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
