"""Sound as a modality: files, waveforms, spectrograms."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Generator, Tensor
from torchmetrics import Metric

from mmdiff.metrics.kernel import KernelDistance
from mmdiff.modality import Modality
from mmdiff.regions import span
from mmdiff_audio import media as files
from mmdiff_audio.metrics import log_band_statistics
from mmdiff_audio.representations import STFT, Representation


class Audio(Modality):
    """Clips of sound of one rate, number of channels and length.

    Media are waveforms (channels, n), float32 in [-1, 1]; a model sees their representation, standardized per
    frequency bin.

    Args:
        representation: grid that the model works on; a complex STFT by default.
        rate: samples per second; files of other rates are resampled.
        channels: 1 mixes down to mono, 2 is stereo.
        seconds: length of a clip; longer files are cropped, shorter ones padded with silence that the loss ignores.
        mean: of each bin before standardization, learned by `fit`; 0 if not given.
        std: of each bin before standardization, learned by `fit`; 1 if not given.
    """

    suffixes = files.SUFFIXES
    suffix = ".wav"
    ragged = -1

    def __init__(
        self,
        representation: Representation | None = None,
        *,
        rate: int = 16000,
        channels: int = 1,
        seconds: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        if channels not in (1, 2):
            raise ValueError(f"modality.channels must be 1 or 2, got {channels}.")
        if seconds <= 0:
            raise ValueError(f"modality.seconds must be positive, got {seconds:g}.")
        if rate < 1:
            raise ValueError(f"modality.rate must be at least 1, got {rate}.")
        self.representation = representation or STFT()
        self.rate = rate
        self.channels = channels
        self.seconds = seconds
        self.length = round(rate * seconds)
        bins = self.representation.bins
        self.shape = (channels * self.representation.channels, bins, self.representation.frames(self.length))
        self.mean = self._per_bin(mean, "mean", 0.0)
        self.std = self._per_bin(std, "std", 1.0)
        if (self.std <= 0).any():
            raise ValueError(f"modality.std must be positive, got {self.std.min().item():g}.")

    def _per_bin(self, values: Sequence[float] | None, name: str, default: float) -> Float[Tensor, "f 1"]:
        bins = self.representation.bins
        if values is None:
            return torch.full((bins, 1), default)
        if len(values) != bins:
            raise ValueError(f"modality.{name} has {len(values)} values for a representation of {bins} bins.")
        return torch.tensor(list(values))[:, None]

    def read(self, path: Path, generator: Generator | None = None) -> Float[Tensor, "c n"]:
        """At most one clip; a file that is shorter gives all it has."""
        spare = files.probe(path).seconds - self.seconds
        start = spare * torch.rand((), generator=generator).item() if generator and spare > 0 else 0.0
        return files.read(path, self.rate, self.channels, start, self.seconds)

    def write(self, media: Float[Tensor, "c n"], path: Path) -> None:
        """Write wav or flac, by the suffix."""
        files.write(media, path, self.rate)

    def encode(self, media: Float[Tensor, "*b c n"]) -> Float[Tensor, "*b k f t"]:
        """Grid of (channels of the representation x channels of sound, bins, frames)."""
        wave = torch.nn.functional.pad(media, (0, self.length - media.shape[-1]))
        grid = self.representation.encode(wave)
        return ((grid - self.mean.to(grid)) / self.std.to(grid)).flatten(-4, -3)

    def decode(self, x: Float[Tensor, "*b k f t"]) -> Float[Tensor, "*b c n"]:
        """Waveforms of the modality's length."""
        grid = x.unflatten(-3, (self.channels, self.representation.channels))
        return self.representation.decode(grid * self.std.to(x) + self.mean.to(x), self.length)

    def mask(self, media: Float[Tensor, "c n"]) -> Bool[Tensor, "k f t"] | None:
        """Frames whose center lies inside the sound."""
        if media.shape[-1] >= self.length:
            return None
        centers = torch.arange(self.shape[-1]) * self.representation.hop
        return (centers < media.shape[-1]).expand(self.shape)

    def part(self, word: str, media: Float[Tensor, "c n"]) -> Bool[Tensor, "1 #f #t"]:
        """A time range ``seconds:FROM:TO``, by the centers of frames, or a band ``hertz:FROM:TO``, by those of bins."""
        centers = torch.arange(self.shape[-1]) * self.representation.hop / self.rate
        frequencies = self.representation.frequencies(self.rate)
        return span(word, {"seconds": centers[None, None], "hertz": frequencies[None, :, None]})

    def operator(
        self, measured: str, media: Float[Tensor, "c n"]
    ) -> Callable[[Float[Tensor, "b k f t"]], Float[Tensor, "b *m"]]:
        """Also ``unclipped``: the samples of a clipped wave below its peak, through `decode`; not linear."""
        if measured != "unclipped":
            return super().operator(measured, media)
        wave = torch.nn.functional.pad(media, (0, self.length - media.shape[-1]))
        whole = wave.abs() < 0.999 * wave.abs().max()
        return lambda x: self.decode(x) * whole.to(x)

    def preview(self, media: Float[Tensor, "c n"]) -> UInt8[Tensor, "3 h w"]:
        """Magnitudes in decibels over 80 dB, low frequencies at the bottom, 128 pixels high."""
        wave = media.mean(0).float().cpu()
        n_fft = 510
        window = torch.hann_window(n_fft)
        hop = max(len(wave) // 192, 1)
        magnitude = torch.stft(wave, n_fft, hop, window=window, pad_mode="constant", return_complex=True).abs()
        decibels = 20 * magnitude.clamp(min=1e-8).log10()
        level = ((decibels - decibels.max()) / 80 + 1).clamp(0, 1)
        level = level.unflatten(0, (128, 2)).mean(1).flip(0)
        colors = matplotlib.colormaps["magma"](level.numpy(), bytes=True)
        return torch.from_numpy(colors)[..., :3].permute(2, 0, 1)

    def metrics(self) -> dict[str, Metric]:
        """Kernel distance between sets of clips, on weight-free spectral statistics."""
        return {"kernel_distance": KernelDistance(partial(log_band_statistics, rate=self.rate))}

    def fit(self, media: Iterable[Tensor]) -> dict[str, Any]:
        """Mean and standard deviation of each bin, the latter at least 5 % of the largest."""
        plain = Audio(self.representation, rate=self.rate, channels=self.channels, seconds=self.seconds)
        grids = []
        for wave in media:
            frames = -(-wave.shape[-1] // self.representation.hop)
            grids.append(plain.encode(wave)[..., :frames])
        grid = torch.cat(grids, -1).double()
        std, mean = torch.std_mean(grid, dim=(0, 2))
        std = std.clamp(min=max(0.05 * std.max().item(), 1e-5))
        return {"mean": [float(f"{m:.5g}") for m in mean.tolist()], "std": [float(f"{s:.5g}") for s in std.tolist()]}
