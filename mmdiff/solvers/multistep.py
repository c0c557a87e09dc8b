"""Multistep solvers: one evaluation per step, higher order from the evaluations before.

Each is a point of one formula (see `mmdiff.solvers.formula`). The first steps know fewer values; where those are too
few for the order, they are corrected. Methods of order 4 reach it from about 40 steps on: see `formula.MANY`.
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.solvers.formula import Field, Method, Multiplier, clean, eps, flow_time, flow_velocity, plan
from mmdiff.solvers.steps import brownian, levels, ratio
from mmdiff.types import Denoise, Noise, Step


def multistep(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, method: Method, eta: float = 0.0
) -> Iterator[Step]:
    """The formula, walked: predict, evaluate, correct.

    The corrector repeats a step with the value at its end, which the next step needs anyway; the state that was
    predicted is the one evaluated and yielded. ``eta`` is the noise of the reverse SDE, for a field with the same one.
    """
    walk = list(levels(sigmas, x))
    kept = [ratio(target, sigma, at_zero=1) ** eta for _, sigma, target in walk] if eta else None
    units = brownian(noise, x, kept) if kept else None
    history: list[Tensor] = []
    for (i, sigma, target), c in zip(walk, plan(sigmas, x, method), strict=True):
        x0 = denoise(x, sigma)
        if c.waited is not False:
            history = [choose(c.waited, *pair) for pair in zip([*history[1:], *history[-1:]], history, strict=True)]
        history = [x0 if c.estimate is None else add(x, c.estimate, x0), *history[: method.order]]
        ahead = combine(c.keep, x, c.weights, history)
        if kept and units:
            ahead = ahead + target * (1 - kept[i] ** 2).sqrt() * units[i]
        x = choose(c.waits, x, ahead)
        yield Step(i, target, x, x0)


def dpmpp_2m(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
) -> Iterator[Step]:
    """DPM-Solver++(2M): Lu et al. 2022b, algorithm 2.

    Extrapolates x0 linearly in the log-SNR to the middle of the step. Order 2 (the first step, and one that ends at
    sigma = 0 where the log-SNR is infinite, are Euler steps); 1 evaluation per step.
    """
    return multistep(denoise, x, sigmas, noise, Method(clean, torch.log, 2, midpoint=True))


def dpmpp_3m(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
) -> Iterator[Step]:
    """DPM-Solver++(3M): the multistep form of Lu et al. 2022b with three values of x0, integrated exactly.

    Order 3; 1 evaluation per step. Common implementations lack a factor in the second difference and are of order 2.
    """
    return multistep(denoise, x, sigmas, noise, Method(clean, torch.log, 3))


def unipc(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    order: int = 3,
) -> Iterator[Step]:
    """UniPC: Zhao et al. 2023, algorithms 5 to 7, with exact weights where the paper's order 2 takes 1/2.

    ``order`` values of x0 in the log-SNR (1 to 3) predict, one more corrects. Order ``order`` + 1; 1 evaluation per
    step.
    """
    check_order(order, 3)
    return multistep(denoise, x, sigmas, noise, Method(clean, torch.log, order, corrector=True))


def deis(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    order: int = 3,
) -> Iterator[Step]:
    """DEIS: Zhang & Chen 2023, equation 15, the exponential Adams-Bashforth method, with eps a polynomial in log sigma.

    Order ``order``, 1 to 4; 1 evaluation per step.
    """
    check_order(order, 4)
    return multistep(denoise, x, sigmas, noise, Method(eps, torch.log, order))


def adams_bashforth(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    order: int = 3,
) -> Iterator[Step]:
    """Adams-Bashforth in the velocity and time of a flow (Lipman et al. 2023), for steps of any length.

    Order ``order``, 1 to 4; 1 evaluation per step.
    """
    check_order(order, 4)
    return multistep(denoise, x, sigmas, noise, Method(flow_velocity, flow_time, order))


def angular(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    order: int | None = None,
) -> Iterator[Step]:
    """Adams-Bashforth-Moulton for the angular grid (`mmdiff.schedules.Angular`).

    The velocity of a flow (Lipman et al. 2023) is a polynomial in the angle atan(sigma), where it is regular from pure
    noise to data; ``order`` values, 1 to 3, predict and one more corrects. Without an order it depends on the number
    of steps (of a part that waits, those it moves in), as measured: 1 up to 7, then 3. A single step lands on the
    estimate. Order ``order`` + 1; 1 evaluation per step.
    """
    if order is None:
        steps = int((sigmas[1:] != sigmas[:-1]).sum(0).max())
        order = 1 if steps <= 7 else 3
    check_order(order, 3)
    return multistep(denoise, x, sigmas, noise, Method(flow_velocity, torch.atan, order, corrector=True))


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    eta: float = 1.0,
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M): Lu et al. 2022b, section 5; ``eta`` scales the noise, 0 is `dpmpp_2m`.

    1 evaluation per step; stochastic.
    """
    return multistep(denoise, x, sigmas, noise, Method(noisy(eta), torch.log, 2, midpoint=True), eta)


def dpmpp_3m_sde(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    eta: float = 1.0,
) -> Iterator[Step]:
    """SDE-DPM-Solver++ with three values of x0, integrated exactly; ``eta`` scales the noise, 0 is `dpmpp_3m`.

    1 evaluation per step; stochastic.
    """
    return multistep(denoise, x, sigmas, noise, Method(noisy(eta), torch.log, 3), eta)


def sa_solver(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    order: int = 3,
    eta: float = 1.0,
) -> Iterator[Step]:
    """SA-Solver: Xue et al. 2023, stochastic Adams with a corrector; ``eta`` is the paper's tau squared, 0 is `unipc`.

    ``order`` values of x0 in the log-SNR (1 to 3) predict, one more corrects; 1 evaluation per step; stochastic.
    """
    check_order(order, 3)
    return multistep(denoise, x, sigmas, noise, Method(noisy(eta), torch.log, order, corrector=True), eta)


@cache
def noisy(eta: float) -> Field:
    """`clean` for a share of noise; the same object for the same share, so that plans are found again."""
    return partial(clean, eta=eta)


def check_order(order: int, most: int) -> None:
    """Check the order of a solver.

    Raises:
        ValueError: naming what is allowed.
    """
    if order not in range(1, most + 1):
        raise ValueError(f"solver.order must be a whole number from 1 to {most}, got {order!r}.")


def choose(condition: bool | Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``yes`` where the condition holds, ``no`` elsewhere."""
    return torch.where(condition, yes, no) if isinstance(condition, Tensor) else yes if condition else no


def combine(keep: Multiplier, x: Tensor, weights: Sequence[Multiplier], values: Sequence[Tensor]) -> Tensor:
    """keep x + the sum of as many products as there are values."""
    total = x * keep
    for weight, value in zip(weights, values, strict=False):
        total = total.addcmul_(weight, value) if isinstance(weight, Tensor) else total.add_(value, alpha=weight)
    return total


def add(total: Tensor, a: Multiplier, b: Tensor) -> Tensor:
    """total + a b."""
    return torch.addcmul(total, a, b) if isinstance(a, Tensor) else torch.add(total, b, alpha=a)
