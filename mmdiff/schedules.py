"""Noise schedules: quantile functions from t in [0, 1] to the noise-to-signal ratio sigma.

One function serves three purposes. A uniform t gives the noise levels of a training batch (``draw``), a
decreasing linspace gives the steps of a sampler (``grid``), and the density of the levels is its derivative.
Every Gaussian path x_t = alpha_t x0 + s_t eps enters through sigma = s_t / alpha_t alone.
All arithmetic is float64 on the CPU, so that a grid costs no device synchronization.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.errors import check_at_least


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule(ABC):
    """A range of noise levels and how they are spaced.

    Args:
        sigma_min: the smallest level drawn in training; sampling always ends at exactly 0.
        sigma_max: the largest level, where sampling starts.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        if not 0 <= self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"schedule needs 0 <= sigma_min < sigma_max < inf, got {self.sigma_min=:g} and {self.sigma_max=:g}."
            )

    @abstractmethod
    def quantile(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Noise level at t in [0, 1]; increasing, from sigma_min to sigma_max."""

    def draw(self, n: int, *, rank: int = 0, world: int = 1) -> Float[Tensor, "{n}"]:
        """Noise levels of one training batch, stratified over the ``n * world`` examples of the global batch.

        Args:
            n: examples on this process.
            rank: index of this process.
            world: number of processes.
        """
        strata = torch.arange(n, dtype=torch.float64) * world + rank
        return self.quantile((strata + torch.rand(n, dtype=torch.float64)) / (n * world))

    def grid(self, steps: int) -> Float[Tensor, "{steps}+1"]:
        """Decreasing noise levels of a sampler with that many steps; the last one is exactly 0."""
        check_at_least(1, steps=steps)
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return torch.cat([self.quantile(t[:-1]), torch.zeros(1, dtype=torch.float64)])


def _check_positive(schedule: NoiseSchedule, name: str) -> None:
    if getattr(schedule, name) <= 0:
        kind = type(schedule).__name__
        raise ValueError(f"schedule.{name} must be positive for {kind}, got {getattr(schedule, name):g}.")


@dataclass(frozen=True, kw_only=True)
class _Transformed(NoiseSchedule):
    """A schedule that is uniform in some increasing function of sigma."""

    @abstractmethod
    def transform(self, sigma: Tensor) -> Tensor:
        """The coordinate in which the levels are evenly spaced."""

    @abstractmethod
    def inverse(self, u: Tensor) -> Tensor:
        """The level at a value of that coordinate."""

    def quantile(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        t = t.to(torch.float64)
        low, high = self.transform(torch.tensor([self.sigma_min, self.sigma_max], dtype=torch.float64))
        return self.inverse(torch.lerp(low, high, t)).clamp(self.sigma_min, self.sigma_max)


@dataclass(frozen=True, kw_only=True)
class Karras(_Transformed):
    """Uniform in sigma^(1/rho): Karras et al. 2022 (EDM), equation 5."""

    rho: float = 7.0

    def __post_init__(self):
        super().__post_init__()
        _check_positive(self, "rho")

    def transform(self, sigma: Tensor) -> Tensor:
        return sigma ** (1 / self.rho)

    def inverse(self, u: Tensor) -> Tensor:
        return u**self.rho


@dataclass(frozen=True, kw_only=True)
class LogLinear(_Transformed):
    """Uniform in log sigma (log-SNR): the variance-exploding path of Song et al. 2021, also called exponential."""

    def __post_init__(self):
        super().__post_init__()
        _check_positive(self, "sigma_min")

    def transform(self, sigma: Tensor) -> Tensor:
        return sigma.log()

    def inverse(self, u: Tensor) -> Tensor:
        return u.exp()


@dataclass(frozen=True, kw_only=True)
class LogNormal(_Transformed):
    """log sigma ~ Normal(mean, std), truncated: EDM table 1, and logit-normal flow time (Esser et al. 2024)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        super().__post_init__()
        _check_positive(self, "std")

    def transform(self, sigma: Tensor) -> Tensor:
        return torch.special.ndtr((sigma.log() - self.mean) / self.std)

    def inverse(self, u: Tensor) -> Tensor:
        return (self.mean + self.std * torch.special.ndtri(u)).exp()


@dataclass(frozen=True, kw_only=True)
class Flow(_Transformed):
    """Uniform in flow time t = sigma / (1 + sigma) of the path (1 - t) x0 + t eps: Lipman et al. 2023, Liu et al. 2023.

    Args:
        shift: multiplies sigma, so that larger states spend more time at high noise (Esser et al. 2024, equation 23).
    """

    sigma_min: float = 0.0
    sigma_max: float = 1e3
    shift: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _check_positive(self, "shift")

    def transform(self, sigma: Tensor) -> Tensor:
        return sigma / (self.shift + sigma)

    def inverse(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 - u)


@dataclass(frozen=True, kw_only=True)
class Cosine(_Transformed):
    """Uniform in the angle atan(sigma): Nichol & Dhariwal 2021, with the shift of Hoogeboom et al. 2023."""

    shift: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _check_positive(self, "shift")

    def transform(self, sigma: Tensor) -> Tensor:
        return torch.atan(sigma / self.shift)

    def inverse(self, u: Tensor) -> Tensor:
        return self.shift * torch.tan(u)


@dataclass(frozen=True, kw_only=True)
class LinearVP(_Transformed):
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
class ScaledLinearVP(_Transformed):
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
class Sigmoid(_Transformed):
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
        _check_positive(self, "temperature")
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


@dataclass(frozen=True, kw_only=True)
class Laplace(_Transformed):
    """log sigma ~ Laplace(mean, scale), truncated: Hang et al. 2024."""

    mean: float = 0.0
    scale: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        _check_positive(self, "scale")
        _check_positive(self, "sigma_min")

    def transform(self, sigma: Tensor) -> Tensor:
        z = (sigma.log() - self.mean) / self.scale
        return -z.sign() * torch.expm1(-z.abs()) / 2

    def inverse(self, u: Tensor) -> Tensor:
        return (self.mean - self.scale * u.sign() * torch.log1p(-2 * u.abs())).exp()


@dataclass(frozen=True, kw_only=True)
class Angular(_Transformed):
    """Steps in the angle atan(sigma) that shorten towards both of its ends: the grid of `mmdiff.solvers.angular`.

    Args:
        power: of the shortening; 1 is `Cosine`.
    """

    power: float = 1.3

    def __post_init__(self):
        super().__post_init__()
        _check_positive(self, "power")

    def transform(self, sigma: Tensor) -> Tensor:
        low, high = math.atan(self.sigma_min), math.atan(self.sigma_max)
        share = (sigma.atan() - low).clamp(min=0) ** (1 / self.power)
        return share / (share + (high - sigma.atan()).clamp(min=0) ** (1 / self.power))

    def inverse(self, u: Tensor) -> Tensor:
        low, high = math.atan(self.sigma_min), math.atan(self.sigma_max)
        share = u**self.power / (u**self.power + (1 - u) ** self.power)
        return torch.tan(low + (high - low) * share)


@dataclass(frozen=True, kw_only=True)
class Resized(NoiseSchedule):
    """Another schedule with levels for examples of another size: multiplied by sqrt(size / reference).

    Noise hides as much of neighbors that agree as it did of fewer of them: Hoogeboom et al. 2023, section 2.1; Esser
    et al. 2024, equation 23.

    Args:
        sigma_min: follows from ``base``.
        sigma_max: follows from ``base``.
        base: the schedule for examples of the reference size.
        size: positions of an example.
        reference: positions of the examples that ``base`` is for.
    """

    sigma_min: float = field(init=False)
    sigma_max: float = field(init=False)
    base: NoiseSchedule
    size: int
    reference: int

    def __post_init__(self):
        check_at_least(1, size=self.size, reference=self.reference)
        object.__setattr__(self, "sigma_min", self._factor * self.base.sigma_min)
        object.__setattr__(self, "sigma_max", self._factor * self.base.sigma_max)
        super().__post_init__()

    @property
    def _factor(self) -> float:
        return math.sqrt(self.size / self.reference)

    def quantile(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        return self._factor * self.base.quantile(t)
