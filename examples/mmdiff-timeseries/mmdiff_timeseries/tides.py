"""Made-up tides: series of three channels that share factors, which are known exactly.

With u = i / n for moments i = 0 ... n - 1, a random phase p and amplitude a,

    level     =  a sin(2 pi (frequency u + p))                               at one harbor
    far level =  0.7 a sin(2 pi (frequency u + p - lag))                     at another, where the tide comes later
    pressure  =  trend (u - 1/2) + a / 2 cos(2 pi (2 frequency u + 2 p))     a trend, and twice the frequency

each with noise of standard deviation `NOISE`. The conditions are ``frequency``, in periods; ``lag``, in periods;
``trend``, the rise over the series. Of half the series each channel lacks one run of values.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.utils.data import Dataset

from mmdiff.errors import check_at_least

FREQUENCY, LAG, TREND, AMPLITUDE = (2.0, 8.0), (0.0, 0.5), (-2.0, 2.0), (0.7, 1.3)
"""Ranges of the factors."""

NOISE = 0.03
LONGEST = 0.25
"""Longest run of missing values, as a share of the series."""


class Tides(Dataset):
    """Series i, (3, ``length``), is a function of ``(seed, i)`` alone; missing values are nan.

    Args:
        size: of the data set.
        length: of a series.
        seed: of another data set of the same law.
        missing: share of the series with missing values.
    """

    def __init__(self, *, size: int = 8192, length: int = 128, seed: int = 0, missing: float = 0.5):
        check_at_least(1, size=size)
        check_at_least(32, length=length)
        self.size, self.length, self.seed, self.missing = size, length, seed, missing

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 n"], dict[str, Any]]:
        generator = Generator().manual_seed((self.seed << 32) + range(self.size)[index])

        def draw(low: float, high: float) -> float:
            return low + (high - low) * torch.rand((), generator=generator).item()

        cond = {"frequency": draw(*FREQUENCY), "lag": draw(*LAG), "trend": draw(*TREND)}
        series = tides(self.length, **cond, phase=draw(0, 1), amplitude=draw(*AMPLITUDE))
        series = series + NOISE * torch.randn(series.shape, generator=generator)
        if draw(0, 1) < self.missing:
            for channel in series:
                run = int(draw(1, LONGEST * self.length))
                start = int(draw(0, self.length - run))
                channel[start : start + run] = math.nan
        return series, cond


def tides(
    length: int, *, frequency: float, lag: float, trend: float, phase: float, amplitude: float
) -> Float[Tensor, "3 n"]:
    """The three channels without noise."""
    u = torch.arange(length) / length
    turns = frequency * u + phase
    level = torch.sin(2 * math.pi * turns)
    far = 0.7 * torch.sin(2 * math.pi * (turns - lag))
    pressure = 0.5 * torch.cos(4 * math.pi * turns)
    return amplitude * torch.stack([level, far, pressure]) + trend * torch.stack([0 * u, 0 * u, u - 0.5])
