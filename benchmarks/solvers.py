"""End-point errors of deterministic solvers by number of evaluations, ours beside those of other projects.

The data are mixtures of eight Gaussians with full covariances, for which the posterior mean and the end points of the
probability flow are known (`tests/closed_forms.py`). The error is the median over samples of the root mean square
error of an end point, in units of the data's standard deviation. A solver of two evaluations per step takes half as
many steps.

    PYTHONPATH=tests python benchmarks/solvers.py 64        # d = 64: the tables, and solvers.png

Needs `pip install mmdiff[bench]`.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from closed_forms import Correlated
from mmdiff.schedules import Angular, Cosine, Flow, Karras, LinearVP, LogLinear, NoiseSchedule
from mmdiff.solvers import adams_bashforth, angular, deis, dpm2, dpmpp_2m, dpmpp_2s, dpmpp_3m, euler, heun, rk4, unipc
from mmdiff.types import Denoise, Solver
from peers import peers

EVALUATIONS = (5, 8, 10, 15, 20, 50)
MIXTURES, SAMPLES = (7001, 7002, 7003), 16  # none of them had a part in choosing the default
PATHS: dict[str, NoiseSchedule] = {
    "VP linear": LinearVP(sigma_min=0.01, sigma_max=157.0),
    "VP cosine": Cosine(sigma_min=0.01, sigma_max=157.0),
    "EDM": Karras(sigma_min=0.002, sigma_max=80.0),
    "flow": Flow(sigma_min=0.002, sigma_max=1e3),
}
OURS: dict[str, tuple[Solver, int]] = {
    "euler": (euler, 1),
    "heun": (heun, 2),
    "dpm2": (dpm2, 2),
    "dpmpp_2s": (dpmpp_2s, 2),
    "rk4": (rk4, 4),
    "dpmpp_2m": (dpmpp_2m, 1),
    "dpmpp_3m": (dpmpp_3m, 1),
    "unipc order=2": (partial(unipc, order=2), 1),
    "unipc": (unipc, 1),
    "deis": (deis, 1),
    "adams_bashforth": (adams_bashforth, 1),
}
Errors = dict[str, list[float]]


def main(size: int) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    drawn: dict[str, tuple[Errors, Errors]] = {}
    for name, path in PATHS.items():
        ours, others = errors(size, path, name)
        drawn[name] = ours, others
        best = [min(e for e in column if e == e) for column in zip(*others.values(), strict=True)]
        which = [min(others, key=lambda k, i=i: others[k][i]) for i in range(len(EVALUATIONS))]
        print(f"\n{name}, d = {size}\n")
        print("| solver | " + " | ".join(map(str, EVALUATIONS)) + " |")
        print("|---|" + "---|" * len(EVALUATIONS))
        for solver, row in ours.items():
            print(f"| `{solver}` | " + " | ".join(f"{e:.2g}" for e in row) + " |")
        print("| best peer | " + " | ".join(f"{e:.2g} {k}" for e, k in zip(best, which, strict=True)) + " |")
        shares = [e / b for e, b in zip(ours["angular, its grid"], best, strict=True)]
        print("| default / best peer | " + " | ".join(f"**{share:.2f}**" for share in shares) + " |", flush=True)
    if size > 2:
        draw(drawn, Path(__file__).with_name("solvers.png"))


def errors(size: int, path: NoiseSchedule, name: str) -> tuple[Errors, Errors]:
    """By solver, ours and others; one error for each number of evaluations."""
    problems = []
    for seed in MIXTURES:
        mixture = Correlated(size, seed=seed)
        eps = torch.randn(SAMPLES, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x = (1 + path.sigma_max**2) ** 0.5 * eps
        problems.append((mixture, x, mixture.flow(x, path.sigma_max)))
    low, high = path.sigma_min, path.sigma_max
    grids = {
        "path": path,
        "karras": Karras(sigma_min=low, sigma_max=high),
        "exponential": LogLinear(sigma_min=low, sigma_max=high),
        "flow": Flow(sigma_max=high),
    }

    def row(run: Callable[[Denoise, Tensor, int], Tensor]) -> list[float]:
        return [
            torch.cat([(run(d, x, n) - end).square().mean(1).sqrt() for d, x, end in problems]).median().item()
            for n in EVALUATIONS
        ]

    def walk(solver: Solver, stages: int, grid: NoiseSchedule, denoise: Denoise, x: Tensor, n: int) -> Tensor:
        *_, last = solver(denoise, x, grid.grid(n // stages), torch.randn_like)
        return last.x

    ours = {"angular, its grid": row(partial(walk, angular, 1, Angular(sigma_min=0.0, sigma_max=high)))}
    ours |= {solver: row(partial(walk, run, stages, path)) for solver, (run, stages) in OURS.items()}
    others = {}
    for peer, (run, suits) in peers().items():
        for grid in suits:
            if grid != "flow" or name == "flow":
                label = peer if grid in ("path", "flow") else f"{peer}/{grid}"
                others[label] = row(lambda d, x, n, run=run, grid=grid: run(d, x, grids[grid].grid(n), path))
    return ours, others


def draw(drawn: dict[str, tuple[Errors, Errors]], file: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(drawn), figsize=(14, 3.8), sharey=True, layout="constrained")
    for axis, (name, (ours, others)) in zip(axes, drawn.items(), strict=True):
        for row in others.values():
            axis.loglog(EVALUATIONS, row, color="0.75", linewidth=0.8)
        axis.loglog(EVALUATIONS, ours["dpmpp_2m"], color="tab:orange", label="dpmpp_2m on the path's grid")
        axis.loglog(
            EVALUATIONS, ours["angular, its grid"], color="tab:blue", linewidth=2.5, label="angular, the default"
        )
        axis.set(title=name, xlabel="evaluations", ylim=(1e-5, 1))
        axis.set_xticks(EVALUATIONS, map(str, EVALUATIONS), minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("error / standard deviation")
    axes[0].plot([], [], color="0.75", label="other projects")
    axes[0].legend(fontsize="small")
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
