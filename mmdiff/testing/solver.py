"""The contract of a solver."""

import torch
from torch import Generator, Tensor

from mmdiff.schedules import Karras
from mmdiff.testing.expect import expect
from mmdiff.types import Solver

RULES, PARTS = "mmdiff.types.Solver", "mmdiff.solvers"
MEAN, STD, STEPS = 0.7, 0.4, 64


def check_solver(solver: Solver) -> dict[str, float]:
    """Check that a solver keeps the contract of `mmdiff.types.Solver`, on Gaussian data whose denoiser is exact.

    Returns:
        How far the mean and the standard deviation of its samples are from those of the data.

    Raises:
        AssertionError: saying what was expected, what was seen and where the rule is documented.
    """
    sigmas = Karras().grid(STEPS)
    x = sigmas[0].item() * torch.randn(64, 64, generator=Generator().manual_seed(0))
    before = x.clone()
    steps = list(solver(_denoise, x, sigmas, _Noise()))
    expect(len(steps) == STEPS, f"{STEPS + 1} levels give {STEPS} steps", len(steps), RULES)
    expect([step.index for step in steps] == list(range(STEPS)), "steps are numbered from 0", "other numbers", RULES)
    reached = torch.stack([torch.as_tensor(step.sigma).double().max() for step in steps])
    expect(torch.allclose(reached, sigmas[1:]), "a step tells the level that it reached", "other levels", RULES)
    expect(torch.equal(x, before), "a solver leaves the state that it is given as it is", "a changed state", RULES)
    end = steps[-1].x
    same = end.shape == x.shape and end.dtype == x.dtype and bool(end.isfinite().all())
    expect(same, f"the last state is finite, {x.dtype} and {tuple(x.shape)}", (end.dtype, tuple(end.shape)), RULES)
    *_, again = solver(_denoise, x, sigmas, _Noise())
    expect(torch.equal(end, again.x), "the same noise gives the same samples in a second call", "others", PARTS)
    mean, std = abs(end.mean().item() - MEAN), abs(end.std().item() - STD)
    near = max(mean, std) < 0.05
    expect(near, f"samples of N({MEAN}, {STD}^2) within 0.05", f"N({end.mean():.3g}, {end.std():.3g}^2)", RULES)
    kept = torch.arange(64) < 16
    given = torch.where(kept, torch.full_like(x, MEAN), x)
    *_, last = solver(_denoise, given, sigmas[:, None, None] * ~kept, _Noise())
    stays = torch.equal(last.x[:, kept], given[:, kept])
    expect(stays, "parts whose level is 0 come out bitwise as they went in", "other values", PARTS)
    moved = bool(last.x.isfinite().all()) and abs(last.x[:, ~kept].std().item() - STD) < 0.05
    expect(moved, "parts whose level is not 0 are solved beside them", f"std {last.x[:, ~kept].std():.3g}", PARTS)
    return {"mean": mean, "std": std}


def _denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """The posterior mean for data N(MEAN, STD^2)."""
    variance = STD**2 + torch.as_tensor(sigma).to(x) ** 2
    return MEAN + STD**2 / variance * (x - MEAN)


class _Noise:
    """A stream of noise of its own for each call."""

    def __init__(self) -> None:
        self.generator = Generator().manual_seed(1)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator).to(x)
