"""Diffusers beside us, state by state, on its own levels; where it is wrong, how."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from closed_forms import PLANE
from mmdiff.solvers import ancestral, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, euler, heun, unipc

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of theirs

STEPS = 9
GRIDS = {
    "linspace": {},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def vp(sigma):
    """What a state at x0 + sigma eps is multiplied by on a variance-preserving path."""
    return (1 + sigma**2) ** -0.5


def flow(sigma):
    return 1 / (1 + sigma)


def exploding(sigma):
    return torch.ones_like(sigma)


def scheduler(name, **options):
    made = getattr(diffusers, name)(**options)
    made.set_timesteps(STEPS)
    return made


def theirs(made, sigmas, scale, x, *, denoise=PLANE, output=lambda x0, x, sigma: x0, **options):
    """Their states, divided by ``scale``; ``output`` is what their network would predict."""
    states, y = [], (scale(sigmas[0]) * x).float()
    for i, t in enumerate(made.timesteps):
        x = y.double() / scale(sigmas[i])
        if scale is exploding:
            made.scale_model_input(y, t)
        given = {name: value[i] for name, value in options.items()}
        y = made.step(output(denoise(x, sigmas[i]), x, sigmas[i]).float(), t, y, **given).prev_sample
        states.append(y.double() / scale(sigmas[i + 1]))
    return states


def check_same(theirs, ours, sigmas, scale, atol=1e-5):
    assert len(theirs) == len(ours)
    for one, other, sigma in zip(theirs, ours, sigmas[1:], strict=True):
        torch.testing.assert_close(scale(sigma) * one, scale(sigma) * other.x, rtol=0, atol=atol)


def start(sigma, n=16):
    return sigma * torch.randn(n, 2, dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim(eta):
    made = scheduler("DDIMScheduler", prediction_type="sample", clip_sample=False)
    made.alphas_cumprod = made.alphas_cumprod.double()
    kept = torch.cat([made.alphas_cumprod[made.timesteps], torch.ones(1)])
    sigmas = ((1 - kept) / kept).sqrt()
    x, noise = start(sigmas[0]), torch.randn(STEPS, 16, 2)
    other = theirs(made, sigmas, vp, x, variance_noise=noise, eta=[eta] * STEPS)
    drawn = iter(noise.double())
    ours = euler(PLANE, x, sigmas) if eta == 0 else ancestral(PLANE, x, sigmas, lambda _: next(drawn), eta=eta)
    check_same(other, list(ours), sigmas, vp)


@every_grid
def test_euler(grid):
    made = scheduler("EulerDiscreteScheduler", prediction_type="sample", **grid)
    sigmas = made.sigmas.double()
    x = start(sigmas[0])
    check_same(theirs(made, sigmas, exploding, x), list(euler(PLANE, x, sigmas)), sigmas, vp)


def test_euler_ancestral():
    made = scheduler("EulerAncestralDiscreteScheduler")
    sigmas = made.sigmas.double()
    x = start(sigmas[0])
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    other = theirs(
        made,
        sigmas,
        exploding,
        x,
        output=lambda x0, x, sigma: (x - x0) / sigma,
        generator=[generators[0]] * STEPS,
    )
    ours = ancestral(PLANE, x, sigmas, lambda x: torch.randn(x.shape, generator=generators[1]).to(x))
    check_same(other, list(ours), sigmas, vp)


@every_grid
def test_heun(grid):
    made = scheduler("HeunDiscreteScheduler", prediction_type="sample", **grid)
    twice = made.sigmas.double()  # each inner level stands there for the end of a step and for the start of the next
    sigmas = torch.cat([twice[:1], twice[1::2]])
    x = start(sigmas[0])
    other = theirs(made, twice, exploding, x)
    check_same([*other[1::2], other[-1]], list(heun(PLANE, x, sigmas)), sigmas, vp)


@every_grid
def test_dpmpp_2m(grid):
    made = scheduler("DPMSolverMultistepScheduler", prediction_type="sample", **grid)
    sigmas = made.sigmas.double()
    x = start(sigmas[0])
    check_same(theirs(made, sigmas, vp, x), list(dpmpp_2m(PLANE, x, sigmas)), sigmas, vp)


def test_dpmpp_2m_sde():
    made = scheduler("DPMSolverMultistepScheduler", prediction_type="sample", algorithm_type="sde-dpmsolver++")
    sigmas = made.sigmas.double()
    x, noise = start(sigmas[0]), torch.randn(STEPS, 16, 2)
    other = theirs(made, sigmas, vp, x, variance_noise=noise)
    drawn = iter(noise.double())  # an odd number of steps is no halving of another grid: its noise is drawn in order
    check_same(other, list(dpmpp_2m_sde(PLANE, x, sigmas, lambda _: next(drawn))), sigmas, vp)


def test_dpmpp_3m_lacks_a_factor_there():
    """An x0 that is quadratic in the log-SNR is integrated exactly by three values of it; there by half its curve."""
    a, b, c = 0.3, -0.2, 0.1

    def denoise(x, sigma):
        log = -torch.as_tensor(sigma).log()
        return (a + b * log + c * log**2).expand(x.shape).to(x)

    def exact(sigma, target):  # of what a step adds to (target / sigma) x
        low, high = -np.log(sigma), -np.log(target)
        return quad(lambda u: np.exp(u - high) * (a + b * u + c * u**2), low, high, epsabs=1e-13)[0]

    made = scheduler(
        "DPMSolverMultistepScheduler",
        solver_order=3,
        prediction_type="sample",
        final_sigmas_type="sigma_min",
        lower_order_final=False,
    )
    sigmas = made.sigmas.double()
    x = start(sigmas[0], n=1)
    ours = [step.x for step in dpmpp_3m(denoise, x, sigmas)]
    other = theirs(made, sigmas, vp, x, denoise=denoise)
    for i in range(3, STEPS):
        sigma, target = sigmas[i].item(), sigmas[i + 1].item()
        step = np.log(sigma / target)
        missing = c * ((1 - np.exp(-step) - step) + step**2 / 2)
        for states, lacks in ((ours, 0.0), (other, missing)):
            added = states[i] - target / sigma * states[i - 1]
            torch.testing.assert_close(added, torch.full_like(x, exact(sigma, target) - lacks), rtol=0, atol=1e-5)
        assert missing > 1e-3


def test_unipc_after_its_first_steps():
    """Those take 1/2 for the exact weights of order 2 there, which shows in nothing while x0 does not change."""
    made = scheduler(
        "UniPCMultistepScheduler",
        solver_order=3,
        prediction_type="sample",
        final_sigmas_type="sigma_min",
        lower_order_final=False,
    )
    sigmas = made.sigmas.double()

    def denoise(x, sigma):
        return 0.5 + (sigma < sigmas[2] - 1e-3) * PLANE(x, sigma)

    x = start(sigmas[0])
    other = theirs(made, sigmas, vp, x, denoise=denoise)
    check_same(other, list(unipc(denoise, x, sigmas, order=3)), sigmas, vp)
    whole = theirs(scheduler("UniPCMultistepScheduler", **made.config), sigmas, vp, x)
    ours = [step.x for step in unipc(PLANE, x, sigmas, order=3)]
    apart = [(vp(sigma) * (a - b)).abs().max() for sigma, a, b in zip(sigmas[1:], whole, ours, strict=True)]
    assert max(apart) > 2e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift):
    made = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    made.set_timesteps(sigmas=np.linspace(0.999, 0.05, STEPS))
    time = made.sigmas.double()
    sigmas = time / (1 - time)
    x = start(sigmas[0])
    other = theirs(made, sigmas, flow, x, output=lambda x0, x, sigma: (x - x0) / sigma - x0)
    check_same(other, list(euler(PLANE, x, sigmas)), sigmas, flow)
