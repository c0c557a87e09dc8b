"""Single-step solvers of higher order: several evaluations within a step, none remembered."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.solvers.formula import flow_time
from mmdiff.solvers.steps import levels, ratio
from mmdiff.types import Denoise, Noise, Step


def dpm2(
    denoise: Denoise, x: Float[Tensor, "b *d"], sigmas: Float[Tensor, "n *s"], noise: Noise = torch.randn_like
) -> Iterator[Step]:
    """DPM-Solver-2: Lu et al. 2022a, algorithm 1; eps in the middle of the log-SNR.

    Order 2; 2 evaluations per step, 1 for a step that ends at sigma = 0 everywhere.
    """
    for i, sigma, target in levels(sigmas, x):
        x0 = denoise(x, sigma)
        slope = (x - x0) * ratio(torch.ones_like(sigma), sigma, at_zero=0)
        if i < len(sigmas) - 2 or (sigmas[-1] > 0).any():
            middle = (sigma * target).sqrt()
            state = x + (middle - sigma) * slope
            inner = denoise(state, middle)
            inner_slope = (state - inner) * ratio(torch.ones_like(middle), middle, at_zero=0)
            x0, slope = torch.where(target > 0, inner, x0), torch.where(target > 0, inner_slope, slope)
        x = x + (target - sigma) * slope
        yield Step(i, target, x, x0)


def dpmpp_2s(
    denoise: Denoise, x: Float[Tensor, "b *d"], sigmas: Float[Tensor, "n *s"], noise: Noise = torch.randn_like
) -> Iterator[Step]:
    """DPM-Solver++(2S): Lu et al. 2022b, algorithm 1 with r = 1/2; x0 in the middle of the log-SNR.

    Order 2; 2 evaluations per step, 1 for a step that ends at sigma = 0 everywhere.
    """
    for i, sigma, target in levels(sigmas, x):
        x0 = denoise(x, sigma)
        if i < len(sigmas) - 2 or (sigmas[-1] > 0).any():
            middle = (sigma * target).sqrt()
            inner = denoise(x + (1 - ratio(middle, sigma, at_zero=1)) * (x0 - x), middle)
            x0 = torch.where(target > 0, inner, x0)
        x = x + (1 - ratio(target, sigma, at_zero=1)) * (x0 - x)
        yield Step(i, target, x, x0)


def rk4(
    denoise: Denoise, x: Float[Tensor, "b *d"], sigmas: Float[Tensor, "n *s"], noise: Noise = torch.randn_like
) -> Iterator[Step]:
    """The classical Runge-Kutta method in the velocity and time of a flow (Kutta 1901; Lipman et al. 2023).

    Where a step ends at sigma = 0, which has no velocity, Ralston's method of order 3 does without it. Order 4;
    4 evaluations per step, 3 for a step that ends at sigma = 0 everywhere.
    """
    for i, sigma, target in levels(sigmas, x):
        noisy = (target > 0).to(sigma)
        nodes = [b + (a - b) * noisy for a, b in ((0, 0), (1 / 2, 1 / 2), (1 / 2, 3 / 4), (1, 3 / 4))]
        shares = [b + (a - b) * noisy for a, b in ((1 / 6, 2 / 9), (1 / 3, 1 / 3), (1 / 3, 4 / 9), (1 / 6, 0))]
        stages = 4 if i < len(sigmas) - 2 or (sigmas[-1] > 0).any() else 3
        start, length = flow_time(sigma), flow_time(target) - flow_time(sigma)
        # The rescaled state is y = x / (1 + sigma); its factors are exactly 1 where nothing moves.
        velocity, change = torch.zeros_like(x), torch.zeros_like(x)
        for node, share in zip(nodes[:stages], shares[:stages], strict=True):
            time = start + node * length
            inner = torch.where(node * length == 0, sigma, time / (1 - time))
            state = (1 + inner) / (1 + sigma) * x + (1 + inner) * node * length * velocity
            x0 = denoise(state, inner)
            velocity = (state - x0) * ratio(torch.ones_like(inner), inner, at_zero=0) - x0
            change = change + share * velocity
        x = (1 + target) / (1 + sigma) * x + (1 + target) * length * change
        yield Step(i, target, x, x0)
