"""Noise levels for clouds of which a side is given."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.schedules import NoiseSchedule


@dataclass(frozen=True, kw_only=True)
class Sides:
    """In a share of the batches the points on one side of a random plane are given, at level 0.

    Whole batches, because a level for every point makes a step half as long again.

    Args:
        given: the share.
        least: of the points, on either side of the plane.
    """

    given: float = 0.3
    least: float = 0.2
    dims: ClassVar = (1,)

    def __post_init__(self):
        if not 0 <= self.given <= 1:
            raise ValueError(f"levels.given is a share of 1, got {self.given:g}.")
        if not 0 < self.least <= 0.5:
            raise ValueError(f"levels.least must lie in (0, 0.5], got {self.least:g}.")

    def __call__(
        self, sigma: Float[Tensor, "b"], x0: Float[Tensor, "b c n"], schedule: NoiseSchedule
    ) -> Float[Tensor, "b *parts"]:
        """Levels of each point (b, 1, n), or of each cloud (b,) where nothing is given."""
        if torch.rand(()) >= self.given:
            return sigma
        count, _, points = x0.shape
        direction = torch.randn(count, 3).to(x0)
        rank = torch.einsum("bcn,bc->bn", x0[:, :3], direction).argsort(1).argsort(1)
        share = self.least + (1 - 2 * self.least) * torch.rand(count, 1)
        given = rank < (share * points).to(x0.device)
        return torch.where(given, 0.0, sigma[:, None])[:, None]
