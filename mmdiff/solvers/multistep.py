"""Multistep solvers: one evaluation per step, higher order from the evaluations before.

Each is a point of one formula (see `mmdiff.solvers.formula`). The first steps know fewer values; where those are too
few for the order, they are corrected.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.solvers.formula import Field, Multiplier, angular_velocity, clean, eps, flow_time, flow_velocity, plan
from mmdiff.solvers.steps import brownian, levels, ratio
from mmdiff.types import Denoise, Noise, Step


def multistep(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    field: Field,
    variable: Callable[[Tensor], Tensor],
    order: int,
    corrector: bool = False,
    midpoint: bool = False,
    eta: float = 0.0,
) -> Iterator[Step]:
    """The formula, walked: predict, evaluate, correct.

    The corrector repeats a step with the value at its end, which the next step needs anyway; the state that was
    predicted is the one evaluated and yielded.

    Args:
        denoise: the denoiser.
        x: initial state.
        sigmas: decreasing noise levels.
        noise: source of unit Gaussian noise.
        field: what is extrapolated.
        variable: of the polynomial that extrapolates it.
        order: number of values that predict.
        corrector: whether steps are corrected, which adds one to the order.
        midpoint: take the polynomial in the middle of the step for its mean.
        eta: noise of the reverse SDE (the field has to be `clean` with the same eta); 0 for the probability flow.
    """
    choices = {"corrector": corrector, "midpoint": midpoint}
    walk = list(levels(sigmas, x))
    kept = [ratio(target, sigma, at_zero=1) ** eta for _, sigma, target in walk]
    units = brownian(noise, x, kept) if eta else []
    before = start = x  # of the step, corrected
    history: list[Tensor] = []
    keep: Multiplier = 1.0
    added: Tensor | float = 0.0
    for (i, sigma, target), c in zip(walk, plan(sigmas, x, field, variable, order, **choices), strict=True):
        x0 = denoise(x, sigma)
        older = [choose(c.waited, *pair) for pair in zip([*history[1:], *history[-1:]], history, strict=True)]
        history = [c.state * x + c.estimate * x0, *older][: order + 1]
        if c.correct:
            start = combine([keep, *c.correct], [before, *history]) + added
        ahead = combine([c.keep, *c.predict], [start, *history])
        if eta:
            added = target * (1 - kept[i] ** 2).sqrt() * units[i]
            ahead = ahead + added
        before, start, keep = start, choose(c.waits, start, ahead), c.keep
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
    return multistep(denoise, x, sigmas, noise, field=clean, variable=torch.log, order=2, midpoint=True)


def dpmpp_3m(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
) -> Iterator[Step]:
    """DPM-Solver++(3M): the multistep form of Lu et al. 2022b with three values of x0, integrated exactly.

    Order 3; 1 evaluation per step. Common implementations lack a factor in the second difference and are of order 2.
    """
    return multistep(denoise, x, sigmas, noise, field=clean, variable=torch.log, order=3)


def unipc(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    order: int = 3,
) -> Iterator[Step]:
    """UniPC: Zhao et al. 2023, algorithms 5 to 7, with exact weights where the paper's order 2 takes 1/2.

    ``order`` values of x0 in the log-SNR (1 to 3) predict, one more corrects. Order ``order`` + 1, of which the first
    steps leave 3 in the limit; 1 evaluation per step.
    """
    check_order(order, 3)
    return multistep(denoise, x, sigmas, noise, field=clean, variable=torch.log, order=order, corrector=True)


def deis(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    order: int = 3,
) -> Iterator[Step]:
    """DEIS: Zhang & Chen 2023, equation 15, the exponential Adams-Bashforth method, with eps a polynomial in log sigma.

    Order ``order``, 1 to 4, of which the first steps leave 3 in the limit; 1 evaluation per step.
    """
    check_order(order, 4)
    return multistep(denoise, x, sigmas, noise, field=eps, variable=torch.log, order=order)


def adams_bashforth(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    order: int = 3,
) -> Iterator[Step]:
    """Adams-Bashforth in the velocity and time of a flow (Lipman et al. 2023), for steps of any length.

    Order ``order``, 1 to 4, of which the first steps leave 3 in the limit; 1 evaluation per step.
    """
    check_order(order, 4)
    return multistep(denoise, x, sigmas, noise, field=flow_velocity, variable=flow_time, order=order)


def angular(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    order: int | None = None,
) -> Iterator[Step]:
    """Adams-Bashforth-Moulton in the angle atan(sigma), where the probability flow is regular at both ends.

    The velocity v is a polynomial in the time of a flow, predicted from ``order`` values and corrected by one more.
    Without an order it depends on the number of steps (of a part that waits, those it moves in), as measured: 2 and
    no corrector up to 6, 2 up to 12, then 3.
    Order ``order`` + 1, of which the first steps leave 3 in the limit; 1 evaluation per step.
    """
    if order is not None:
        check_order(order, 3)
    steps = int((sigmas[1:] != sigmas[:-1]).sum(0).max())
    return multistep(
        denoise,
        x,
        sigmas,
        noise,
        field=angular_velocity,
        variable=flow_time,
        order=order or (2 if steps <= 12 else 3),
        corrector=order is not None or steps > 6,
    )


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
    return multistep(
        denoise, x, sigmas, noise, field=partial(clean, eta=eta), variable=torch.log, order=2, midpoint=True, eta=eta
    )


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
    return multistep(denoise, x, sigmas, noise, field=partial(clean, eta=eta), variable=torch.log, order=3, eta=eta)


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
    return multistep(
        denoise,
        x,
        sigmas,
        noise,
        field=partial(clean, eta=eta),
        variable=torch.log,
        order=order,
        corrector=True,
        eta=eta,
    )


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


def combine(multipliers: Sequence[Multiplier], tensors: Sequence[Tensor]) -> Tensor:
    """The sum of as many products as there are tensors."""
    total = multipliers[0] * tensors[0]
    for a, b in zip(multipliers[1:], tensors[1:], strict=False):
        total = torch.addcmul(total, a, b) if isinstance(a, Tensor) else torch.add(total, b, alpha=a)
    return total
