import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from closed_forms import LINE, PLANE, SIZES, Mixture, gaussian_flow, order, two_bumps
from mmdiff.sampling import SeededNoise
from mmdiff.schedules import Cosine, Flow, Karras, LinearVP, LogLinear
from mmdiff.solvers import (
    adams_bashforth,
    adaptive,
    ancestral,
    angular,
    consistency,
    deis,
    dpm2,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
    edm_stochastic,
    euler,
    heun,
    predictor_corrector,
    rk4,
    sa_solver,
    unipc,
)
from mmdiff.solvers.steps import brownian

MULTISTEP = {
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "adams_bashforth_2": partial(adams_bashforth, order=2),
    "adams_bashforth_3": partial(adams_bashforth, order=3),
}
FINER = {
    "unipc_1": (partial(unipc, order=1), 2, (192, 384)),
    "unipc_2": (partial(unipc, order=2), 3, (192, 384)),
    "unipc_3": (unipc, 4, (384, 768)),
    "deis_2": (partial(deis, order=2), 2, (192, 384)),
    "deis_3": (deis, 3, (768, 1536)),
    "deis_4": (partial(deis, order=4), 4, (768, 1536)),
    "adams_bashforth_4": (partial(adams_bashforth, order=4), 4, (192, 384)),
    "angular_1": (partial(angular, order=1), 2, (192, 384)),
    "angular_2": (partial(angular, order=2), 3, (192, 384)),
    "angular_3": (angular, 4, (192, 384)),
}
"""Solvers whose order shows on finer grids, with their order and these grids."""
HIGHER = {name: solver for name, (solver, _, _) in FINER.items()}
TWICE = {"heun": heun, "dpm2": dpm2, "dpmpp_2s": dpmpp_2s}
STOCHASTIC_TWICE = {
    "edm_stochastic": edm_stochastic,
    "dpmpp_sde": dpmpp_sde,
    "predictor_corrector": predictor_corrector,
}
STOCHASTIC = {
    "ancestral": ancestral,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "sa_solver": sa_solver,
    **STOCHASTIC_TWICE,
}
DETERMINISTIC = {"euler": euler, **TWICE, "rk4": rk4, **MULTISTEP}
SOLVERS = {**DETERMINISTIC, **HIGHER, "adaptive": adaptive, **STOCHASTIC, "consistency": consistency}
LANDS = [*TWICE.values(), *STOCHASTIC_TWICE.values(), euler, ancestral, dpmpp_2m, dpmpp_3m, unipc, deis, consistency]
"""Solvers whose step into sigma = 0 lands on the last estimate."""
STEPS = (48, 96, 192)
ORDERS = dict.fromkeys(DETERMINISTIC, 2) | {
    **{"euler": 1, "rk4": 4, "dpmpp_3m": 3, "adams_bashforth_3": 3},
}
SCHEDULES = {
    "karras": Karras(sigma_min=0.05, sigma_max=20.0),
    "log_linear": LogLinear(sigma_min=0.05, sigma_max=20.0),
    "flow": Flow(sigma_min=0.05, sigma_max=20.0),
    "flow_shifted": Flow(sigma_min=0.05, sigma_max=20.0, shift=3.0),
    "cosine": Cosine(sigma_min=0.05, sigma_max=20.0),
    "linear_vp": LinearVP(sigma_min=0.05, sigma_max=20.0),
}
every = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
every_deterministic = pytest.mark.parametrize("name", DETERMINISTIC)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def positive(schedule, steps):
    """A grid that ends at sigma_min."""
    return schedule.quantile(torch.linspace(1, 0, steps + 1, dtype=torch.float64))


def end(solver, denoise, x, sigmas, **arguments):
    *_, last = solver(denoise, x, sigmas, **arguments)
    return last.x


