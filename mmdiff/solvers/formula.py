"""The formula of every multistep solver: a field x a variable x an order x a corrector.

Along the probability flow some combination f of the state and the estimate x0 is the derivative of the rescaled
state. Between two levels f is the polynomial through its last values in a variable u(sigma), so

    x' = keep x + sum_j weight_j f_j,    weight_j = mass * mean of the j-th Lagrange polynomial over the step.

The means are Gauss-Legendre quadratures in float64, computed once per grid. A level where a part of the state waits
counts once, by its latest evaluation; a part that has made few steps so far has that few values.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mmdiff.solvers.steps import aligned, ratio

POINTS = 16
MANY = 40
"""Steps from which a start with care lowers the error; with fewer, what it leaves out is missed more."""


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
    estimate: Multiplier | None  # of x0 in the value at this level, x + estimate x0; None where the value is x0
    keep: Multiplier  # of x in the next state
    weights: list[Multiplier]  # of the values at this level and before


class Method(NamedTuple):
    """A point of the formula."""

    field: Field  # what is extrapolated
    variable: Callable[[Tensor], Tensor]  # of the polynomial
    order: int  # number of values that predict; one more corrects
    corrector: bool = False  # whether all steps are corrected, or only those at the start with too few values
    midpoint: bool = False  # take the polynomial's value in the middle of the step (in the variable) for its mean


def plan(sigmas: Tensor, x: Tensor, method: Method) -> Sequence[Step]:
    """The steps of a walk over the levels ``sigmas`` (steps + 1, *parts) of the state x."""
    sigmas = aligned(sigmas, x)
    if sigmas.ndim == 1:
        return _plan_alike(tuple(sigmas.tolist()), method)
    walks = sigmas.double().cpu().reshape(len(sigmas), -1)
    walks, place = walks.unique(dim=1, return_inverse=True)  # few of the parts' walks differ
    place = place.to(x.device)
    table, mixed = _table(walks, method)
    table = table.to(x)[..., place].unflatten(-1, sigmas.shape[1:])
    waits = (walks[1:] == walks[:-1]).to(x.device)[:, place].unflatten(-1, sigmas.shape[1:])
    return _steps(waits.unbind(), table, mixed)


@lru_cache(maxsize=64)
def _plan_alike(sigmas: tuple[float, ...], method: Method) -> Sequence[Step]:
    """The steps of a state whose parts are all at one level."""
    table, mixed = _table(torch.tensor(sigmas, dtype=torch.float64)[:, None], method)
    return _steps([sigma == target for sigma, target in pairwise(sigmas)], table[..., 0].tolist(), mixed)


def _steps(waits: Sequence[bool | Tensor], table: Iterable[Iterable[Multiplier]], mixed: bool) -> Sequence[Step]:
    steps = []
    waited: bool | Tensor = False
    for pause, (estimate, keep, *weights) in zip(waits, table, strict=True):
        steps.append(Step(waited, pause, estimate if mixed else None, keep, weights))
        waited = pause
    return steps


def _table(walks: Tensor, method: Method) -> tuple[Tensor, bool]:
    """The multipliers of all steps, (steps, 3 + order, walks), of levels in columns, and whether values mix x with x0.

    From order 4 on a walk of many steps starts with care. The second value is taken at a state that one value has
    predicted, and wrong by h^2: in each later state that uses it that is h^3. So the fourth state is corrected by a
    step from the very first one, with all values but the second, which is never used again.
    """
    field, variable, order, corrector, midpoint = method
    count = len(walks) - 1
    moved = walks[1:] != walks[:-1]
    careful = (moved.sum(0) >= MANY) & (order + corrector >= 4)
    made = torch.cat([torch.zeros_like(walks[:1]), moved.cumsum(0)])[:-1]  # steps so far
    nodes = torch.full((count, order + 1, walks.shape[1]), torch.nan, dtype=torch.float64)
    nodes[0, 0] = walks[0]
    for i in range(1, count):
        nodes[i] = torch.where(moved[i - 1], torch.cat([walks[i : i + 1], nodes[i - 1, :-1]]), nodes[i - 1])
    second = torch.arange(order + 1)[:, None] == made[:, None] - 1
    known, nodes = nodes, torch.where(careful & second & (made[:, None] > 2), torch.nan, nodes)
    points, shares = np.polynomial.legendre.leggauss(POINTS)
    z, gauss = torch.from_numpy(points + 1)[:, None, None] / 2, torch.from_numpy(shares)[:, None, None, None] / 2

    def weights(sigma: Tensor, target: Tensor, nodes: Tensor) -> Tensor:
        piece = field(sigma, target, z)
        inner = variable(piece.inner)
        if midpoint:
            inner = (variable(sigma) + variable(target)).expand_as(inner) / 2
        at = variable(nodes).unbind(1)
        first = torch.arange(len(at))[:, None] == 0
        used = (~nodes.isnan() & (first | variable(target).isfinite()[:, None])).unbind(1)
        polynomials = []
        for j in range(len(at)):
            factors = [torch.where(used[k], (inner - at[k]) / (at[j] - at[k]), 1.0) for k in range(len(at)) if k != j]
            product = torch.stack(factors).prod(0) if factors else torch.ones_like(inner)
            polynomials.append(torch.where(used[j], product, 0.0))
        return piece.mass[:, None] * (gauss * torch.stack(polynomials, 2)).sum(0)

    predict = weights(walks[:-1], walks[1:], nodes[:, :-1])
    shifted = pad(predict, (0, 0, 1, 0))  # as multipliers of the values one step later
    gain = weights(walks[:-2], walks[1:-1], nodes[1:]) - shifted[:-1]
    gain = gain if corrector else torch.where(made[1:, None] + 1 < order, gain, 0.0)
    keep, state, estimate = field(walks[:-1], walks[1:], z)[:3]
    correct, total = torch.zeros_like(shifted), torch.zeros_like(nodes[0])  # total: in the state predicted
    for i in range(1, count):
        ahead = keep[i - 1] * pad(total + correct[i - 1], (0, 0, 1, -1)) + shifted[i - 1]
        fourth = careful & (made[i] == 3)
        if fourth.any():
            whole = weights(walks[:1], walks[i : i + 1], nodes[i : i + 1])[0]
            gain[i - 1] = torch.where(fourth, whole - ahead, gain[i - 1])
        total = torch.where(moved[i - 1], ahead, total)
        correct[i] = torch.where(moved[i - 1], gain[i - 1], correct[i - 1])
    multipliers = pad(predict, (0, 0, 0, 1)) + keep[:, None] * correct
    mixed = bool((state != 0).any())
    if mixed:  # a value is f / state
        multipliers = multipliers * field(known, known, z[0]).state.nan_to_num()
    return torch.cat([torch.stack([ratio(estimate, state, at_zero=0), keep], 1), multipliers], 1), mixed
