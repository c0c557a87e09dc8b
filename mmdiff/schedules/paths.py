"""Levels that are even in the time of a published process."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.schedules.base import Transformed, check_positive


@dataclass(frozen=True, kw_only=True)
class Flow(Transformed):
    """Uniform in flow time t = sigma / (1 + sigma) of the path (1 - t) x0 + t eps: Lipman et al. 2023, Liu et al. 2023.

    Args:
        shift: multiplies sigma, so that larger states spend more time at high noise (Esser et al. 2024, equation 23).
    """

    sigma_min: float = 0.0
    sigma_max: float = 1e3
    shift: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "shift")

    def transform(self, sigma: Tensor) -> Tensor:
        return sigma / (self.shift + sigma)

    def inverse(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 - u)


@dataclass(frozen=True, kw_only=True)
class Cosine(Transformed):
    """Uniform in the angle atan(sigma): Nichol & Dhariwal 2021, with the shift of Hoogeboom et al. 2023."""

    shift: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "shift")

    def transform(self, sigma: Tensor) -> Tensor:
        return torch.atan(sigma / self.shift)

    def inverse(self, u: Tensor) -> Tensor:
        return self.shift * torch.tan(u)


@dataclass(frozen=True, kw_only=True)
class LinearVP(Transformed):
    """Uniform in the time of the variance-preserving process with linear beta: Ho et al. 2020, Song et al. 2021.

    Args:
        beta_min: beta at time 0.
        beta_max: beta at time 1.
    """

    sigma_max: float = 152.0
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(f"LinearVP needs 0 < beta_min < beta_max, got {self.beta_min=:g} and {self.beta_max=:g}.")

    def transform(self, sigma: Tensor) -> Tensor:
        # Solves log(1 + sigma^2) = beta_min t + (beta_max - beta_min) t^2 / 2 without cancellation at small sigma.
        log_snr = torch.log1p(sigma**2)
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * log_snr)
        return 2 * log_snr / (root + self.beta_min)

    def inverse(self, u: Tensor) -> Tensor:
        return torch.expm1(self.beta_min * u + (self.beta_max - self.beta_min) * u**2 / 2).sqrt()


@dataclass(frozen=True, kw_only=True)
class ScaledLinearVP(Transformed):
    """Uniform in the time of the variance-preserving process whose sqrt(beta) is linear: Rombach et al. 2022.

    Args:
        beta_min: beta at time 0.
        beta_max: beta at time 1.
    """

    sigma_max: float = 14.6
    beta_min: float = 0.85
    beta_max: float = 12.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(
                f"ScaledLinearVP needs 0 < beta_min < beta_max, got {self.beta_min=:g} and {self.beta_max=:g}."
            )

    def transform(self, sigma: Tensor) -> Tensor:
        # Solves log(1 + sigma^2) = (r^3 - a^3) / (3 (b - a)) for r, the square root of beta, linear in time.
        a, slope = self._root()
        grown = torch.log1p(sigma**2) * 3 * slope
        r = (a**3 + grown) ** (1 / 3)
        return grown / (slope * (r**2 + r * a + a**2))

    def inverse(self, u: Tensor) -> Tensor:
        a, slope = self._root()
        return torch.expm1(u * (a**2 + a * slope * u + slope**2 * u**2 / 3)).sqrt()

    def _root(self) -> tuple[float, float]:
        return math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Transformed):
    """alpha^2 a sigmoid of time between start and end: Jabri et al. 2022, with the temperature of Chen 2023.

    Args:
        start: the sigmoid's argument at time 0.
        end: its argument at time 1.
        temperature: divides the argument.
    """

    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "temperature")
        if not self.start < self.end:
            raise ValueError(f"Sigmoid needs start < end, got {self.start=:g} and {self.end=:g}.")

    def transform(self, sigma: Tensor) -> Tensor:
        low, high = self._ends()
        level = low + (high - low) / (1 + sigma**2)  # sigmoid(-argument)
        return -self.temperature * torch.logit(level)

    def inverse(self, u: Tensor) -> Tensor:
        low, high = self._ends()
        kept = (torch.sigmoid(-u / self.temperature) - low) / (high - low)
        return (1 / kept - 1).clamp(min=0).sqrt()

    def _ends(self) -> tuple[float, float]:
        return 1 / (1 + math.exp(self.end / self.temperature)), 1 / (1 + math.exp(self.start / self.temperature))
