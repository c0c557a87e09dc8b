"""Series of numbers as a modality: text files with one number per line."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchmetrics import Metric

from mmdiff import DataError
from mmdiff.errors import check_at_least
from mmdiff.metrics.kernel import KernelDistance
from mmdiff.modality import Modality


class PluginName(Modality):
    """Series of at most ``length`` numbers.

    Media are float32 of shape (1, n). A model sees them standardized; what is missing of shorter ones is zero.

    Args:
        length: of a series. Longer files are cropped, shorter ones padded with zeros that carry no loss.
        mean: of the numbers in all data, learned by `fit`; 0 if not given.
        std: their standard deviation, learned by `fit`; 1 if not given.
    """

    suffixes = (".txt",)
    suffix = ".txt"
    time = -1
    ragged = -1

    def __init__(self, *, length: int = 64, mean: float | None = None, std: float | None = None):
        check_at_least(1, **{"modality.length": length})
        self.length = length
        self.shape = (1, length)
        self.mean = 0.0 if mean is None else mean
        self.std = 1.0 if std is None else std

    def read(self, path: Path, generator: Generator | None = None) -> Tensor:
        """At most ``length`` numbers; a shorter file gives all it has."""
        try:
            numbers = [float(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise DataError(path, f"is not a list of numbers ({error})") from error
        series = torch.tensor([numbers])
        if not numbers or not series.isfinite().all():
            raise DataError(path, "holds no numbers" if not numbers else "holds a number that is not finite")
        spare = len(numbers) - self.length
        start = int(torch.randint(spare + 1, (), generator=generator)) if generator and spare > 0 else 0
        return series[:, start : start + self.length]

    def write(self, media: Tensor, path: Path) -> None:
        """One number per line."""
        path.write_text("".join(f"{number:.6g}\n" for number in media[0].tolist()), encoding="utf-8")

    def encode(self, media: Tensor) -> Tensor:
        """Standardized, then padded."""
        return F.pad((media - self.mean) / self.std, (0, self.length - media.shape[-1]))

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode`, but for the padding."""
        return x * self.std + self.mean

    def mask(self, media: Tensor) -> Tensor | None:
        """The numbers that the media have."""
        if media.shape[-1] == self.length:
            return None
        return (torch.arange(self.length) < media.shape[-1])[None]

    def preview(self, media: Tensor) -> Tensor:
        """A curve, black on white, 64 pixels high; the picture spans three standard deviations up and down."""
        level = ((media[0] - self.mean) / (3 * self.std)).clamp(-1, 1)
        picture = torch.full((3, 64, media.shape[-1]), 255, dtype=torch.uint8)
        picture[:, ((1 - level) / 2 * 63).round().long(), torch.arange(media.shape[-1])] = 0
        return picture

    def metrics(self) -> dict[str, Metric]:
        """The distance between two sets of series; 0 for sets that cannot be told apart."""
        return {"kernel_distance": KernelDistance(statistics)}

    def fit(self, media: Iterable[Tensor]) -> dict[str, Any]:
        """Mean and standard deviation of all numbers."""
        numbers = torch.cat([series.flatten() for series in media]).double()
        return {"mean": numbers.mean().item(), "std": numbers.std(correction=0).clamp(min=1e-6).item()}


def statistics(media: Tensor) -> Tensor:
    """What series (b, 1, n) are compared by, (b, 4): level and spread of the numbers and of their differences."""
    series = media[:, 0]
    steps = series.diff(dim=1)
    return torch.stack([series.mean(1), series.std(1), steps.abs().mean(1), steps.std(1)], 1)
