"""First-order solvers."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.solvers.steps import levels, ratio
from mmdiff.types import Denoise, Noise, Step


def euler(
    denoise: Denoise, x: Float[Tensor, "b *d"], sigmas: Float[Tensor, "n *s"], noise: Noise = torch.randn_like
) -> Iterator[Step]:
    """DDIM with eta 0 (Song et al. 2021a, equation 12); Euler in sigma (Karras et al. 2022) or in a flow's time.

    All three are x' = x0 + (sigma' / sigma) (x - x0). Order 1; 1 evaluation per step.
    """
    for i, sigma, target in levels(sigmas, x):
        x0 = denoise(x, sigma)
        x = x + (1 - ratio(target, sigma, at_zero=1)) * (x0 - x)
        yield Step(i, target, x, x0)


def ancestral(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    eta: float = 1.0,
) -> Iterator[Step]:
    """DDPM's posterior sampling: Ho et al. 2020, equation 7, in sigma; DDIM's eta: Song et al. 2021a, equation 16.

    Order 1; 1 evaluation per step; stochastic.

    Args:
        denoise: the denoiser.
        x: initial state.
        sigmas: decreasing noise levels.
        noise: source of unit Gaussian noise.
        eta: share of the posterior's standard deviation that is drawn anew at each step; 0 is `euler`.
    """
    for i, sigma, target in levels(sigmas, x):
        x0 = denoise(x, sigma)
        kept = 1 - ratio(target, sigma, at_zero=1) ** 2
        up = eta * target * kept.sqrt()
        down = (target**2 - up**2).clamp(min=0).sqrt()
        x = x + (1 - ratio(down, sigma, at_zero=1)) * (x0 - x)
        if eta > 0:
            x = x + up * noise(x)
        yield Step(i, target, x, x0)
