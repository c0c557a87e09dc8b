"""What tides have in them, measured on the series alone: nothing is fitted to a model and no code is shared with it."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

TOLERANCES = {"frequency": 0.05, "lag": 0.05, "trend": 0.2}
"""Errors that count as right: of the frequency relative to what was asked, of lag and trend in their own units."""


def factors(series: Float[Tensor, "3 n"]) -> dict[str, float]:
    """Frequency and lag in periods, and trend, of a series without missing values.

    The frequency is that whose sine, cosine and constant leave least of the first channel unexplained; the lag is the
    difference of phase of the second channel at it; the trend is a regression on a line beside twice the frequency.
    """
    level, far, pressure = series.double()
    length = len(level)
    u = torch.arange(length, dtype=torch.float64) / length
    frequencies = torch.arange(1, 10, 0.02, dtype=torch.float64)
    waves = _waves(frequencies, u)
    solved = torch.linalg.lstsq(waves, level[None, :, None].expand(len(waves), -1, -1)).solution
    best = (waves @ solved - level[:, None]).square().sum((1, 2)).argmin()
    frequency = frequencies[best]
    phases = []
    for channel in (level, far):
        sine, cosine, _ = torch.linalg.lstsq(waves[best], channel[:, None]).solution[:, 0]
        phases.append(math.atan2(cosine, sine) / (2 * math.pi))
    line = torch.cat([_waves(2 * frequency[None], u)[0], u[:, None]], 1)
    trend = torch.linalg.lstsq(line, pressure[:, None]).solution[-1, 0]
    return {"frequency": frequency.item(), "lag": (phases[0] - phases[1]) % 1, "trend": trend.item()}


def _waves(frequencies: Float[Tensor, "f"], u: Float[Tensor, "n"]) -> Float[Tensor, "f n 3"]:
    """Sine, cosine and constant."""
    angle = 2 * math.pi * frequencies[:, None] * u
    return torch.stack([angle.sin(), angle.cos(), torch.ones_like(angle)], -1)


def errors(seen: dict[str, float], asked: dict[str, float]) -> dict[str, float]:
    """By how much factors miss what was asked, in the units of `TOLERANCES`; lags are at most half a period apart."""
    missed = {name: abs(seen[name] - asked[name]) for name in asked}
    missed["frequency"] /= asked["frequency"]
    missed["lag"] = min(missed["lag"], 1 - missed["lag"])
    return missed


class FactorAccuracy(Metric):
    """Shares of the generated series whose frequency, lag and trend are as asked (see `TOLERANCES`), and all three."""

    higher_is_better = True
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in (*TOLERANCES, "all", "count"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, media: Float[Tensor, "b 3 n"], *, real: bool, cond: dict[str, list[Any]]) -> None:
        """Measure a batch; real series, and those of which not all factors were asked, do not count."""
        for i, series in enumerate(media):
            asked = {name: cond[name][i] for name in TOLERANCES if cond.get(name)}
            if real or len(asked) < len(TOLERANCES) or None in asked.values():
                continue
            missed = errors(factors(series.cpu()), asked)
            right = {name: missed[name] <= tolerance for name, tolerance in TOLERANCES.items()}
            for name, value in (right | {"all": all(right.values()), "count": 1}).items():
                setattr(self, name, getattr(self, name) + value)

    def compute(self) -> dict[str, Tensor]:
        """The shares, by factor."""
        return {name: getattr(self, name) / self.count for name in (*TOLERANCES, "all")}
