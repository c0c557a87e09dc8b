"""Deterministic samplers of other projects, each as ``run(denoise, x, grid, path) -> x at the end``.

They compute with the levels of the grid in float64 and call the denoiser at exactly these, which their own pipelines do
not always do (rounded or truncated times). A project that is not installed is left out.
"""

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from mmdiff.schedules import NoiseSchedule
from mmdiff.types import Denoise

Run = Callable[[Denoise, Tensor, Tensor, NoiseSchedule], Tensor]


def peers() -> dict[str, tuple[Run, tuple[str, ...]]]:
    """The samplers that are installed, with the grids that suit them."""
    found: dict[str, tuple[Run, tuple[str, ...]]] = {}
    every = ("path", "karras", "exponential")
    if installed("diffusers"):
        found |= {
            "UniPC-3": (partial(_diffusers, "UniPCMultistepScheduler", solver_order=3), every),
            "DPM++ 2M": (partial(_diffusers, "DPMSolverMultistepScheduler", solver_order=2), every),
            "DPM++ 3M": (partial(_diffusers, "DPMSolverMultistepScheduler", solver_order=3), every),
            "DPM++ 3S": (partial(_diffusers, "DPMSolverSinglestepScheduler", solver_order=3), every),
            "DEIS-3": (partial(_diffusers, "DEISMultistepScheduler", solver_order=3), every),
        }
    if installed("k_diffusion"):
        found["LMS"] = (partial(_k_diffusion, "sample_lms"), ("karras", "exponential"))
    if installed("azula"):
        for name, order in (("vAB", 2), ("vAB", 3), ("zEAB", 3), ("xEAB", 3), ("REAB", 2), ("REAB", 3)):
            found[f"{name}-{order}"] = (partial(_azula, name, order), ("path",))
    if installed("torchdiffeq"):
        found["rk4 in flow time"] = (partial(_torchdiffeq, "rk4", 4), ("flow",))
        found["heun3 in flow time"] = (partial(_torchdiffeq, "heun3", 3), ("flow",))
    return found


def installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def k_diffusion() -> ModuleType:
    """k_diffusion.sampling, without what its package imports beside it (CLIP, wandb, ...)."""
    if "k_diffusion" not in sys.modules:
        package = ModuleType("k_diffusion")
        package.__path__ = list(importlib.util.find_spec("k_diffusion").submodule_search_locations)
        sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.sampling")


def _diffusers(name: str, denoise: Denoise, x: Tensor, grid: Tensor, path: NoiseSchedule, **options: int) -> Tensor:
    import diffusers

    scheduler = getattr(diffusers, name)(prediction_type="sample", **options)
    scheduler.set_timesteps(len(grid) - 1)
    scheduler.sigmas = grid
    y = x / (1 + grid[0] ** 2).sqrt()
    for sigma, time in zip(grid, scheduler.timesteps, strict=False):
        y = scheduler.step(denoise((1 + sigma**2).sqrt() * y, sigma), time, y).prev_sample
    return y


def _k_diffusion(name: str, denoise: Denoise, x: Tensor, grid: Tensor, path: NoiseSchedule) -> Tensor:
    return getattr(k_diffusion(), name)(denoise, x, grid, disable=True)


def _azula(name: str, order: int, denoise: Denoise, x: Tensor, grid: Tensor, path: NoiseSchedule) -> Tensor:
    from azula import denoise as denoisers
    from azula import noise, sample

    class Schedule(noise.Schedule):
        """The path, to its sigma_min: the logarithm in which most of these walk does not reach 0."""

        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            sigma = path.quantile(t).clamp(min=1e-3)
            return (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5

    class Exact(denoisers.Denoiser):
        schedule = Schedule()

        def forward(self, x: Tensor, t: Tensor) -> denoisers.DiracPosterior:
            alpha, sigma = self.schedule(t)
            return denoisers.DiracPosterior(denoise(x / alpha, sigma / alpha))

    options = {"steps": len(grid) - 1, "order": order, "silent": True, "dtype": torch.float64}
    return getattr(sample, f"{name}Sampler")(Exact(), **options)(x / (1 + grid[0] ** 2).sqrt())


def _torchdiffeq(name: str, stages: int, denoise: Denoise, x: Tensor, grid: Tensor, path: NoiseSchedule) -> Tensor:
    """As flow_matching calls it, with equal steps of a flow's time; as many as the evaluations allow."""
    from torchdiffeq import odeint

    def velocity(t: Tensor, y: Tensor) -> Tensor:
        sigma = t / (1 - t)
        x0 = denoise(y / (1 - t), sigma)
        return (y / (1 - t) - x0) / sigma.clamp(min=1e-9) - x0

    start = grid[0] / (1 + grid[0])
    steps = (len(grid) - 1) // stages
    if not steps:
        return torch.full_like(x, torch.nan)
    times = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
    return odeint(velocity, x / (1 + grid[0]), times, method=name)[-1]
