"""Noise levels with which a model learns to fill gaps."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmdiff.schedules import NoiseSchedule


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """A share of the examples has given values, at level 0; the others have one level.

    Args:
        given: the share.
    """

    given: float = 0.4

    def __post_init__(self):
        if not 0 <= self.given <= 1:
            raise ValueError(f"levels.given must lie between 0 and 1, got {self.given:g}.")

    def __call__(
        self, sigma: Float[Tensor, "b"], x0: Float[Tensor, "b 1 c n"], schedule: NoiseSchedule
    ) -> Float[Tensor, "b 1 c n"]:
        """Levels for every value, from one level for each example."""
        count, _, channels, length = x0.shape
        given = known_values(count, channels, length) & (torch.rand(count, 1, 1) < self.given)
        return torch.where(given[:, None].to(sigma.device), 0.0, sigma[:, None, None, None])


def known_values(count: int, channels: int, length: int) -> Bool[Tensor, "{count} {channels} {length}"]:
    """For each of ``count`` examples which values are known.

    In one half every channel has a gap of its own; in the other all have the same one, so that the end of a series is
    unknown in all its channels as often as its middle.
    """
    width = torch.rand(count, channels, 1) * length
    start = torch.rand(count, channels, 1) * (length + width) - width
    same = torch.rand(count, 1, 1) < 0.5
    width, start = (torch.where(same, part[:, :1], part) for part in (width, start))
    place = torch.arange(length)
    return (place < start) | (place >= start + width)
