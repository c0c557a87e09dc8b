import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import kstest, laplace, truncnorm

from mmdiff.errors import check_at_least
from mmdiff.schedules import (
    Angular,
    Cosine,
    Flow,
    Karras,
    Laplace,
    LinearVP,
    LogLinear,
    LogNormal,
    Resized,
    ScaledLinearVP,
    Sigmoid,
)

SCHEDULES = [
    Karras(),
    Karras(sigma_min=0.01, sigma_max=10.0, rho=3.0),
    LogLinear(),
    LogNormal(),
    LogNormal(mean=0.5, std=0.8, sigma_max=200.0),
    Flow(),
    Flow(shift=3.0),
    Cosine(),
    Cosine(shift=0.5, sigma_min=0.0),
    LinearVP(),
    ScaledLinearVP(),
    Sigmoid(),
    Sigmoid(start=0.0, end=3.0, temperature=0.5, sigma_min=0.0),
    Laplace(),
    Angular(sigma_min=0.0),
    Angular(power=1.0),
    Resized(base=Flow(), size=4096, reference=1024),
]
every = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
T = torch.linspace(0, 1, 257, dtype=torch.float64)


def spread(schedule, forward, backward, t):
    """Even spacing in the coordinate ``forward`` between the two ends, by plain floats."""
    low, high = forward(schedule.sigma_min), forward(schedule.sigma_max)
    return torch.tensor([backward(low + (high - low) * float(u)) for u in t], dtype=torch.float64)


@every
def test_quantile_increases_from_sigma_min_to_sigma_max(schedule):
    sigma = schedule.quantile(T)
    assert sigma.dtype == torch.float64
    assert (sigma.diff() > 0).all()
    assert sigma[0].item() == pytest.approx(schedule.sigma_min, rel=1e-9, abs=1e-12)
    assert sigma[-1].item() == pytest.approx(schedule.sigma_max, rel=1e-6)
    assert sigma[0] >= schedule.sigma_min
    assert sigma[-1] <= schedule.sigma_max


@every
def test_quantile_takes_any_shape_and_dtype(schedule):
    t = torch.rand(2, 3, 4)
    assert torch.equal(schedule.quantile(t)[1, 2], schedule.quantile(t[1, 2].double()))


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=str)
@pytest.mark.parametrize("n", [2, 18])
def test_karras_is_equation_5_of_edm(schedule, n):
    low, high, rho = schedule.sigma_min, schedule.sigma_max, schedule.rho
    edm = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    t = 1 - torch.arange(n, dtype=torch.float64) / (n - 1)
    torch.testing.assert_close(schedule.quantile(t), torch.tensor(edm, dtype=torch.float64), rtol=1e-12, atol=0)


