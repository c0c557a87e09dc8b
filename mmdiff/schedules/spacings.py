"""Levels that are spaced for their own sake: for a solver's steps, or a law of training levels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.schedules.base import Transformed, check_positive


@dataclass(frozen=True, kw_only=True)
class Karras(Transformed):
    """Uniform in sigma^(1/rho): Karras et al. 2022 (EDM), equation 5."""

    rho: float = 7.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "rho")

    def transform(self, sigma: Tensor) -> Tensor:
        return sigma ** (1 / self.rho)

    def inverse(self, u: Tensor) -> Tensor:
        return u**self.rho


@dataclass(frozen=True, kw_only=True)
class LogLinear(Transformed):
    """Uniform in log sigma (log-SNR): the variance-exploding path of Song et al. 2021, also called exponential."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "sigma_min")

    def transform(self, sigma: Tensor) -> Tensor:
        return sigma.log()

    def inverse(self, u: Tensor) -> Tensor:
        return u.exp()


@dataclass(frozen=True, kw_only=True)
class LogNormal(Transformed):
    """log sigma ~ Normal(mean, std), truncated: EDM table 1, and logit-normal flow time (Esser et al. 2024)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "std")

    def transform(self, sigma: Tensor) -> Tensor:
        return torch.special.ndtr((sigma.log() - self.mean) / self.std)

    def inverse(self, u: Tensor) -> Tensor:
        return (self.mean + self.std * torch.special.ndtri(u)).exp()


@dataclass(frozen=True, kw_only=True)
class Laplace(Transformed):
    """log sigma ~ Laplace(mean, scale), truncated: Hang et al. 2024."""

    mean: float = 0.0
    scale: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "scale")
        check_positive(self, "sigma_min")

    def transform(self, sigma: Tensor) -> Tensor:
        z = (sigma.log() - self.mean) / self.scale
        return -z.sign() * torch.expm1(-z.abs()) / 2

    def inverse(self, u: Tensor) -> Tensor:
        return (self.mean - self.scale * u.sign() * torch.log1p(-2 * u.abs())).exp()


@dataclass(frozen=True, kw_only=True)
class Angular(Transformed):
    """Steps in the angle atan(sigma) that shorten towards both of its ends: the grid of `mmdiff.solvers.angular`.

    Args:
        power: of the shortening; 1 is `Cosine`.
    """

    power: float = 1.4

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "power")

    def transform(self, sigma: Tensor) -> Tensor:
        low, high = math.atan(self.sigma_min), math.atan(self.sigma_max)
        share = (sigma.atan() - low).clamp(min=0) ** (1 / self.power)
        return share / (share + (high - sigma.atan()).clamp(min=0) ** (1 / self.power))

    def inverse(self, u: Tensor) -> Tensor:
        low, high = math.atan(self.sigma_min), math.atan(self.sigma_max)
        share = u**self.power / (u**self.power + (1 - u) ** self.power)
        return torch.tan(low + (high - low) * share)
