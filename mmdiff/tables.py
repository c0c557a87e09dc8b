"""Noise schedules of models trained elsewhere, read from a table into the one coordinate sigma."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.errors import DataError
from mmdiff.schedules import NoiseSchedule


@dataclass(frozen=True, kw_only=True)
class Discrete(NoiseSchedule):
    """Levels between those of a table: log sigma is linear in t from one to the next.

    Args:
        sigma_min: the first of the table.
        sigma_max: the last of the table.
        table: increasing levels, equally spaced in t.
    """

    sigma_min: float = field(init=False)
    sigma_max: float = field(init=False)
    table: tuple[float, ...]

    def __post_init__(self):
        rising = all(low < high for low, high in zip(self.table, self.table[1:], strict=False))
        if len(self.table) < 2 or not rising or self.table[0] <= 0:
            raise ValueError("schedule.table must hold at least two positive, increasing levels.")
        object.__setattr__(self, "sigma_min", self.table[0])
        object.__setattr__(self, "sigma_max", self.table[-1])
        super().__post_init__()

    def quantile(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        logs = torch.tensor(self.table, dtype=torch.float64).log()
        place = t.to(torch.float64) * (len(logs) - 1)
        low = place.floor().clamp(max=len(logs) - 2).long()
        return torch.lerp(logs[low], logs[low + 1], place - low).exp().clamp(self.sigma_min, self.sigma_max)


def from_diffusers(file: str | Path, *, most: float = 1e3) -> Discrete:
    """The training levels of a diffusers ``scheduler_config.json``.

    Args:
        file: of a scheduler with betas, or with the shift of a flow.
        most: ends the table in place of its levels above, such as the infinite one of zero terminal SNR.

    Raises:
        DataError: if the file cannot be read or names a schedule that is not known.
    """
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        steps = int(config.get("num_train_timesteps", 1000))
        sigmas = _flow(config, steps) if "Flow" in config["_class_name"] else _betas(config, steps)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(file, f"is no scheduler configuration that can be read ({error!r})") from error
    below = sigmas[sigmas < most].tolist()
    return Discrete(table=(*below, most) if len(below) < len(sigmas) else tuple(below))


def _flow(config: dict[str, Any], steps: int) -> Tensor:
    if config.get("use_dynamic_shifting"):
        raise ValueError("a shift that depends on the size: use schedule=resized")
    shift = config.get("shift", 1.0)
    time = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return shift * time / (1 - time)


def _betas(config: dict[str, Any], steps: int) -> Tensor:
    """sigma of the cumulative product of 1 - beta; with zero terminal SNR as in Lin et al. 2024, algorithm 1."""
    kind = config.get("beta_schedule", "linear")
    first, last = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
    elif kind == "linear":
        betas = torch.linspace(first, last, steps, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=torch.float64) ** 2
    elif kind == "squaredcos_cap_v2":
        angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2
        kept = angle.cos() ** 2
        betas = (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
    else:
        raise ValueError(f"beta_schedule {kind}; known are linear, scaled_linear, squaredcos_cap_v2")
    alpha = torch.cumprod(1 - betas, 0).sqrt()
    if config.get("rescale_betas_zero_snr"):
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return (1 - alpha**2).clamp(min=0).sqrt() / alpha
