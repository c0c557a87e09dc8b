"""What a schedule is, what most of them share, and schedules for other sizes."""

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

    def grid(self, steps: int, start: float = 1.0) -> Float[Tensor, "{steps}+1"]:
        """Decreasing noise levels of a sampler with that many steps, from t = ``start`` on; the last is exactly 0."""
        check_at_least(1, steps=steps)
        t = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
        return torch.cat([self.quantile(t[:-1]), torch.zeros(1, dtype=torch.float64)])


def check_positive(schedule: NoiseSchedule, name: str) -> None:
    """Check a number of a schedule.

    Raises:
        ValueError: naming the schedule.
    """
    if getattr(schedule, name) <= 0:
        kind = type(schedule).__name__
        raise ValueError(f"schedule.{name} must be positive for {kind}, got {getattr(schedule, name):g}.")


@dataclass(frozen=True, kw_only=True)
class Transformed(NoiseSchedule):
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
