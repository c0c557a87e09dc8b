"""Multichannel series with missing values as a modality: tables in csv and npz files."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Generator, Tensor
from torchmetrics import Metric

from mmdiff import DataError
from mmdiff.errors import check_at_least
from mmdiff.metrics.kernel import KernelDistance
from mmdiff.modality import Modality
from mmdiff_timeseries import files

COLORS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189))


class Series(Modality):
    """Series of some channels, of which values may be missing.

    Media are float32 of shape (channels, n); nan is missing. A model sees them as (1, channels, length), standardized,
    so that every value is a part of its own, which may be given or not. Missing values carry no loss in training; the
    straight line between their neighbors takes their place.

    Args:
        length: of a series. Longer files are cropped; the end of shorter ones is missing.
        channels: columns of the files.
        mean: of each channel in all data, learned by `fit`; 0 if not given.
        std: its standard deviation, learned by `fit`; 1 if not given.
    """

    suffixes = (".csv", ".npz")
    suffix = ".csv"
    time = -1
    ragged = -1

    def __init__(
        self,
        *,
        length: int = 128,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        check_at_least(1, **{"modality.length": length, "modality.channels": channels})
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise ValueError(f"modality.{name} must have {channels} numbers, one per channel, got {len(values)}.")
        self.length, self.channels = length, channels
        self.shape = (1, channels, length)
        self.mean = torch.tensor(mean or [0.0] * channels)[:, None]
        self.std = torch.tensor(std or [1.0] * channels)[:, None]

    def read(self, path: Path, generator: Generator | None = None) -> Float[Tensor, "c n"]:
        """At most ``length`` moments."""
        table = torch.from_numpy(files.read(path))
        if table.shape[1] != self.channels:
            raise DataError(path, f"has {table.shape[1]} columns, not {self.channels}; see modality.channels")
        spare = len(table) - self.length
        start = int(torch.randint(spare + 1, (), generator=generator)) if generator and spare > 0 else 0
        clip = table[start : start + self.length].T.contiguous()
        if clip.isnan().all():
            raise DataError(path, f"has no value in moments {start} to {start + clip.shape[1] - 1}")
        return clip

    def write(self, media: Float[Tensor, "c n"], path: Path) -> None:
        """Write csv or npz, by the suffix."""
        files.write(media.T.contiguous().numpy(), path)

    def encode(self, media: Float[Tensor, "*b c n"]) -> Float[Tensor, "*b 1 c m"]:
        """Standardized; what is missing lies on the line between its neighbors, or is 0 in an empty channel."""
        x = interpolate((media - self.mean) / self.std)
        return F.pad(x, (0, self.length - x.shape[-1]))[..., None, :, :]

    def decode(self, x: Float[Tensor, "*b 1 c n"]) -> Float[Tensor, "*b c n"]:
        """The inverse of `encode`, with nothing missing."""
        return x[..., 0, :, :] * self.std + self.mean

    def mask(self, media: Float[Tensor, "c n"]) -> Bool[Tensor, "1 c m"] | None:
        """The values that are not missing."""
        there = F.pad(~media.isnan(), (0, self.length - media.shape[-1]))
        return None if there.all() else there[None]

    def preview(self, media: Float[Tensor, "c n"]) -> UInt8[Tensor, "3 h w"]:
        """A curve per channel on white, 96 pixels high, three standard deviations up and down."""
        level = ((media - self.mean) / (3 * self.std)).clamp(-1, 1)
        rows = ((1 - interpolate(level)) / 2 * 95).round().long()
        picture = torch.full((3, 96, 2 * media.shape[-1]), 255, dtype=torch.uint8)
        for i, row in enumerate(rows):
            columns = torch.arange(len(row))[~media[i].isnan()]
            for shift in (0, 1):
                picture[:, row[columns], 2 * columns + shift] = torch.tensor(COLORS[i % 4], dtype=torch.uint8)[:, None]
        return picture

    def metrics(self) -> dict[str, Metric]:
        """The distance between two sets of series; 0 for sets that cannot be told apart."""
        return {"kernel_distance": KernelDistance(statistics)}

    def fit(self, media: Iterable[Tensor]) -> dict[str, Any]:
        """Mean and standard deviation of each channel, of the values that are there."""
        values = torch.cat(list(media), 1).double()
        mean = values.nanmean(1, keepdim=True).nan_to_num()
        std = (values - mean).square().nanmean(1).nan_to_num().sqrt().clamp(min=1e-6)
        return {"mean": mean[:, 0].tolist(), "std": std.tolist()}


def interpolate(series: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """Series whose nan are replaced: by the straight line between the values beside, by the nearest value at the ends.

    A series of nan alone becomes 0.
    """
    there, length = ~series.isnan(), series.shape[-1]
    place = torch.arange(length, device=series.device).expand(series.shape)
    before = torch.where(there, place, -1).cummax(-1).values
    after = torch.where(there, place, length).flip(-1).cummin(-1).values.flip(-1)
    before, after = torch.where(before < 0, after, before), torch.where(after == length, before, after)
    low, high = (series.gather(-1, side.clamp(0, length - 1)) for side in (before, after))
    share = (place - before) / (after - before).clamp(min=1)
    return torch.where(there, series, low + share * (high - low)).nan_to_num()


def statistics(media: Float[Tensor, "b c n"]) -> Float[Tensor, "b f"]:
    """What series are compared by: level and spread of each channel and of its differences, and how channels agree."""
    series = interpolate(media)
    steps = series.diff(dim=-1)
    parts = [series.mean(-1), series.std(-1), steps.abs().mean(-1), steps.std(-1)]
    centered = series - series.mean(-1, keepdim=True)
    return torch.cat([*parts, (centered @ centered.mT / series.shape[-1]).flatten(1)], 1)
