"""Heun's method."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.solvers.steps import levels, ratio
from mmdiff.types import Denoise, Noise, Step


def heun(
    denoise: Denoise, x: Float[Tensor, "b *d"], sigmas: Float[Tensor, "n *s"], noise: Noise = torch.randn_like
) -> Iterator[Step]:
    """Heun's second-order method in sigma: Karras et al. 2022, algorithm 1.

    Order 2; 2 evaluations per step, 1 for a step that ends at sigma = 0 everywhere.
    """
    for i, sigma, target in levels(sigmas, x):
        x0 = denoise(x, sigma)
        slope = (x - x0) * ratio(torch.ones_like(sigma), sigma, at_zero=0)
        step = target - sigma
        end = x + step * slope
        if i < len(sigmas) - 2 or (sigmas[-1] > 0).any():
            x0 = denoise(end, target)
            end_slope = (end - x0) * ratio(torch.ones_like(target), target, at_zero=0)
            # A part that reaches sigma = 0 has no slope there and keeps its Euler step.
            end = x + step * torch.where(target > 0, (slope + end_slope) / 2, slope)
        x = end
        yield Step(i, target, x, x0)
