"""The formula of every multistep solver: a field x a variable x an order x a corrector.

Along the probability flow some combination f of the state and the estimate x0 is the derivative of the rescaled
state. Between two levels f is the polynomial through its last values in a variable u(sigma), so

    x' = keep x + sum_j weight_j f_j,    weight_j = mass * mean of the j-th Lagrange polynomial over the step.

The means are Gauss-Legendre quadratures in float64, computed once per grid. A level where a part of the state waits
counts once, by its latest evaluation; a part that has made few steps so far has that few values.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mmdiff.solvers.steps import aligned, ratio

POINTS = 16


class Piece(NamedTuple):
    """A field over steps from sigma to target: x' = keep x + mass * mean of f, with f = state x + estimate x0."""

    keep: Tensor
    state: Tensor
    estimate: Tensor
    mass: Tensor
    inner: Tensor  # levels at positions z of the step, over which the mean is taken


Field = Callable[[Tensor, Tensor, Tensor], Piece]
Multiplier = float | Tensor


def clean(sigma: Tensor, target: Tensor, z: Tensor, *, eta: float = 0.0) -> Piece:
    """f = x0: DPM-Solver++. With eta > 0 the part of the reverse SDE that is not noise (see `multistep`)."""
    keep = ratio(target, sigma, at_zero=1) ** (1 + eta)
    inner = target * torch.lerp(keep, torch.ones_like(keep), z) ** (-1 / (1 + eta))
    return Piece(keep, torch.zeros_like(sigma), torch.ones_like(sigma), 1 - keep, inner)


def eps(sigma: Tensor, target: Tensor, z: Tensor) -> Piece:
    """f = (x - x0) / sigma = dx / dsigma: DDIM, DEIS."""
    inverse = ratio(torch.ones_like(sigma), sigma, at_zero=0)
    return Piece(torch.ones_like(sigma), inverse, -inverse, target - sigma, torch.lerp(sigma, target, z))


def angular_velocity(sigma: Tensor, target: Tensor, z: Tensor) -> Piece:
    """f = cos eps - sin x0 = dy / dtheta, with sigma = tan theta and y = x cos theta: v of Salimans & Ho 2022."""
    start, end = sigma.atan(), target.atan()
    keep = (1 + target**2).sqrt() / (1 + sigma**2).sqrt()
    state = ratio(start.cos(), sigma, at_zero=0)
    estimate = -ratio(torch.ones_like(sigma), start.sin(), at_zero=0)
    return Piece(keep, state, estimate, (end - start) * (1 + target**2).sqrt(), torch.lerp(start, end, z).tan())


def flow_velocity(sigma: Tensor, target: Tensor, z: Tensor) -> Piece:
    """f = eps - x0 = dy / dt, with the flow's time t = sigma / (1 + sigma) and y = x (1 - t)."""
    start, end = flow_time(sigma), flow_time(target)
    time = torch.lerp(start, end, z)
    inverse = ratio(torch.ones_like(sigma), sigma, at_zero=0)
    mass = (end - start) * (1 + target)
    return Piece((1 + target) / (1 + sigma), inverse, -inverse - 1, mass, time / (1 - time))


def flow_time(sigma: Tensor) -> Tensor:
    """sigma / (1 + sigma)."""
    return sigma / (1 + sigma)


class Step(NamedTuple):
    """The multipliers of one step: numbers, or tensors where levels differ within a batch."""

    waited: bool | Tensor  # the step before led to where it began
    waits: bool | Tensor  # this one does
    keep: Multiplier
    state: Multiplier
    estimate: Multiplier
    predict: list[Multiplier]  # of the values at this level and before
    correct: list[Multiplier]  # of the same, for the step that led here; empty if no part of it is corrected


def plan(
    sigmas: Tensor,
    x: Tensor,
    field: Field,
    variable: Callable[[Tensor], Tensor],
    order: int,
    *,
    corrector: bool = False,
    midpoint: bool = False,
) -> Iterator[Step]:
    """The steps of a walk over ``sigmas``.

    Args:
        sigmas: levels, (steps + 1, *parts).
        x: the state.
        field: what is extrapolated.
        variable: of the polynomial.
        order: number of values that predict; one more corrects.
        corrector: whether all steps are corrected, or only those at the start with too few values for the order.
        midpoint: take the polynomial's value in the middle of the step (in the variable) for its mean.
    """
    sigmas = aligned(sigmas, x)
    alike = sigmas.ndim == 1
    walks = sigmas.double().cpu().reshape(len(sigmas), -1)
    walks, place = walks.unique(dim=1, return_inverse=True)  # few of the parts' walks differ
    count = len(walks) - 1
    nodes = torch.full((count, order + 1, walks.shape[1]), torch.nan, dtype=torch.float64)
    nodes[0, 0] = walks[0]
    for i in range(1, count):
        shifted = torch.cat([walks[i : i + 1], nodes[i - 1, :-1]])
        nodes[i] = torch.where(walks[i] == walks[i - 1], nodes[i - 1], shifted)
    points, shares = np.polynomial.legendre.leggauss(POINTS)
    z, gauss = torch.from_numpy(points + 1)[:, None, None] / 2, torch.from_numpy(shares)[:, None, None, None] / 2
    sigma, target = walks[:-1], walks[1:]
    piece = field(sigma, target, z)
    inner = variable(piece.inner)
    if midpoint:
        inner = (variable(sigma) + variable(target)).expand_as(inner) / 2

    def weights(inner: Tensor, mass: Tensor, nodes: Tensor, end: Tensor) -> Tensor:
        at = variable(nodes).unbind(1)
        first = torch.arange(len(at))[:, None] == 0
        used = (~nodes.isnan() & (first | variable(end).isfinite()[:, None])).unbind(1)
        polynomials = []
        for j in range(len(at)):
            factors = [torch.where(used[k], (inner - at[k]) / (at[j] - at[k]), 1.0) for k in range(len(at)) if k != j]
            product = torch.stack(factors).prod(0) if factors else torch.ones_like(inner)
            polynomials.append(torch.where(used[j], product, 0.0))
        return mass[:, None] * (gauss * torch.stack(polynomials, 2)).sum(0)

    predict = weights(inner, piece.mass, nodes[:, :-1], target)
    again = weights(inner[:, :-1], piece.mass[:-1], nodes[1:], sigma[1:])
    # A step with m values is wrong by h^(m + 1); an order survives steps at the start that are wrong by h^order.
    corrected = (~nodes[1:].isnan()).sum(1, keepdim=True) < order if not corrector else torch.tensor(True)
    correct = torch.where(corrected, again, pad(predict[:-1], (0, 0, 1, 0)))
    corrects = [False, *corrected.expand(count - 1, 1, walks.shape[1]).flatten(1).any(1).tolist()]
    correct = pad(correct, (0, 0, 0, 0, 1, 0))
    table = torch.cat([torch.stack(piece[:3], 1), predict, correct], 1)
    waits = sigma == target
    if not alike:
        table, waits, place = table.to(x), waits.to(x.device), place.to(x.device)

    def spread(row: Tensor) -> Tensor:
        return row[..., place].unflatten(-1, sigmas.shape[1:])

    waited: bool | Tensor = False
    for i in range(count):
        pause: bool | Tensor = bool(waits[i]) if alike else spread(waits[i])
        row: list[Multiplier] = table[i, :, 0].tolist() if alike else list(spread(table[i]))
        keep, state, estimate, *weight = row
        yield Step(waited, pause, keep, state, estimate, weight[:order], weight[order:] if corrects[i] else [])
        waited = pause
