"""Stochastic solvers that are no multistep methods."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.solvers.steps import brownian, levels, ratio
from mmdiff.types import Denoise, Noise, Step


def edm_stochastic(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    churn: float = 40.0,
    low: float = 0.05,
    high: float = 50.0,
    scale: float = 1.003,
) -> Iterator[Step]:
    """Heun steps from a raised noise level: Karras et al. 2022, algorithm 2.

    2 evaluations per step, 1 for a step that ends at sigma = 0 everywhere; stochastic, `heun` with churn 0.

    Args:
        denoise: the denoiser.
        x: initial state.
        sigmas: decreasing noise levels.
        noise: source of unit Gaussian noise.
        churn: noise added over all steps (the paper's S_churn).
        low: lowest level at which noise is added (S_tmin).
        high: highest level at which noise is added (S_tmax).
        scale: standard deviation of the noise added (S_noise).
    """
    gamma = min(churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for i, sigma, target in levels(sigmas, x):
        if gamma > 0:
            acts = (low <= sigma) & (sigma <= high) & (target < sigma)
            raised = torch.where(acts, (1 + gamma) * sigma, sigma)
            x = x + scale * (raised**2 - sigma**2).sqrt() * noise(x)
            sigma = raised
        x0 = denoise(x, sigma)
        slope = (x - x0) * ratio(torch.ones_like(sigma), sigma, at_zero=0)
        step = target - sigma
        end = x + step * slope
        if i < len(sigmas) - 2 or (sigmas[-1] > 0).any():
            x0 = denoise(end, target)
            end_slope = (end - x0) * ratio(torch.ones_like(target), target, at_zero=0)
            end = x + step * torch.where(target > 0, (slope + end_slope) / 2, slope)
        x = end
        yield Step(i, target, x, x0)


def dpmpp_sde(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    eta: float = 1.0,
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2S): Lu et al. 2022b, section 5 with r = 1/2; ``eta`` scales the noise, 0 is `dpmpp_2s`.

    2 evaluations per step, 1 for a step that ends at sigma = 0 everywhere; stochastic.
    """
    walk = list(levels(sigmas, x))
    halves = [ratio((sigma * target).sqrt(), sigma, at_zero=1) ** eta for _, sigma, target in walk for _ in range(2)]
    units = brownian(noise, x, halves) if eta else []

    def moved(x: Tensor, x0: Tensor, sigma: Tensor, target: Tensor) -> Tensor:
        return x + (1 - ratio(target, sigma, at_zero=1) ** (1 + eta)) * (x0 - x)

    for i, sigma, target in walk:
        middle = (sigma * target).sqrt()
        x0 = denoise(x, sigma)
        if eta:
            half = (1 - halves[2 * i] ** 2).sqrt()
            early = middle * half * units[2 * i]
            whole = target * half * (halves[2 * i] * units[2 * i] + units[2 * i + 1])
        if i < len(sigmas) - 2 or (sigmas[-1] > 0).any():
            state = moved(x, x0, sigma, middle)
            x0 = torch.where(target > 0, denoise(state + early if eta else state, middle), x0)
        x = moved(x, x0, sigma, target)
        if eta:
            x = x + whole
        yield Step(i, target, x, x0)


def predictor_corrector(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    snr: float = 0.16,
) -> Iterator[Step]:
    """A step of `euler`, then one of Langevin's dynamics at the level reached: Song et al. 2021b, algorithm 4.

    The norm of the score in the paper's step size is its expectation, sqrt(d) / sigma, so that examples and their
    parts do not influence each other. Order 1; 2 evaluations per step, 1 for a step that ends at sigma = 0
    everywhere; stochastic.

    Args:
        denoise: the denoiser.
        x: initial state.
        sigmas: decreasing noise levels.
        noise: source of unit Gaussian noise.
        snr: of the corrector's step (the paper's r).
    """
    for i, sigma, target in levels(sigmas, x):
        x0 = denoise(x, sigma)
        x = x + (1 - ratio(target, sigma, at_zero=1)) * (x0 - x)
        if i < len(sigmas) - 2 or (sigmas[-1] > 0).any():
            x0 = denoise(x, target)
            moves = ((target > 0) & (target < sigma)).to(sigma)
            x = x + moves * (2 * snr**2 * (x0 - x) + 2 * snr * target * noise(x))
        yield Step(i, target, x, x0)


def consistency(
    denoise: Denoise, x: Float[Tensor, "b *d"], sigmas: Float[Tensor, "n *s"], noise: Noise = torch.randn_like
) -> Iterator[Step]:
    """Multistep consistency sampling: Song et al. 2023, algorithm 1, for models that map any level to data.

    1 evaluation per step; stochastic. It draws from the data only if the model's estimates are samples.
    """
    for i, sigma, target in levels(sigmas, x):
        x0 = denoise(x, sigma)
        jump = x0 + target * noise(x) if i < len(sigmas) - 2 or (sigmas[-1] > 0).any() else x0
        x = torch.where(target < sigma, jump, x)
        yield Step(i, target, x, x0)
