"""Noise levels that differ between the parts of a training example.

A model that has seen some parts clean and others noisy can complete what is given: a sequence from its beginning, a
whole from one side of it. Parts lie along one dimension of an example: moments, columns, points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmdiff.errors import check_at_least
from mmdiff.schedules import NoiseSchedule

SHARES = ("given", "independent", "rolling")


@dataclass(frozen=True, kw_only=True)
class PerPart:
    """A share of the examples with given parts, two shares with a level for every part, one level for the others.

    Args:
        dim: dimension of an example along which its parts lie, 0 for the channels.
        given: share of the examples of which some parts are given, at level 0: the first ones, the last ones, both
            ends, or every k-th.
        independent: share of the examples whose parts draw their levels independently: diffusion forcing,
            Chen et al. 2024.
        rolling: share of the examples whose levels rise from part to part at a random rate, from parts that are given
            to parts at the highest level: what sampling with a ``lag`` meets, Ruhe et al. 2024.
        rates: least and greatest rise from part to part, as a share of the training levels.
    """

    dim: int
    given: float = 0.3
    independent: float = 0.2
    rolling: float = 0.0
    rates: Sequence[float] = (0.0, 0.4)

    def __post_init__(self):
        check_at_least(0, **{"levels.dim": self.dim})
        shares = (self.given, self.independent, self.rolling)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            names = ", ".join("levels.{} {:g}".format(*item) for item in zip(SHARES, shares, strict=True))
            raise ValueError(f"the shares of examples must not be negative and at most 1 together, got {names}")
        if len(self.rates) != 2 or not 0 <= self.rates[0] <= self.rates[1]:
            raise ValueError(
                f"levels.rates must be two numbers, the first at least 0 and not the greater, got {self.rates}"
            )

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions of an example along which levels differ."""
        return (self.dim,)

    def __call__(
        self, sigma: Float[Tensor, "b"], x0: Float[Tensor, "b *d"], schedule: NoiseSchedule
    ) -> Float[Tensor, "b *parts"]:
        """Levels with the dimensions of ``x0``, of size 1 but along the parts; ``sigma`` is what one level would be."""
        count, parts = len(x0), x0.shape[1 + self.dim]
        u = torch.rand(count, 1)
        own = schedule.quantile(torch.rand(count, parts, dtype=torch.float64)).to(sigma)
        rising = rising_levels(count, parts, schedule, self.rates).to(sigma)
        levels = torch.where((u < self.independent).to(sigma.device), own, sigma[:, None])
        levels = torch.where(
            ((u >= self.independent) & (u < self.independent + self.rolling)).to(sigma.device), rising, levels
        )
        given = (u > 1 - self.given) & given_parts(count, parts)
        levels = torch.where(given.to(sigma.device), 0.0, levels)
        shape = [count] + [1] * (x0.ndim - 1)
        shape[1 + self.dim] = parts
        return levels.reshape(shape)


def given_parts(count: int, parts: int) -> Bool[Tensor, "{count} {parts}"]:
    """For each of ``count`` examples a random pattern of given parts, never all of them (none where parts is 1).

    The first ones, the last ones, both ends, or every k-th; how many or which k is drawn with probability 1/k, since
    the fewer are given, the more there is to learn.
    """
    place = torch.arange(parts)
    length = torch.multinomial(1 / torch.arange(1.0, max(parts, 2)), count, replacement=True)[:, None] + 1
    ends = (place == 0) | (place == parts - 1)
    every = place % length.clamp(min=2) == 0
    patterns = torch.stack([place < length, place >= parts - length, ends.expand(count, -1), every], 1)
    chosen = patterns[torch.arange(count), torch.randint(4, (count,))]
    return chosen & ~chosen.all(1, keepdim=True)


def rising_levels(
    count: int, parts: int, schedule: NoiseSchedule, rates: Sequence[float]
) -> Float[Tensor, "{count} {parts}"]:
    """Levels with a quantile that rises along the parts, by a random rate, and crosses a uniform one at a random part.

    Below the schedule's range a part is given, at level 0; at its upper end it has the highest level.
    """
    u, rate = torch.rand(count, 1, dtype=torch.float64), torch.empty(count, 1, dtype=torch.float64).uniform_(*rates)
    turn = torch.randint(parts, (count, 1))
    quantile = u + rate * (torch.arange(parts) - turn)
    return schedule.quantile(quantile.clamp(0, 1)).where(quantile > 0, 0.0)
