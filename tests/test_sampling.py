from functools import partial

import pytest
import torch
from scipy.stats import kstest

from closed_forms import SIZES, order, two_bumps
from mmdiff.conditioning import ClassEmbedder, Conditioner
from mmdiff.denoiser import Denoiser
from mmdiff.guidance import classifier_free, conditional
from mmdiff.nn.unet import UNet
from mmdiff.sampling import Sampler, SeededNoise, sample, staggered
from mmdiff.scaling import V
from mmdiff.schedules import Flow, Karras
from mmdiff.solvers import adams_bashforth, ancestral, angular, deis, dpmpp_2m, dpmpp_3m, euler, heun, rk4, unipc

SOLVERS = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "ancestral": ancestral}
every = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
SEEDS = [3, 14, 15, 92]
LABELS = ["a", "b", None, "b"]


@pytest.fixture(scope="module")
def denoiser():
    """A small U-Net with attention whose weights are all random."""
    torch.manual_seed(0)
    conditioner = Conditioner(8, {"kind": ClassEmbedder(8, ["a", "b"])})
    network = UNet((2, 8), 8, width=8, multipliers=(1, 2), blocks=1, attention=(1,))
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return Denoiser(network, V(), conditioner).eval()


def sampler(solver, guidance=conditional, steps=4):
    return Sampler(schedule=Karras(), steps=steps, solver=solver, guidance=guidance)


# Noise


@pytest.mark.parametrize("rank", SIZES)
def test_noise_belongs_to_the_seed(rank):
    x = torch.empty(4, *SIZES[rank])
    noise = SeededNoise(SEEDS)
    draws = [noise(x) for _ in range(3)]
    assert not torch.equal(draws[0], draws[1])
    order = [2, 0, 3, 1]
    other = SeededNoise([SEEDS[i] for i in order])
    alone = SeededNoise(SEEDS[1:2])
    companions = SeededNoise([7, 14, 8])
    for draw in draws:
        assert torch.equal(other(x), draw[order])
        assert torch.equal(alone(x[:1]), draw[1:2])
        assert torch.equal(companions(x[:3])[1], draw[1])


def test_noise_is_unit_gaussian_and_differs_between_seeds():
    noise = SeededNoise(range(50))(torch.empty(50, 400))
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(noise) - torch.eye(50)
    assert correlation.abs().max() < 6 / 400**0.5


def test_noise_does_not_touch_the_global_generator():
    state = torch.get_rng_state()
    SeededNoise(SEEDS)(torch.empty(4, 3))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_noise_has_the_dtype_of_the_state(dtype):
    noise = SeededNoise(SEEDS)(torch.empty(4, 3, dtype=dtype))
    assert noise.dtype == dtype
    assert torch.equal(noise, SeededNoise(SEEDS)(torch.empty(4, 3)).to(dtype))


def test_noise_needs_one_seed_per_example():
    with pytest.raises(ValueError, match=r"4 seeds .* 3 examples"):
        SeededNoise(SEEDS)(torch.empty(3, 5))


# The same sample whatever the batch