def start(size, sigma, n=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sigma * torch.randn(n, size, generator=generator, dtype=torch.float64)


def error(got, expected):
    return float((got - expected).square().mean().sqrt())


# Convergence


@pytest.fixture(scope="module")
def problem():
    mixture = PLANE
    x = start(mixture.means.shape[1], 20.0)
    return mixture, x, mixture.flow(x, 20.0, 0.05)


PATHS = [SCHEDULES[name] for name in ("linear_vp", "cosine", "karras", "flow")]


@every_deterministic
@pytest.mark.parametrize("schedule", PATHS, ids=["linear_vp", "cosine", "karras", "flow"])
def test_order_of_convergence(problem, name, schedule, record_property):
    mixture, x, exact = problem

    def miss(steps):
        return error(end(DETERMINISTIC[name], mixture, x, positive(schedule, steps)), exact)

    measured = order(miss, STEPS)
    record_property("order", measured)
    assert measured == pytest.approx(ORDERS[name], abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", FINER)
@pytest.mark.parametrize("schedule", PATHS, ids=["linear_vp", "cosine", "karras", "flow"])
def test_order_of_convergence_on_finer_grids(problem, name, schedule, record_property):
    mixture, x, exact = problem
    solver, nominal, steps = FINER[name]
    measured = order(lambda n: error(end(solver, mixture, x[:4], positive(schedule, n)), exact[:4]), steps)
    record_property("order", measured)
    assert measured == pytest.approx(nominal, abs=0.15)


@every_deterministic
@pytest.mark.parametrize("schedule", [SCHEDULES["karras"], SCHEDULES["flow"]], ids=["karras", "flow"])
def test_gaussian_data_reach_the_closed_form(name, schedule):
    mean, std = 0.7, 0.4

    def denoise(x, sigma):
        return mean + std**2 / (std**2 + float(sigma) ** 2) * (x - mean)

    x = start(3, 20.0)
    exact = gaussian_flow(x, 20.0, 0.05, mean, std)

    def miss(steps):
        return error(end(DETERMINISTIC[name], denoise, x, positive(schedule, steps)), exact)

    # A Gaussian's flow is so simple that some errors cancel: the order may be higher than its name.
    assert order(miss, [2 * n for n in STEPS]) > ORDERS[name] - 0.15


def test_the_two_references_agree():
    x = start(2, 20.0)
    for level in (0.05, 0.0):
        exact = gaussian_flow(x, 20.0, level, 0.7, 0.4)
        assert error(Mixture([[0.7, 0.7]], [0.4], [1.0]).flow(x, 20.0, level), exact) < 1e-10


@pytest.fixture(scope="module")
def clean_end():
    return PLANE.flow(start(2, 20.0), 20.0, 0.0)


@every_deterministic
@pytest.mark.parametrize("kind", [Karras, Flow, Cosine, LinearVP])
def test_the_full_grid_to_zero_converges(clean_end, name, kind):
    schedule = kind(sigma_min=0.0, sigma_max=20.0) if kind is Flow else kind(sigma_min=0.002, sigma_max=20.0)
    x, exact = start(2, 20.0), clean_end
    misses = [error(end(DETERMINISTIC[name], PLANE, x, schedule.grid(n)), exact) for n in (20, 80, 320)]
    assert misses[0] > 3 * misses[1] > 9 * misses[2]
    assert misses[2] < 0.01


# Equality with independent implementations of the published formulas


def alpha_bar(sigma):
    return 1 / (1 + sigma**2)


@every_schedule
def test_euler_is_eulers_method_in_flow_time(schedule):
    sigmas = schedule.grid(20)
    x = start(2, 20.0)
    time = (sigmas / (1 + sigmas)).tolist()
    y = (1 - time[0]) * x
    for t, after in pairwise(time):
        x0 = PLANE(y / (1 - t), t / (1 - t))
        velocity = (y - x0) / t  # eps - x0 with y = (1 - t) x0 + t eps
        y = y + (after - t) * velocity
    assert (end(euler, PLANE, x, sigmas) - y).abs().max() < 1e-12


@every_schedule
def test_euler_is_ddim(schedule):
    sigmas = schedule.grid(20)
    x = start(2, 20.0)
    y = alpha_bar(sigmas[0]).sqrt() * x
    for sigma, after in pairwise(sigmas):
        now, then = alpha_bar(sigma), alpha_bar(after)
        eps = (y - now.sqrt() * PLANE(y / now.sqrt(), sigma)) / (1 - now).sqrt()
        y = then.sqrt() * (y - (1 - now).sqrt() * eps) / now.sqrt() + (1 - then).sqrt() * eps
    assert (end(euler, PLANE, x, sigmas) - y).abs().max() < 1e-10


@every_schedule
@pytest.mark.parametrize("to_zero", [True, False])
def test_heun_is_edm_algorithm_1(schedule, to_zero):
    sigmas = schedule.grid(15) if to_zero else positive(schedule, 15)
    x = start(2, 20.0)
    y, t = x.clone(), sigmas.tolist()
    for i in range(len(t) - 1):
        d = (y - PLANE(y, t[i])) / t[i]
        following = y + (t[i + 1] - t[i]) * d
        if t[i + 1] != 0:
            d_prime = (following - PLANE(following, t[i + 1])) / t[i + 1]
            following = y + (t[i + 1] - t[i]) * (0.5 * d + 0.5 * d_prime)
        y = following
    assert (end(heun, PLANE, x, sigmas) - y).abs().max() < 1e-12


@every_schedule
def test_dpmpp_2m_is_algorithm_2_in_log_snr_on_the_vp_path(schedule):
    """Lu et al. 2022b: x_t = (sigma_t / sigma_s) x_s - alpha_t (exp(-h) - 1) D, with lambda = log(alpha / sigma)."""
    levels = positive(schedule, 15).tolist()
    x = start(2, 20.0)
    alpha = [1 / math.sqrt(1 + s**2) for s in levels]
    noise = [s / math.sqrt(1 + s**2) for s in levels]
    lam = [math.log(a / s) for a, s in zip(alpha, noise, strict=True)]
    y = alpha[0] * x
    before = None
    for i in range(1, len(levels)):
        h = lam[i] - lam[i - 1]
        now = PLANE(y / alpha[i - 1], levels[i - 1])
        if before is None:
            d = now
        else:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before
        y = noise[i] / noise[i - 1] * y - alpha[i] * math.expm1(-h) * d
        before = now
    sigmas = torch.tensor(levels, dtype=torch.float64)
    assert (end(dpmpp_2m, PLANE, x, sigmas) - y / alpha[-1]).abs().max() < 1e-11


@every_schedule
def test_dpmpp_2m_ends_at_zero_with_an_euler_step(schedule):
    """In time = -log sigma, as a sampler of variance-exploding states writes it."""
    sigmas = schedule.grid(15)
    x = start(2, 20.0)
    y, before, step_before = x, None, None
    for sigma, after in pairwise(sigmas.tolist()):
        now = PLANE(y, sigma)
        step = math.inf if after == 0 else math.log(sigma) - math.log(after)
        if before is None or after == 0:
            y = (after / sigma) * y - math.expm1(-step) * now
        else:
            share = step / (2 * step_before)
            y = (after / sigma) * y - math.expm1(-step) * ((1 + share) * now - share * before)
        before, step_before = now, step
    assert (end(dpmpp_2m, PLANE, x, sigmas) - y).abs().max() < 1e-12


@pytest.mark.parametrize("eta", [1.0, 0.4])
@every_schedule
def test_ancestral_is_ddim_with_its_eta(schedule, eta):
    """Song et al. 2021a, equations 12 and 16; with eta = 1 the posterior of Ho et al. 2020, equations 6 and 7."""
    sigmas = schedule.grid(20)
    x = start(2, 20.0)
    noise = SeededNoise(range(len(x)))
    y = alpha_bar(sigmas[0]).sqrt() * x
    for sigma, after in pairwise(sigmas):
        now, then = alpha_bar(sigma), alpha_bar(after)
        x0 = PLANE(y / now.sqrt(), sigma)
        eps = (y - now.sqrt() * x0) / (1 - now).sqrt()
        std = eta * ((1 - then) / (1 - now)).sqrt() * (1 - now / then).sqrt()
        mean = then.sqrt() * x0 + (1 - then - std**2).sqrt() * eps
        if eta == 1:
            alpha = now / then
            posterior = then.sqrt() * (1 - alpha) / (1 - now) * x0 + alpha.sqrt() * (1 - then) / (1 - now) * y
            torch.testing.assert_close(mean, posterior, rtol=0, atol=1e-10)
        y = mean + std * noise(y)
    got = end(partial(ancestral, eta=eta), PLANE, x, sigmas, noise=SeededNoise(range(len(x))))
    assert (got - y).abs().max() < 1e-10


def test_ancestral_without_noise_is_euler_and_draws_none():
    def silent(x):
        raise AssertionError("eta = 0 must not consume random numbers")

    x, sigmas = start(2, 80.0), Karras().grid(20)
    got = end(partial(ancestral, eta=0.0), PLANE, x, sigmas, noise=silent)
    torch.testing.assert_close(got, end(euler, PLANE, x, sigmas), rtol=0, atol=1e-13)


# The law of the samples


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_follow_the_law_of_the_data(name):
    if name == "consistency":
        pytest.skip("a posterior mean is no consistency model")
    n, sigma = 4000, 80.0
    x = (LINE.draw(n) + sigma * torch.randn(n, 1)).double()
    slow = name in ("euler", "ancestral", "predictor_corrector", "edm_stochastic")
    solver = partial(SOLVERS[name], scale=1.0) if name == "edm_stochastic" else SOLVERS[name]
    steps = 1 if name == "adaptive" else 250 if slow else 64
    got = end(solver, LINE, x, Karras().grid(steps)).numpy()[:, 0]
    assert kstest(got, LINE.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde", "sa_solver", "dpmpp_sde"])
def test_paths_converge_as_the_grid_is_refined(name):
    """The noise of a grid and of its halvings is one Brownian path, so the same seeds lead to the same end."""
    x, schedule = start(2, 20.0), LogLinear(sigma_min=0.05, sigma_max=20.0)
    ends = [
        end(SOLVERS[name], PLANE, x, positive(schedule, n), noise=SeededNoise(range(16))) for n in (16, 32, 64, 128)
    ]
    misses = [error(a, b) for a, b in pairwise(ends)]
    assert misses[0] > 1.2 * misses[1] > 1.44 * misses[2]
    other = end(SOLVERS[name], PLANE, x, positive(schedule, 128), noise=SeededNoise(range(16, 32)))
    assert error(other, ends[-1]) > 5 * misses[-1]


def test_brownian_noise_is_white_and_adds_up():
    x = torch.empty(20_000, 1, dtype=torch.float64)
    kept = [torch.tensor(k, dtype=torch.float64) for k in (0.9, 0.5, 0.7, 0.3, 0.8, 0.0)]
    fine = torch.cat(brownian(torch.randn_like, x, kept), 1)
    assert (fine.T @ fine / len(x) - torch.eye(6)).abs().max() < 5 / math.sqrt(len(x))
    noise = [SeededNoise(range(50)) for _ in range(2)]
    fine = brownian(noise[0], x[:50], kept)
    pairs = list(zip(kept[::2], kept[1::2], strict=True))
    coarse = brownian(noise[1], x[:50], [a * b for a, b in pairs])
    for (a, b), first, second, whole in zip(pairs, fine[::2], fine[1::2], coarse, strict=True):
        both = b * (1 - a**2).sqrt() * first + (1 - b**2).sqrt() * second
        torch.testing.assert_close(both, (1 - (a * b) ** 2).sqrt() * whole)


@pytest.mark.parametrize(
    ("stochastic", "still"),
    [
        (partial(dpmpp_2m_sde, eta=0.0), dpmpp_2m),
        (partial(dpmpp_3m_sde, eta=0.0), dpmpp_3m),
        (partial(dpmpp_sde, eta=0.0), dpmpp_2s),
        (partial(sa_solver, eta=0.0), unipc),
        (partial(edm_stochastic, churn=0.0), heun),
    ],
)
def test_without_noise_a_stochastic_solver_is_its_deterministic_one_and_draws_none(stochastic, still):
    def silent(x):
        raise AssertionError("must not consume random numbers")

    x, sigmas = start(2, 80.0), Karras().grid(12)
    torch.testing.assert_close(end(stochastic, PLANE, x, sigmas, noise=silent), end(still, PLANE, x, sigmas))


def test_adaptive_keeps_its_tolerance_and_examples_apart():
    x = start(2, 20.0)
    exact = PLANE.flow(x, 20.0, 0.0)
    sigmas = torch.tensor([20.0, 0.0], dtype=torch.float64)

    def denoise(x, sigma):
        return torch.cat([PLANE(one[None], level) for one, level in zip(x, sigma.flatten(), strict=True)])

    ends = [end(partial(adaptive, tolerance=t), denoise, x[:4], sigmas) for t in (1e-3, 1e-5)]
    misses = [error(got, exact[:4]) for got in ends]
    assert misses[0] < 0.01
    assert misses[1] < misses[0] / 10
    alone = end(adaptive, denoise, x[1:2], sigmas)
    torch.testing.assert_close(alone[0], ends[0][1], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"solver\.tolerance must be positive"):
        end(partial(adaptive, tolerance=0.0), denoise, x[:1], sigmas)


@pytest.mark.parametrize(
    ("solver", "most"), [(unipc, 3), (deis, 4), (adams_bashforth, 4), (angular, 3), (sa_solver, 3)]
)
def test_orders_that_do_not_exist_are_refused(solver, most):
    for order_ in (0, most + 1):
        with pytest.raises(ValueError, match=rf"solver\.order .* 1 to {most}, got {order_}"):
            solver(PLANE, start(2, 80.0), Karras().grid(3), order=order_)


def test_ancestral_has_the_moments_of_the_data():
    torch.manual_seed(0)
    n, mean, std = 20_000, 0.7, 0.4

    def denoise(x, sigma):
        return mean + std**2 / (std**2 + float(sigma) ** 2) * (x - mean)

    def variance(sigmas):
        """The sampler's own: with a linear denoiser it is a linear recursion."""
        now = std**2 + 20.0**2
        for sigma, after in pairwise(sigmas.tolist()):
            kept = (after / sigma) ** 2
            now = (kept + (1 - kept) * std**2 / (std**2 + sigma**2)) ** 2 * now + after**2 * (1 - kept)
        return now

    grid = Cosine(sigma_min=0.002, sigma_max=20.0).grid
    x = mean + math.hypot(std, 20.0) * torch.randn(n, 1, dtype=torch.float64)
    sigmas = grid(64)
    got = end(ancestral, denoise, x, sigmas)
    assert got.var().item() == pytest.approx(variance(sigmas), rel=5 * math.sqrt(2 / n))
    assert order(lambda steps: abs(variance(grid(steps)) - std**2), STEPS) == pytest.approx(1, abs=0.15)
    assert got.mean().item() == pytest.approx(mean, abs=5 * std / math.sqrt(n))


# Levels that differ between the parts of an example


def parts(rank, batch, per_example):
    """Levels (steps + 1, 1 or b, 1, T, ...), where some parts are 0 throughout; which ones are held; the levels."""
    generator = torch.Generator().manual_seed(rank)
    size = SIZES[rank]
    shape = (batch if per_example else 1, *([1] if rank > 2 else []), size[0 if rank == 2 else 1], *[1] * (rank - 3))
    held = torch.rand(shape, generator=generator) < 0.5
    held[..., 0], held[..., -1] = (True, False) if rank < 4 else (held[..., 0], held[..., -1])
    if rank >= 4:
        held[:, :, 0], held[:, :, -1] = True, False
    grid = Karras(sigma_max=10.0).grid(8)
    return torch.where(held, 0, grid.reshape(-1, *[1] * rank)), held, grid


@every
@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize(
    ("batch", "per_example", "dtype"),
    [(1, False, torch.float32), (1, True, torch.float64), (3, False, torch.float64), (3, True, torch.float32)],
)
def test_parts_at_zero_are_held_exactly_and_the_others_do_not_notice(solver, rank, batch, per_example, dtype):
    sigmas, held, grid = parts(rank, batch, per_example)
    x = torch.randn(batch, *SIZES[rank], dtype=dtype) * 3
    where = held.expand_as(x)
    run = partial(end, solver, two_bumps, x)
    mixed = run(sigmas, noise=SeededNoise(range(batch)))
    assert mixed.dtype == dtype
    assert torch.equal(mixed[where], x[where])
    assert mixed.isfinite().all()
    if solver is adaptive:  # an example's steps depend on the error of all its parts
        return
    free = run(grid, noise=SeededNoise(range(batch)))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(mixed[~where], free[~where], rtol=tolerance, atol=tolerance)


@every
def test_parts_at_zero_are_held_at_every_step_whatever_the_denoiser_says(solver):
    x = torch.randn(2, 3, 6)
    sigmas = Karras().grid(10).reshape(-1, 1, 1, 1) * torch.tensor([1.0, 0, 1, 0, 0, 1])
    for step in solver(lambda x, sigma: x - 5, x, sigmas):
        assert torch.equal(step.x[..., [1, 3, 4]], x[..., [1, 3, 4]])
        assert step.x.isfinite().all()


@pytest.mark.parametrize("solver", [s for s in SOLVERS.values() if s is not adaptive])
def test_each_part_walks_its_own_levels(solver):
    """Parts that arrive early, wait, or start late come out as if they were alone."""
    walks = [[4, 3, 2, 1, 0.5, 0.2, 0], [4, 1, 0, 0, 0, 0, 0], [4, 4, 2, 1, 0.4, 0.1, 0], [3, 2, 2, 2, 1, 0.7, 0.6]]
    walks = torch.tensor([*walks, [4, 2, 1, 0.5, 0.5, 0.1, 0]], dtype=torch.float64)
    x = 4 * torch.randn(3, 2, 5, dtype=torch.float64)
    together = end(solver, two_bumps, x, walks.T.reshape(7, 1, 1, 5), noise=SeededNoise(range(3)))
    for i, walk in enumerate(walks):
        alone = end(solver, two_bumps, x, walk, noise=SeededNoise(range(3)))
        torch.testing.assert_close(together[..., i], alone[..., i], rtol=1e-12, atol=1e-12)


@every
def test_each_example_walks_its_own_levels(solver):
    walks = torch.tensor([[4.0, 2, 1, 0.5, 0], [4, 1, 0, 0, 0], [1, 0.9, 0.8, 0.7, 0.6]], dtype=torch.float64)
    x = 4 * torch.randn(3, 2, 3, dtype=torch.float64)
    for sigmas in (walks.T, walks.T.reshape(5, 3, 1, 1)):
        together = end(solver, two_bumps, x, sigmas, noise=SeededNoise(range(3)))
        for i, walk in enumerate(walks):
            alone = end(solver, two_bumps, x, walk, noise=SeededNoise(range(3)))
            torch.testing.assert_close(together[i], alone[i], rtol=1e-12, atol=1e-12)


@every
def test_levels_that_do_not_fit_the_state_are_refused(solver):
    x = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="sigma of shape"):
        list(solver(two_bumps, x, torch.rand(5, 4)))


# Conduct


@every
@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_report_where_they_are(solver, rank, batch, dtype):
    x, sigmas = 10 * torch.randn(batch, *SIZES[rank], dtype=dtype), Karras(sigma_max=10.0).grid(6)
    steps = list(solver(two_bumps, x, sigmas))
    assert [step.index for step in steps] == list(range(6))
    assert torch.equal(torch.stack([step.sigma for step in steps]), sigmas[1:])
    for step in steps:
        assert step.x.shape == step.x0.shape == x.shape
        assert step.x.dtype == step.x0.dtype == dtype
    if solver in LANDS:
        torch.testing.assert_close(steps[-1].x, steps[-1].x0, rtol=1e-5, atol=1e-6)


@every
def test_float32_follows_float64(solver):
    x, sigmas = start(2, 80.0), Karras().grid(20)
    noise = [SeededNoise(range(16)) for _ in range(2)]
    single = end(solver, PLANE, x.float(), sigmas, noise=noise[0])
    torch.testing.assert_close(single.double(), end(solver, PLANE, x, sigmas, noise=noise[1]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("solver", [s for s in SOLVERS.values() if s is not adaptive])
def test_evaluations(solver, to_zero):
    calls = []

    def counting(x, sigma):
        calls.append(float(sigma))
        return PLANE(x, sigma)

    sigmas = Karras().grid(9) if to_zero else positive(Karras(), 9)
    list(solver(counting, start(2, 80.0), sigmas))
    if solver in [*TWICE.values(), *STOCHASTIC_TWICE.values()]:
        assert len(calls) == 18 - to_zero
    elif solver is rk4:
        assert len(calls) == 36 - to_zero
    else:
        assert calls == sigmas[:-1].tolist()


@every
@pytest.mark.parametrize("per_part", [False, True])
def test_inputs_are_not_changed(solver, per_part):
    x, sigmas = torch.randn(2, 5), Karras().grid(5)
    if per_part:
        sigmas = sigmas.reshape(-1, 1, 1) * torch.tensor([1.0, 0, 1, 1, 0])
    copies = x.clone(), sigmas.clone()
    states = [(step.x, step.x.clone()) for step in solver(two_bumps, x, sigmas)]
    assert torch.equal(x, copies[0])
    assert torch.equal(sigmas, copies[1])
    assert all(torch.equal(later, then) for later, then in states)


@every
def test_interleaved_runs_do_not_influence_each_other(solver):
    runs = [
        (start(2, 80.0, seed=1), Karras().grid(7)),
        (start(2, 80.0, seed=2), LogLinear().grid(7)),
    ]

    def begin(i):
        x, sigmas = runs[i]
        return solver(PLANE, x, sigmas, noise=SeededNoise(range(16 * i, 16 * i + 16)))

    alone = [[step.x for step in begin(i)] for i in range(2)]
    for first, second, *expected in zip(begin(0), begin(1), *alone, strict=True):
        assert torch.equal(first.x, expected[0])
        assert torch.equal(second.x, expected[1])


@pytest.mark.parametrize("solver", [*LANDS, angular, adams_bashforth])
def test_a_single_step_lands_on_the_estimate(solver):
    x = start(2, 80.0)
    (step,) = solver(PLANE, x, Karras().grid(1))
    torch.testing.assert_close(step.x, PLANE(x, 80.0), rtol=0, atol=1e-12)


@every
def test_states_of_a_far_level_stay_finite(solver):
    x = start(2, 1e3)
    got = end(solver, PLANE, x.float(), Flow().grid(10))
    assert got.isfinite().all()
    assert np.abs(got.numpy()).max() < 5


@pytest.mark.parametrize("solver", [s for s in SOLVERS.values() if s is not adaptive])
def test_nothing_is_read_back_from_the_device(solver):
    """A tensor on the meta device has no values, so that reading one raises."""
    x = torch.empty(2, 3, 4, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        x.sum().item()
    *_, last = solver(lambda x, sigma: x / 2, x, Karras().grid(5))
    assert last.x.shape == x.shape
