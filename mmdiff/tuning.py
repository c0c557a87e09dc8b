"""Fitting a multistep solver with few steps to one model, so that it ends where many steps lead.

The levels and the weights of a linear multistep method (`mmdiff.solvers.tuned`) start from those of an untuned solver.
Gauss-Newton steps with damping (Levenberg 1944, Marquardt 1963) lower the error of its end points on stored
trajectories. Derivatives are finite differences: a fit calls the denoiser and asks nothing else of it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmdiff.denoiser import Denoiser
from mmdiff.sampling import Sampler, SeededNoise
from mmdiff.schedules import Angular, NoiseSchedule
from mmdiff.solvers import adams_bashforth, angular, dpmpp_2m, unipc
from mmdiff.solvers.tuned import Coefficients, state, velocity
from mmdiff.types import Denoise, Solver

UNTUNED: dict[str, Solver] = {
    "angular": angular,
    **{f"angular order={order}": partial(angular, order=order) for order in (1, 2, 3)},
    **{f"adams_bashforth order={order}": partial(adams_bashforth, order=order) for order in (2, 3)},
    "unipc order=2": partial(unipc, order=2),
    "dpmpp_2m": dpmpp_2m,
}


MOST_DAMPING = 1e6  # beyond which no step is short enough to help


class Paths(NamedTuple):
    """Trajectories of a batch, of which the ends count: ``x`` at the largest level, ``end`` at sigma = 0."""

    denoise: Denoise
    x: Float[Tensor, "b *d"]
    end: Float[Tensor, "b *d"]


@torch.no_grad()
def follow(denoise: Denoise, x: Float[Tensor, "b *d"], sigma: float, steps: int) -> Paths:
    """Trajectories from level ``sigma`` by a solver of high order with many steps."""
    *_, last = angular(denoise, x, Angular(sigma_min=0.0, sigma_max=sigma).grid(steps), order=3)
    return Paths(denoise, x, last.x)


def draw(
    sampler: Sampler,
    denoiser: Denoiser,
    shape: Sequence[int],
    conds: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    batch_size: int,
    steps: int,
) -> list[Paths]:
    """Trajectories of a model in batches, one per entry of ``conds``; the i-th has the noise of ``seed + i``."""
    sigma = sampler.schedule.grid(1)[0].item()
    names = sorted({name for cond in conds for name in cond})
    paths = []
    with tqdm(total=len(conds), unit="trajectory", dynamic_ncols=True) as bar:
        for first in range(0, len(conds), batch_size):
            part = conds[first : first + batch_size]
            denoise = sampler.bind(denoiser, {name: [cond.get(name) for cond in part] for name in names}, len(part))
            noise = SeededNoise(range(seed + first, seed + first + len(part)))
            x = sigma * noise(torch.zeros(len(part), *shape, device=next(denoiser.parameters()).device))
            paths.append(follow(denoise, x, sigma, steps))
            bar.update(len(part))
    return paths


def coefficients(solver: Solver, sigmas: Float[Tensor, "n"]) -> Coefficients:
    """Of an untuned multistep solver.

    Its states are linear in the first one and the velocities; a denoiser that makes each velocity a unit vector
    shows the weights.
    """
    angles = sigmas.double().atan()
    units = torch.eye(len(sigmas), dtype=torch.float64)
    rows: list[Tensor] = []

    def probe(x: Tensor, sigma: Tensor) -> Tensor:
        angle = sigma.double().atan()
        rows.append(x[0] * angle.cos())
        return (x * angle.cos() / angle.tan() - units[len(rows)]) * angle.sin()

    *_, last = solver(probe, units[:1] / angles[0].cos(), sigmas, torch.zeros_like)
    return Coefficients(angles, torch.stack([*rows, last.x[0]]).tril())


def best_untuned(schedule: NoiseSchedule, steps: int, paths: Sequence[Paths]) -> tuple[str, Coefficients]:
    """The multistep solver with the smallest median error, on the grid of the schedule or the angular one."""
    grids = {"angular": Angular(sigma_min=0.0, sigma_max=schedule.grid(1)[0].item()), "given": schedule}
    found = {
        f"{name}, {kind} grid": coefficients(solver, grid.grid(steps))
        for name, solver in UNTUNED.items()
        for kind, grid in grids.items()
    }
    name = min(found, key=lambda name: errors(found[name], paths).median().item())
    return name, found[name]


@torch.no_grad()
def errors(c: Coefficients, paths: Sequence[Paths]) -> Float[Tensor, "n"]:
    """Root mean square error of the end point of each trajectory."""
    return torch.cat([_size(_run(c, p)[0] - p.end) for p in paths]).double().cpu()


@torch.no_grad()
def fit(c: Coefficients, paths: Sequence[Paths], iterations: int) -> Coefficients:
    """Coefficients with smaller errors, after so many iterations or when they no longer improve.

    Each iteration lowers the mean of log(1 + (error / median)^2): trajectories that no solver of so few steps can
    follow do not pull the others away.
    """
    damping = 1e-2
    now = errors(c, paths)
    with tqdm(total=iterations, unit="iteration", dynamic_ncols=True) as bar:
        for _ in range(iterations):
            scale = now.median().item()
            before, after = _loss(now, scale), math.inf
            normal, slope = _normal_equations(c, paths, scale)
            while not after < before:
                if damping > MOST_DAMPING:
                    return c
                step = torch.linalg.solve(normal + damping * torch.diag(normal.diagonal() + 1e-12), -slope)
                trial = _moved(c, step)
                if (trial.angles.diff() < 0).all():
                    now = errors(trial, paths)
                    after = _loss(now, scale)
                damping *= 4
            c, damping = trial, damping / 32
            bar.update()
            bar.set_postfix(error=f"{now.median().item():.3g}")
            if after > before - 1e-4:
                return c
    return c


def _loss(errors: Tensor, scale: float) -> float:
    return (errors / scale).square().log1p().mean().item()


def _size(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1).sqrt()


def _run(c: Coefficients, paths: Paths, known: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
    """The end point and the velocities, the first of which may be known."""
    start, velocities = paths.x * c.angles[0].cos(), list(known)
    for i in range(len(known), c.steps):
        x = state(c, i, start, velocities)
        velocities.append(velocity(x, paths.denoise(x, c.angles[i].tan()), c.angles[i]))
    return state(c, c.steps, start, velocities), velocities


def _normal_equations(c: Coefficients, paths: Sequence[Paths], scale: float) -> tuple[Tensor, Tensor]:
    """Matrix and right-hand side of the least squares that a step solves, weighted as the loss weighs errors."""
    total = torch.zeros(())
    for p in paths:
        end, velocities = _run(c, p)
        residual = end - p.end
        rows = torch.stack([*_derivatives(c, p, end, velocities), residual]).flatten(2)
        weight = 1 / (_size(residual) ** 2 + scale**2)
        rows = (rows * weight.sqrt()[:, None]).flatten(1)
        total = total + (rows @ rows.T).double().cpu() / p.x[0].numel()
    return total[:-1, :-1], total[:-1, -1]


def _free(steps: int) -> tuple[Tensor, Tensor]:
    """Places of the weights: the first row is the start, above the diagonal is the future."""
    rows, columns = torch.tril_indices(steps + 1, steps + 1)[:, 1:]
    return rows, columns


def _moved(c: Coefficients, step: Tensor) -> Coefficients:
    angles, weights = c.angles.clone(), c.weights.clone()
    angles[1:-1] += step[: c.steps - 1]
    weights[_free(c.steps)] += step[c.steps - 1 :]
    return Coefficients(angles, weights)


def _derivatives(c: Coefficients, paths: Paths, end: Tensor, velocities: Sequence[Tensor]) -> Iterator[Tensor]:
    """Of the end point, by each inner angle and then by each weight; what lies before it is not computed again."""
    width = torch.finfo(end.dtype).eps ** 0.4
    for i in range(1, c.steps):
        angles = c.angles.clone()
        angles[i] *= 1 - width
        moved, _ = _run(c._replace(angles=angles), paths, velocities[:i])
        yield (end - moved) / (width * c.angles[i].item())
    parts = [paths.x * c.angles[0].cos(), *velocities]
    for i, j in zip(*(places.tolist() for places in _free(c.steps)), strict=True):
        if i == c.steps:
            yield parts[j]
            continue
        weights = c.weights.clone()
        weights[i, j] += width
        moved, _ = _run(c._replace(weights=weights), paths, velocities[:i])
        yield (moved - end) / width