@every
@pytest.mark.parametrize("guidance", [conditional, partial(classifier_free, scale=2.0)], ids=["plain", "guided"])
def test_a_sample_depends_on_its_seed_alone(denoiser, solver, guidance):
    draw = partial(sampler(solver, guidance), denoiser, (2, 8))
    together = draw({"kind": LABELS}, SEEDS)
    assert together.std() > 0.1
    assert torch.equal(draw({"kind": LABELS}, SEEDS), together)
    order = [2, 0, 3, 1]
    permuted = draw({"kind": [LABELS[i] for i in order]}, [SEEDS[i] for i in order])
    # Not bitwise: a matrix product may treat the last rows of a batch by another kernel.
    torch.testing.assert_close(permuted, together[order], rtol=1e-4, atol=1e-4)
    companions = draw({"kind": ["b", "b", None, "a"]}, [5, 14, 6, 7])
    assert torch.equal(companions[1], together[1])
    for i in range(4):
        alone = draw({"kind": LABELS[i : i + 1]}, SEEDS[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)


@every
def test_the_global_generator_has_no_say(denoiser, solver):
    draw = partial(sampler(solver), denoiser, (2, 8), {"kind": LABELS}, SEEDS)
    torch.manual_seed(1)
    first = draw()
    torch.manual_seed(2)
    assert torch.equal(draw(), first)


# The loop


@every
@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_sample_is_the_solvers_last_state_from_scaled_noise(solver, rank, batch):
    shape, sigmas = (batch, *SIZES[rank]), Karras().grid(5)
    seen = []
    got = sample(two_bumps, shape, sigmas, solver, SeededNoise(range(batch)), seen.append)
    noise = SeededNoise(range(batch))
    steps = list(solver(two_bumps, 80.0 * noise(torch.empty(shape)), sigmas, noise=noise))
    assert torch.equal(got, steps[-1].x)
    assert [step.index for step in seen] == list(range(5))
    assert all(torch.equal(a.x, b.x) for a, b in zip(seen, steps, strict=True))


@every
@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_known_region_comes_out_as_it_went_in(solver, rank, batch):
    given = torch.randn(batch, *SIZES[rank])
    copy = given.clone()
    known = torch.arange(SIZES[rank][-1]) % 2 == 0
    sigmas = Karras().grid(6).reshape(-1, *[1] * rank) * ~known
    got = sample(two_bumps, given.shape, sigmas, solver, SeededNoise(range(batch)), given=given)
    assert torch.equal(given, copy)
    assert torch.equal(got[..., known], given[..., known])
    assert got.isfinite().all()
    assert not torch.equal(got[..., ~known], given[..., ~known])


@every
def test_a_known_region_with_a_network(denoiser, solver):
    given = torch.randn(2, 2, 8)
    sigmas = Flow().grid(4).reshape(-1, 1, 1, 1) * (torch.arange(8) >= 3)
    bound = partial(denoiser, context=denoiser.conditioner.null(2))
    got = sample(bound, given.shape, sigmas, solver, SeededNoise([1, 2]), given=given)
    assert torch.equal(got[..., :3], given[..., :3])
    assert got.isfinite().all()


@every
@pytest.mark.parametrize("guidance", [conditional, partial(classifier_free, scale=2.0)], ids=["plain", "guided"])
def test_sampler_completes_what_is_given(denoiser, solver, guidance):
    given = torch.randn(2, 2, 8)
    known = torch.stack([torch.arange(8) < 3, torch.arange(8) % 2 == 0])[:, None]
    draw = partial(sampler(solver, guidance), denoiser, (2, 8), {"kind": ["a", "b"]}, [1, 2])
    got = draw(given=given, known=known)
    everywhere = known.expand_as(given)
    assert torch.equal(got[everywhere], given[everywhere])
    assert not torch.isclose(got[~everywhere], given[~everywhere]).any()
    # what is not known has no say
    other = torch.where(known, given, 100.0)
    assert torch.equal(draw(given=other, known=known), got)
    # what is known has
    assert not torch.isclose(draw(given=given + 1, known=known)[~everywhere], got[~everywhere]).all()


def test_data_noised_a_little_stay_near():
    given = torch.tensor([[1.0, -1.0, 1.0]]).expand(4, 3)
    got = sample(two_bumps, (4, 3), Karras(sigma_max=0.05).grid(5), heun, SeededNoise(SEEDS), given=given)
    assert 0 < (got - given).abs().max() < 0.25


def test_given_data_keep_their_precision():
    given = torch.randn(4, 3, dtype=torch.float64)
    got = sample(two_bumps, (4, 3), Karras().grid(3), heun, SeededNoise(SEEDS), given=given)
    assert got.dtype == torch.float64


def test_no_gradient_is_kept(denoiser):
    got = sampler(euler)(denoiser, (2, 8), {}, SEEDS)
    assert not got.requires_grad


@pytest.mark.parametrize("levels", [torch.zeros(0), torch.ones(1)])
def test_a_grid_needs_a_step(levels):
    with pytest.raises(ValueError, match=f"at least two levels, got {len(levels)}"):
        sample(two_bumps, (4, 3), levels, euler, SeededNoise(SEEDS))


def test_given_data_have_the_samples_shape():
    with pytest.raises(ValueError, match=r"\(4, 2\).*\(4, 3\)"):
        sample(two_bumps, (4, 3), Karras().grid(2), euler, SeededNoise(SEEDS), given=torch.zeros(4, 2))


def test_levels_have_to_fit_the_samples():
    with pytest.raises(ValueError, match="sigma of shape"):
        sample(two_bumps, (4, 3), torch.rand(3, 1, 2), euler, SeededNoise(SEEDS))


# One moment after another


def test_parts_start_one_after_another():
    sigmas = Karras().grid(2)
    high, low, zero = sigmas.tolist()
    expected = [[high, high, high], [low, high, high], [zero, low, high], [zero, zero, low], [zero, zero, zero]]
    assert staggered(sigmas, parts=3, lag=1).tolist() == expected
    assert torch.equal(staggered(sigmas, parts=3, lag=0), sigmas[:, None].expand(3, 3))
    assert staggered(sigmas, parts=3, lag=2)[:, 1].tolist() == [high, high, high, low, zero, zero, zero]


@pytest.mark.parametrize("solver", [euler, heun, rk4, dpmpp_2m, dpmpp_3m, unipc, deis, adams_bashforth, angular])
@pytest.mark.parametrize("lag", [1, 4, 6])
def test_waiting_and_being_done_change_nothing(solver, lag):
    """The elements are independent, so each must end where it ends when all are drawn at once."""
    sigmas = Karras().grid(6).float()
    at_once = sample(two_bumps, (3, 2, 5), sigmas, solver, SeededNoise(range(3)))
    rolled = sample(two_bumps, (3, 2, 5), staggered(sigmas, 5, lag)[:, None, None], solver, SeededNoise(range(3)))
    torch.testing.assert_close(rolled, at_once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("solver", "expected"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
@pytest.mark.parametrize("share", [0, 1 / 4, 1])
def test_the_law_does_not_depend_on_the_lag(solver, expected, share):
    """Of a Gaussian sequence with correlated parts; its sampler is linear, so unit vectors tell the covariance."""
    place = torch.arange(4, dtype=torch.float64)
    covariance = 0.8 ** (place - place[:, None]).abs()
    basis = torch.eye(4, dtype=torch.float64)[:, None]

    def denoise(x, sigma):
        return x @ torch.linalg.solve(covariance + torch.diag(sigma[0, 0] ** 2), covariance)

    def error(steps):
        sigmas = staggered(Karras(sigma_max=1000).grid(steps), 4, round(share * steps))[:, None, None]
        ends = sample(denoise, basis.shape, sigmas, solver, lambda _: basis, given=torch.zeros_like(basis))[:, 0]
        return (ends.T @ ends - covariance).abs().max().item()

    assert order(error, [80, 160, 320]) == pytest.approx(expected, abs=0.15)


def test_sampler_draws_moments_one_after_another(denoiser):
    draw = partial(Sampler(schedule=Karras(), steps=4, solver=euler, guidance=conditional, lag=2), denoiser, (2, 8))
    seen = []
    got = draw({}, SEEDS, seen.append, time=-1)
    sigmas = staggered(Karras().grid(4), 8, 2)[:, None, None]
    bound = partial(denoiser, context=denoiser.conditioner.null(4))
    assert torch.equal(got, sample(bound, got.shape, sigmas, euler, SeededNoise(SEEDS)))
    assert len(seen) == 4 + 7 * 2
    with pytest.raises(ValueError, match="lag is between moments"):
        draw({}, SEEDS)


def test_known_moments_take_no_steps(denoiser):
    draw = partial(Sampler(schedule=Karras(), steps=4, solver=euler, guidance=conditional, lag=4), denoiser, (2, 8))
    seen, given, known = [], torch.randn(4, 2, 8), (torch.arange(8) < 6).expand(4, 1, 8)
    got = draw({}, SEEDS, seen.append, given=given, known=known, time=-1)
    assert torch.equal(got[..., :6], given[..., :6])
    assert len(seen) == 4 + 4


def test_lag_is_a_number_of_steps():
    with pytest.raises(ValueError, match="lag must be a whole number of at least 0, got -1"):
        Sampler(schedule=Karras(), steps=4, solver=euler, guidance=conditional, lag=-1)


# The choices


@every
def test_sampler_composes_schedule_solver_guidance_and_seeds(denoiser, solver):
    guidance = partial(classifier_free, scale=3.0)
    seen = []
    got = sampler(solver, guidance)(denoiser, (2, 8), {"kind": LABELS}, SEEDS, seen.append)
    with torch.no_grad():
        context, null = denoiser.conditioner({"kind": LABELS}, 4), denoiser.conditioner.null(4)
        guided = guidance(denoiser, context, null)
    assert torch.equal(got, sample(guided, (4, 2, 8), Karras().grid(4), solver, SeededNoise(SEEDS)))
    assert len(seen) == 4


def test_sampler_names_an_unknown_condition(denoiser):
    with pytest.raises(ValueError, match=r"cond\.color"):
        sampler(euler)(denoiser, (2, 8), {"color": ["red"] * 4}, SEEDS)
