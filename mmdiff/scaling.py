"""Prediction types as coefficients: D(x, sigma) = skip x + out F(input x, noise).

With x = x0 + sigma eps, a network F that predicts noise, velocity or a preconditioned residual differs from
another in these four functions of sigma and in nothing else. At sigma = 0 all of them give D(x, 0) = x exactly.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

CLEAN = 1e-4  # the level that stands for "clean" where a network is told log sigma, which has no value at 0


class Coefficients(NamedTuple):
    """The four coefficients at some noise levels, each of the shape of sigma."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


class Scaling(ABC):
    """Maps sigma to the coefficients of a prediction type."""

    @abstractmethod
    def __call__(self, sigma: Tensor) -> Coefficients:
        """Coefficients at ``sigma``, in its dtype and on its device."""


def _log_noise(sigma: Tensor) -> Tensor:
    return sigma.clamp(min=CLEAN).log() / 4


@dataclass(frozen=True, kw_only=True)
class EDM(Scaling):
    """F predicts the unit-variance residual: Karras et al. 2022, table 1.

    Args:
        sigma_data: standard deviation of the data in model space.
    """

    sigma_data: float = 1.0

    def __post_init__(self):
        if self.sigma_data <= 0:
            raise ValueError(f"scaling.sigma_data must be positive, got {self.sigma_data:g}.")

    def __call__(self, sigma: Tensor) -> Coefficients:
        data, total = self.sigma_data, torch.sqrt(sigma**2 + self.sigma_data**2)
        return Coefficients((data / total) ** 2, sigma * data / total, 1 / total, _log_noise(sigma))


class Epsilon(Scaling):
    """F predicts eps: Ho et al. 2020."""

    def __call__(self, sigma: Tensor) -> Coefficients:
        return Coefficients(torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt(), _log_noise(sigma))


class V(Scaling):
    """F predicts v = alpha eps - sigma_vp x0 on the variance-preserving path: Salimans & Ho 2022."""

    def __call__(self, sigma: Tensor) -> Coefficients:
        alpha = (1 + sigma**2).rsqrt()
        return Coefficients(alpha**2, -sigma * alpha, alpha, _log_noise(sigma))


class Flow(Scaling):
    """F predicts the velocity eps - x0 on the path (1 - t) x0 + t eps: Lipman et al. 2023, Liu et al. 2023."""

    def __call__(self, sigma: Tensor) -> Coefficients:
        alpha = 1 / (1 + sigma)
        return Coefficients(alpha, -sigma * alpha, alpha, sigma * alpha)