def test_log_linear_is_a_geometric_sequence():
    schedule = LogLinear(sigma_min=0.01, sigma_max=100.0)
    expected = torch.tensor([0.01 * 1e4 ** float(t) for t in T], dtype=torch.float64)
    torch.testing.assert_close(schedule.quantile(T), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_uniform_in_shifted_time(shift):
    schedule = Flow(shift=shift)
    t_max = schedule.sigma_max / (shift + schedule.sigma_max)
    t = t_max * T
    torch.testing.assert_close(schedule.quantile(T), shift * t / (1 - t), rtol=1e-9, atol=0)
    # Esser et al. 2024, equation 23: the time itself becomes shift t / (1 + (shift - 1) t).
    shifted = schedule.quantile(T) / (1 + schedule.quantile(T))
    torch.testing.assert_close(shifted, shift * t / (1 + (shift - 1) * t), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shift", [1.0, 0.5])
def test_cosine_is_uniform_in_the_angle(shift):
    schedule = Cosine(shift=shift)
    expected = spread(schedule, lambda s: math.atan2(s, shift), lambda a: shift * math.sin(a) / math.cos(a), T)
    torch.testing.assert_close(schedule.quantile(T), expected, rtol=1e-9, atol=0)


def test_cosine_is_nichol_and_dhariwals_alpha_bar():
    sigma = Cosine(sigma_min=0.0, sigma_max=1e6).quantile(T)
    torch.testing.assert_close(1 / (1 + sigma**2), torch.cos(math.pi / 2 * T) ** 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("beta_min", "beta_max"), [(0.1, 20.0), (0.5, 8.0)])
def test_linear_vp_integrates_its_beta(beta_min, beta_max):
    def sigma(time):
        integral, _ = quad(lambda u: beta_min + (beta_max - beta_min) * u, 0, time, epsabs=1e-14, epsrel=1e-13)
        alpha = math.exp(-integral / 2)
        return math.sqrt(1 - alpha**2) / alpha

    schedule = LinearVP(sigma_min=0.01, sigma_max=50.0, beta_min=beta_min, beta_max=beta_max)

    def time(level):
        return brentq(lambda u: math.log(sigma(u) / level), 1e-9, 2.0, xtol=1e-14)

    t = T[::16]
    torch.testing.assert_close(schedule.quantile(t), spread(schedule, time, sigma, t), rtol=1e-7, atol=0)


def test_scaled_linear_vp_is_the_limit_of_the_table_of_latent_diffusion():
    n = 200_000  # of 1000 steps with betas linspace(sqrt(0.00085), sqrt(0.012))^2, made finer
    betas = torch.linspace(0.85**0.5, 12.0**0.5, n, dtype=torch.float64) ** 2 / n
    alpha_bar = torch.cumprod(1 - betas, 0)
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    schedule = ScaledLinearVP(sigma_min=sigma[n // 100 - 1].item(), sigma_max=sigma[-1].item())
    t = torch.tensor([0.0, 0.2, 0.5, 0.9], dtype=torch.float64)
    index = ((0.01 + 0.99 * t) * n).round().long() - 1
    torch.testing.assert_close(schedule.quantile(t), sigma[index], rtol=1e-3, atol=0)


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if isinstance(s, Sigmoid)], ids=str)
def test_sigmoid_is_chens_gamma(schedule):
    """Chen 2023, algorithm 1: gamma = (s(end) - s((end - start) u + start)) / (s(end) - s(start)), over u = 0 to 1."""

    def s(v):
        return 1 / (1 + math.exp(-v / schedule.temperature))

    def sigma(u):
        at_end, at_start = s(schedule.end), s(schedule.start)
        gamma = (at_end - s((schedule.end - schedule.start) * u + schedule.start)) / (at_end - at_start)
        return math.sqrt(max(0.0, 1 / gamma - 1))

    def time(level):
        return 0.0 if level == 0 else brentq(lambda u: sigma(u) - level, 0, 1 - 1e-9, xtol=1e-14)

    t = T[1::16]
    torch.testing.assert_close(schedule.quantile(t), spread(schedule, time, sigma, t), rtol=1e-6, atol=1e-9)


def test_laplace_is_the_truncated_law():
    schedule = Laplace(mean=0.3, scale=0.7, sigma_min=0.05, sigma_max=30.0)
    ends = laplace.cdf([math.log(0.05), math.log(30.0)], 0.3, 0.7)
    expected = np.exp(laplace.ppf(ends[0] + T.numpy() * (ends[1] - ends[0]), 0.3, 0.7))
    np.testing.assert_allclose(schedule.quantile(T).numpy(), expected, rtol=1e-9)


def test_angular_is_a_power_in_the_odds_of_the_angle():
    schedule = Angular(sigma_min=0.0, sigma_max=80.0, power=1.5)
    z = T**1.5 / (T**1.5 + (1 - T) ** 1.5)
    torch.testing.assert_close(schedule.quantile(T), torch.tan(z * math.atan(80.0)), rtol=1e-9, atol=1e-12)
    cosine = Cosine().quantile(T)
    torch.testing.assert_close(Angular(power=1.0, sigma_min=0.002).quantile(T), cosine, rtol=1e-9, atol=1e-12)


def test_a_resized_flow_is_a_shifted_flow():
    """Esser et al. 2024, equation 23: t_m = sqrt(m / n) t / (1 + (sqrt(m / n) - 1) t)."""
    base = Flow()
    t = base.quantile(T) / (1 + base.quantile(T))
    sigma = Resized(base=base, size=4096, reference=1024).quantile(T)
    torch.testing.assert_close(sigma / (1 + sigma), 2 * t / (1 + t))


def test_linear_vp_covers_unit_time_by_default():
    assert LinearVP().sigma_max == pytest.approx(math.sqrt(math.expm1((0.1 + 20) / 2)), rel=2e-3)


@pytest.mark.parametrize("schedule", [LogNormal(), LogNormal(mean=0.5, std=0.8, sigma_max=200.0)], ids=str)
def test_log_normal_is_the_truncated_law(schedule):
    mean, std = schedule.mean, schedule.std
    low, high = math.log(schedule.sigma_min), math.log(schedule.sigma_max)
    law = truncnorm((low - mean) / std, (high - mean) / std, loc=mean, scale=std)
    torch.manual_seed(0)
    independent = schedule.quantile(torch.rand(5000)).log().numpy()
    assert kstest(independent, law.cdf).pvalue > 1e-3
    stratified = schedule.draw(5000).log().numpy()
    assert kstest(stratified, law.cdf).statistic <= 1.001 / 5000


def test_logit_normal_flow_time_is_log_normal_sigma():
    mean, std = 0.3, 1.1
    schedule = LogNormal(mean=mean, std=std, sigma_min=1e-3, sigma_max=1e3)

    def density(t):  # Esser et al. 2024, equation 19
        logit = math.log(t / (1 - t))
        return math.exp(-((logit - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi) * t * (1 - t))

    ends = [s / (1 + s) for s in (schedule.sigma_min, schedule.sigma_max)]
    total, _ = quad(density, *ends, limit=200)
    u = np.array([0.01, 0.1, 0.35, 0.5, 0.8, 0.99])
    sigma = schedule.quantile(torch.from_numpy(u)).numpy()
    mass = [quad(density, ends[0], s / (1 + s), limit=200)[0] / total for s in sigma]
    np.testing.assert_allclose(mass, u, atol=1e-7)


@every
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
def test_grid_falls_from_sigma_max_to_exactly_zero(schedule, steps):
    grid = schedule.grid(steps)
    assert grid.shape == (steps + 1,)
    assert grid.dtype == torch.float64
    assert grid.device.type == "cpu"
    assert (grid.diff() < 0).all()
    assert grid[0].item() == pytest.approx(schedule.sigma_max, rel=1e-6)
    assert grid[-1].item() == 0


def test_grid_of_a_flow_has_equal_steps_in_time():
    grid = Flow().grid(10)
    time = grid / (1 + grid)
    torch.testing.assert_close(time.diff(), torch.full((10,), -1e3 / 1001 / 10, dtype=torch.float64))


@pytest.mark.parametrize("steps", [0, -3])
def test_grid_needs_a_step(steps):
    with pytest.raises(ValueError, match=f"steps .*at least 1.*{steps}"):
        Karras().grid(steps)


@pytest.mark.parametrize("steps", ["a", 2.5, None])
def test_steps_are_a_whole_number(steps):
    with pytest.raises(ValueError, match=f"steps .*{steps!r}"):
        check_at_least(1, steps=steps)


@every
@pytest.mark.parametrize("world", [1, 2, 5])
def test_draw_takes_one_level_per_stratum_over_all_ranks(schedule, world):
    torch.manual_seed(1)
    n = 16
    edges = schedule.quantile(torch.linspace(0, 1, n * world + 1, dtype=torch.float64))
    ranks = [schedule.draw(n, rank=rank, world=world) for rank in range(world)]
    draws = torch.cat(ranks)
    assert draws.dtype == torch.float64
    for own in ranks:  # each process sees all levels, not a share of them
        assert torch.equal(torch.bucketize(own, edges[world:-1:world].contiguous()), torch.arange(n))
    assert torch.equal(torch.bucketize(draws, edges[1:-1]).sort().values, torch.arange(n * world))


def test_draw_is_random_within_a_stratum():
    torch.manual_seed(2)
    schedule = LogLinear(sigma_min=1.0, sigma_max=math.e)
    inside = torch.cat([schedule.draw(8).log() * 8 - torch.arange(8) for _ in range(300)])
    assert kstest(inside.numpy(), "uniform").pvalue > 1e-3


@every
def test_frozen_and_keyword_only(schedule):
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.sigma_min = 1.0
    with pytest.raises(TypeError):
        type(schedule)(0.1, 1.0)


@pytest.mark.parametrize(
    ("kind", "arguments", "name"),
    [
        *[(kind, {"sigma_min": -0.1}, "sigma_min") for kind in (Karras, LogLinear, LogNormal, Flow, Cosine, LinearVP)],
        (Karras, {"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_max"),
        (Karras, {"sigma_min": 1.0, "sigma_max": 1.0}, "sigma_max"),
        (Flow, {"sigma_max": math.inf}, "sigma_max"),
        (Flow, {"sigma_max": math.nan}, "sigma_max"),
        (Karras, {"rho": 0.0}, "rho"),
        (Karras, {"rho": -7.0}, "rho"),
        (LogLinear, {"sigma_min": 0.0}, "sigma_min"),
        (LogNormal, {"std": 0.0}, "std"),
        (LogNormal, {"std": -1.0}, "std"),
        (Flow, {"shift": 0.0}, "shift"),
        (Flow, {"shift": -1.0}, "shift"),
        (Cosine, {"shift": 0.0}, "shift"),
        (LinearVP, {"beta_min": 0.0}, "beta_min"),
        (LinearVP, {"beta_min": 5.0, "beta_max": 1.0}, "beta_max"),
        (ScaledLinearVP, {"beta_min": 13.0}, "beta_min"),
        (Sigmoid, {"start": 3.0}, "start"),
        (Sigmoid, {"temperature": 0.0}, "temperature"),
        (Laplace, {"scale": 0.0}, "scale"),
        (Laplace, {"sigma_min": 0.0}, "sigma_min"),
        (Angular, {"power": 0.0}, "power"),
        (Resized, {"base": Flow(), "size": 0, "reference": 1}, "size"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, name):
    with pytest.raises(ValueError, match=name):
        kind(**arguments)
