"""Images as a modality: files of any size, squares of pixels."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Generator, Tensor
from torchmetrics import Metric

from mmdiff import DataError
from mmdiff.errors import check_at_least
from mmdiff.metrics.kernel import KernelDistance
from mmdiff.modality import Modality


class Picture(Modality):
    """Square images, gray or in color.

    Media are uint8 of shape (1 or 3, size, size). A model sees each channel standardized.

    Args:
        size: side in pixels. The middle square of a file is resized to it.
        color: red, green and blue, or one gray channel. Transparent files are put on white.
        mean: of each channel in all data, from 0 to 1, learned by `fit`; 0.5 if not given.
        std: its standard deviation, learned by `fit`; 0.25 if not given.
    """

    suffixes = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
    suffix = ".png"

    def __init__(
        self,
        *,
        size: int = 64,
        color: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        check_at_least(1, **{"modality.size": size})
        self.size = size
        self.mode, channels = ("RGB", 3) if color else ("L", 1)
        self.shape = (channels, size, size)
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise ValueError(f"modality.{name} must have {channels} numbers, one per channel, got {len(values)}.")
        self.mean = torch.tensor(mean or [0.5] * channels)[:, None, None]
        self.std = torch.tensor(std or [0.25] * channels)[:, None, None]

    def read(self, path: Path, generator: Generator | None = None) -> UInt8[Tensor, "c h w"]:
        """The middle square, upright as the camera was held; the same each time. Of an animation the first frame."""
        try:
            with Image.open(path) as file:
                if file.mode[0] in "IF":
                    raise DataError(path, f"has more than 8 bits per channel ({file.mode}); convert it")
                image = ImageOps.exif_transpose(file).convert("RGBA")
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise DataError(path, f"is not an image that can be read ({error})") from error
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(self.mode)
        if image.size != (self.size, self.size):
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).reshape(self.size, self.size, -1).movedim(-1, 0).contiguous()

    def write(self, media: UInt8[Tensor, "c h w"], path: Path) -> None:
        """Write png or what else the suffix says."""
        Image.fromarray(media.movedim(0, -1).squeeze(-1).numpy()).save(path)

    def encode(self, media: UInt8[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """Standardized channels."""
        return (media / 255 - self.mean) / self.std

    def decode(self, x: Float[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b c h w"]:
        """The inverse of `encode`, rounded to 256 values."""
        return ((x * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def preview(self, media: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "3 p q"]:
        """The image, small ones enlarged to at least 64 pixels."""
        times = max(64 // self.size, 1)
        return media.repeat_interleave(times, 1).repeat_interleave(times, 2).expand(3, -1, -1)

    def metrics(self) -> dict[str, Metric]:
        """The distance between two sets of images by their coarse pixels; 0 for sets that cannot be told apart."""
        return {"pixel_distance": KernelDistance(coarse)}

    def fit(self, media: Iterable[UInt8[Tensor, "c h w"]]) -> dict[str, Any]:
        """Mean and standard deviation of each channel."""
        pixels = torch.stack([image.flatten(1) for image in media], 1).flatten(1).double() / 255
        std, mean = torch.std_mean(pixels, 1, correction=0)
        return {"mean": mean.tolist(), "std": std.clamp(min=1e-3).tolist()}


def coarse(media: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
    """What images are compared by: each channel averaged over 4 x 4 places.

    Not by single pixels: where those of all real images are the same, a kernel distance sees nothing but them.
    """
    return F.adaptive_avg_pool2d(media.float(), 4).flatten(1)
