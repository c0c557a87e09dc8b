"""Video as a modality: films, clips of frames, pixels."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Generator, Tensor
from torchmetrics import Metric

from mmdiff.errors import check_at_least
from mmdiff.metrics.kernel import KernelDistance
from mmdiff.modality import Modality
from mmdiff.regions import region, span
from mmdiff_video import media as files
from mmdiff_video.metrics import motion_statistics, untrained_conv3d

WORDS = ("first", "first:K", "last", "last:K", "both", "every:K")


class Video(Modality):
    """Clips of one length, frame rate and size; an image is a clip of one frame.

    Media are RGB frames (3, frames, height, width), uint8; a model sees them standardized per color.

    Args:
        frames: of a clip. Films are cropped in time; the missing frames of shorter ones carry no loss.
        fps: frames per second; films of other rates, constant or not, are resampled by their time stamps.
        height: in pixels; frames are scaled to cover the size and cropped at the center.
        width: in pixels.
        suffix: of the files it writes: .mp4 (h264) or .gif.
        mean: of each color in [-1, 1] before standardization, learned by `fit`; 0 if not given.
        std: of each color before standardization, learned by `fit`; 1 if not given.
    """

    suffixes = files.SUFFIXES
    time = -3
    ragged = -3

    def __init__(
        self,
        *,
        frames: int = 16,
        fps: float = 8.0,
        height: int = 64,
        width: int = 64,
        suffix: str = ".mp4",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        check_at_least(1, **{"modality.frames": frames, "modality.height": height, "modality.width": width})
        if fps <= 0:
            raise ValueError(f"modality.fps must be positive, got {fps:g}.")
        if suffix not in (".mp4", ".gif"):
            raise ValueError(f"modality.suffix must be .mp4 or .gif, got {suffix}.")
        self.fps = fps
        self.suffix = suffix
        self.shape = (3, frames, height, width)
        self.mean = self._per_color(mean, "mean", 0.0)
        self.std = self._per_color(std, "std", 1.0)
        if (self.std <= 0).any():
            raise ValueError(f"modality.std must be positive, got {self.std.min().item():g}.")

    def _per_color(self, values: Sequence[float] | None, name: str, default: float) -> Float[Tensor, "3 1 1 1"]:
        if values is not None and len(values) != 3:
            raise ValueError(f"modality.{name} has {len(values)} values for 3 colors.")
        return torch.tensor([default] * 3 if values is None else list(values)).reshape(3, 1, 1, 1)

    def read(self, path: Path, generator: Generator | None = None) -> UInt8[Tensor, "3 t h w"]:
        """At most one clip; a film that is shorter gives all it has."""
        frames, *size = self.shape[1:]
        spare = files.probe(path).seconds - frames / self.fps
        start = spare * torch.rand((), generator=generator).item() if generator and spare > 0 else 0.0
        return files.read(path, frames=frames, fps=self.fps, size=(size[0], size[1]), start=start)

    def write(self, media: UInt8[Tensor, "3 t h w"], path: Path) -> None:
        """Write mp4 or gif, by the suffix."""
        files.write(media, path, self.fps)

    def encode(self, media: UInt8[Tensor, "*b 3 t h w"]) -> Float[Tensor, "*b 3 f h w"]:
        """Standardized colors; missing frames are gray."""
        x = (media / 127.5 - 1 - self.mean.to(media.device)) / self.std.to(media.device)
        return torch.nn.functional.pad(x, (0, 0, 0, 0, 0, self.shape[1] - media.shape[-3]))

    def decode(self, x: Float[Tensor, "*b 3 t h w"]) -> UInt8[Tensor, "*b 3 t h w"]:
        """The inverse of `encode`, exact for what was encoded."""
        pixels = (x * self.std.to(x) + self.mean.to(x) + 1) * 127.5
        return pixels.round().clamp(0, 255).to(torch.uint8)

    def mask(self, media: UInt8[Tensor, "3 t h w"]) -> Bool[Tensor, "3 f h w"] | None:
        """The frames that the media have."""
        if media.shape[1] >= self.shape[1]:
            return None
        return (torch.arange(self.shape[1]) < media.shape[1]).reshape(1, -1, 1, 1).expand(self.shape)

    def place(
        self, media: UInt8[Tensor, "3 t h w"], known: str | None = None
    ) -> tuple[Float[Tensor, "3 f h w"], Bool[Tensor, "1 f #h #w"]]:
        """The clip and the frames, or the rectangles of them, to keep.

        Args:
            media: a whole clip; or the frames to keep alone, which then go where they belong.
            known: see `part`; None for all that are given.
        """
        frames, given = self.shape[1], media.shape[1]
        if known is None:
            keep = (torch.arange(frames) < given)[None, :, None, None]
        else:
            keep = region(str(known), lambda word: self.part(word, media)) & torch.ones(1, frames, 1, 1).bool()
        if 0 < given != frames and known is not None:
            count, whole = int(keep.any((2, 3)).sum()), media.new_zeros(self.shape)
            if given != count:
                raise ValueError(
                    f"known={known} keeps {count} of {frames} frames, but {given} are given: give {frames} or {count}."
                )
            whole[:, keep.any((0, 2, 3))] = media
            media = whole
        return self.encode(media), keep

    def part(self, word: str, media: UInt8[Tensor, "3 t h w"]) -> Bool[Tensor, "1 #f #h #w"]:
        """Frames, or a rectangle in all of them.

        ``first``, ``first:K`` frames, ``last``, ``last:K``, ``both`` ends, ``every:K`` for every K-th frame from the
        first on, ``frames:FROM:TO`` counted from 0; ``rows:FROM:TO`` and ``columns:FROM:TO`` in pixels from the top
        and the left.
        """
        frames, rows, columns = (torch.arange(size) for size in self.shape[1:])
        axes = {"rows": rows[None, None, :, None], "columns": columns[None, None, None]}
        named = _named(word, frames)
        if named is not None:
            return named[None, :, None, None]
        return span(word, {"frames": frames[None, :, None, None], **axes}, *WORDS)

    def operator(
        self, measured: str, media: UInt8[Tensor, "3 t h w"]
    ) -> Callable[[Float[Tensor, "b 3 f h w"]], Float[Tensor, "b 3 f *m"]]:
        """Also ``coarse:K``, for a film of low resolution: the means of K x K pixels."""
        match = re.fullmatch(r"coarse:(\d+)", measured)
        height, width = self.shape[2:]
        if not match:
            return super().operator(measured, media)
        size = int(match[1])
        if not size or height % size or width % size:
            raise ValueError(f"{measured} needs a size that divides {height} and {width} pixels.")
        return lambda x: torch.nn.functional.avg_pool3d(x, (1, size, size))

    def preview(self, media: UInt8[Tensor, "3 t h w"]) -> UInt8[Tensor, "3 h row"]:
        """A contact sheet: up to 16 frames in a row."""
        shown = media[:, torch.linspace(0, media.shape[1] - 1, min(media.shape[1], 16)).round().long()]
        return rearrange(shown, "c t h w -> c h (t w)")

    def metrics(self) -> dict[str, Metric]:
        """Kernel distances on weight-free features: of motion, which is blind to content, and of clips."""
        return {
            "motion_distance": KernelDistance(motion_statistics),
            "untrained_conv3d_distance": KernelDistance(untrained_conv3d),
        }

    def fit(self, media: Iterable[Tensor]) -> dict[str, Any]:
        """Mean and standard deviation of each color."""
        clips = [(clip / 127.5 - 1).double() for clip in media]
        count = sum(clip[0].numel() for clip in clips)
        mean = torch.stack([clip.sum((1, 2, 3)) for clip in clips]).sum(0) / count
        square = torch.stack([clip.square().sum((1, 2, 3)) for clip in clips]).sum(0) / count
        std = (square - mean**2).clamp(min=1e-4).sqrt()
        return {"mean": [float(f"{m:.5g}") for m in mean.tolist()], "std": [float(f"{s:.5g}") for s in std.tolist()]}


def _named(word: str, place: Tensor) -> Bool[Tensor, "f"] | None:
    """Frames by their word; None for a word that names no frames."""
    match = re.fullmatch(r"(first|last|both|every)(?::(\d+))?", word)
    count = int(match[2] or 1) if match else 0
    if not match or (match[1] == "both" and match[2]) or not 0 < count <= len(place):
        return None
    patterns = {
        "first": place < count,
        "last": place >= len(place) - count,
        "both": (place == 0) | (place == len(place) - 1),
        "every": place % count == 0,
    }
    return patterns[match[1]]
