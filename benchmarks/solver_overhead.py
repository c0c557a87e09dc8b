"""CPU time of a step beside the denoiser, ours beside k-diffusion and diffusers, whose denoiser costs nothing.

    python benchmarks/solver_overhead.py

Needs `pip install mmdiff[bench]`. Runs take turns; the median of all counts. One thread.
"""

import logging
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mmdiff.schedules import Angular, Karras
from mmdiff.solvers import angular, dpmpp_2m, euler, unipc
from mmdiff.types import Solver
from peers import installed, k_diffusion

SHAPES = ((1, 4, 64, 64), (1, 128, 256))
STEPS, TURNS = 20, 40


def ours(solver: Solver, sigmas: Tensor, x: Tensor) -> None:
    for _ in solver(lambda x, sigma: x, x, sigmas, torch.randn_like):
        pass


def k_dpmpp_2m(x: Tensor) -> None:
    sampling = k_diffusion()
    sampling.sample_dpmpp_2m(lambda x, sigma: x, x, sampling.get_sigmas_karras(STEPS, 0.002, 80.0), disable=True)


def diffusers_unipc(x: Tensor) -> None:
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(solver_order=3, prediction_type="sample")
    scheduler.set_timesteps(STEPS)
    for step in scheduler.timesteps:
        x = scheduler.step(x, step, x).prev_sample


def main() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    runs: dict[str, Callable[[Tensor], None]] = {
        "`angular`, the default": partial(ours, angular, Angular(sigma_min=0.0).grid(STEPS)),
        "`dpmpp_2m`": partial(ours, dpmpp_2m, Karras().grid(STEPS)),
        "`unipc`": partial(ours, unipc, Karras().grid(STEPS)),
        "`euler`": partial(ours, euler, Karras().grid(STEPS)),
    }
    if installed("k_diffusion"):
        runs["k-diffusion `sample_dpmpp_2m`"] = k_dpmpp_2m
    if installed("diffusers"):
        runs["diffusers UniPC"] = diffusers_unipc
    print("| microseconds per step | " + " | ".join("x".join(map(str, shape)) for shape in SHAPES) + " |")
    print("|---|" + "---|" * len(SHAPES))
    columns = [measure(runs, torch.randn(shape)) for shape in SHAPES]
    for name in runs:
        print(f"| {name} | " + " | ".join(f"{column[name]:.0f}" for column in columns) + " |")
    for name in list(runs)[4:]:
        shares = [column["`angular`, the default"] / column[name] for column in columns]
        print(f"| default / {name} | " + " | ".join(f"**{share:.2f}**" for share in shares) + " |")


@torch.no_grad()
def measure(runs: dict[str, Callable[[Tensor], None]], x: Tensor) -> dict[str, float]:
    """Microseconds of CPU time per step."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(TURNS):
        for name, run in runs.items():
            start = time.process_time()
            run(x)
            taken[name].append((time.process_time() - start) / STEPS * 1e6)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


if __name__ == "__main__":
    main()
