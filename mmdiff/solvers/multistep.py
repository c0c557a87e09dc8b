"""Multistep solvers: one evaluation per step, higher order from the evaluations before."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.solvers.steps import levels, ratio
from mmdiff.types import Denoise, Noise, Step


def dpmpp_2m(
    denoise: Denoise, x: Float[Tensor, "b *d"], sigmas: Float[Tensor, "n *s"], noise: Noise = torch.randn_like
) -> Iterator[Step]:
    """DPM-Solver++(2M): Lu et al. 2022b, algorithm 2.

    Extrapolates x0 linearly in the log-SNR between the last two evaluations. Order 2 (the first step, and one that
    ends at sigma = 0 where the log-SNR is infinite, are Euler steps); 1 evaluation per step.
    """
    before: tuple[Tensor, Tensor] | None = None
    for i, sigma, target in levels(sigmas, x):
        x0 = denoise(x, sigma)
        shrink = ratio(target, sigma, at_zero=1)
        log_step = -shrink.log()
        estimate = x0
        if before:
            x0_before, log_step_before = before
            extrapolation = ratio(log_step, 2 * log_step_before, at_zero=0)
            estimate = x0 + torch.where(target > 0, extrapolation, 0) * (x0 - x0_before)
        x = x + (1 - shrink) * (estimate - x)
        before = x0, log_step
        yield Step(i, target, x, x0)
