"""Loss weights: functions of sigma that multiply the squared error of x0.

In these terms a prediction type with coefficient ``out`` has the native weight 1 / out^2, under which the network's
own target has unit weight at every level. Pass one of the classes below to weigh the levels otherwise.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Weighting(ABC):
    """Maps sigma to the weight of the squared error of x0; sigma is positive."""

    @abstractmethod
    def __call__(self, sigma: Tensor) -> Tensor:
        """Weights of the shape of ``sigma``."""


class Uniform(Weighting):
    """Every noise level counts by its error in x0."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


@dataclass(frozen=True, kw_only=True)
class EDM(Weighting):
    """1 / out^2 of the EDM scaling, whatever the network predicts: Karras et al. 2022, table 1."""

    sigma_data: float = 1.0

    def __post_init__(self):
        if self.sigma_data <= 0:
            raise ValueError(f"weighting.sigma_data must be positive, got {self.sigma_data:g}.")

    def __call__(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True, kw_only=True)
class MinSNR(Weighting):
    """min(SNR, gamma): Hang et al. 2023."""

    gamma: float = 5.0

    def __post_init__(self):
        if self.gamma <= 0:
            raise ValueError(f"weighting.gamma must be positive, got {self.gamma:g}.")

    def __call__(self, sigma: Tensor) -> Tensor:
        return sigma.pow(-2).clamp(max=self.gamma)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Weighting):
    """sigmoid(bias - log SNR) on the error of eps: Kingma & Gao 2023; Hoogeboom et al. 2024.

    Args:
        bias: the log-SNR at which the weight has fallen to one half.
    """

    bias: float = 0.0

    def __call__(self, sigma: Tensor) -> Tensor:
        log_snr = -2 * sigma.log()
        return log_snr.exp() * torch.sigmoid(self.bias - log_snr)
