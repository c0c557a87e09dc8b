"""Noise levels that differ between the parts of a training example.

A model that has seen some parts clean and others noisy can complete what is given: a sequence from its beginning, a
whole from one side of it. Parts lie along one dimension of an example: moments, columns, points.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmdiff.errors import check_at_least
from mmdiff.schedules import NoiseSchedule


@dataclass(frozen=True, kw_only=True)
class PerPart:
    """A share of the examples with given parts, a share with a level for every part, one level for the others.

    Args:
        dim: dimension of an example along which its parts lie, 0 for the channels.
        given: share of the examples of which some parts are given, at level 0: the first ones, the last ones, both
            ends, or every k-th.
        independent: share of the examples whose parts draw their levels independently: diffusion forcing,
            Chen et al. 2024.
    """

    dim: int
    given: float = 0.3
    independent: float = 0.2

    def __post_init__(self):
        check_at_least(0, **{"levels.dim": self.dim})
        if min(self.given, self.independent) < 0 or self.given + self.independent > 1:
            raise ValueError(
                f"levels.given and levels.independent are shares of 1, got {self.given:g} and {self.independent:g}."
            )

    def __call__(
        self, sigma: Float[Tensor, "b"], x0: Float[Tensor, "b *d"], schedule: NoiseSchedule
    ) -> Float[Tensor, "b *parts"]:
        """Levels with the dimensions of ``x0``, of size 1 but along the parts; ``sigma`` is what one level would be."""
        count, parts = len(x0), x0.shape[1 + self.dim]
        u = torch.rand(count, 1)
        own = schedule.quantile(torch.rand(count, parts, dtype=torch.float64)).to(sigma)
        levels = torch.where((u < self.independent).to(sigma.device), own, sigma[:, None])
        given = (u > 1 - self.given) & given_parts(count, parts)
        levels = torch.where(given.to(sigma.device), 0.0, levels)
        shape = [count] + [1] * (x0.ndim - 1)
        shape[1 + self.dim] = parts
        return levels.reshape(shape)


def given_parts(count: int, parts: int) -> Bool[Tensor, "{count} {parts}"]:
    """For each of ``count`` examples a random pattern of given parts, never all of them (none where parts is 1)."""
    place = torch.arange(parts)
    length = torch.randint(1, max(parts, 2), (count, 1))
    ends = (place == 0) | (place == parts - 1)
    every = place % length.clamp(min=2) == 0
    patterns = torch.stack([place < length, place >= parts - length, ends.expand(count, -1), every], 1)
    chosen = patterns[torch.arange(count), torch.randint(4, (count,))]
    return chosen & ~chosen.all(1, keepdim=True)
