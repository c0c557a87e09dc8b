"""Networks for spectrograms."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmdiff.nn.unet import UNet
from mmdiff.types import Context


class SpectrogramUNet(nn.Module):
    """A 2-D U-Net that knows absolute frequency.

    Convolutions treat every bin alike, sound does not: cosines of the bin's position join the input as channels.

    Args:
        shape: of one example, (channels, bins, frames).
        features: size of the context's vector.
        positions: how many cosines of the position.
        options: of `mmdiff.nn.unet.UNet`.
    """

    def __init__(self, shape: Sequence[int], features: int, *, positions: int = 8, **options: Any):
        super().__init__()
        channels, bins, _ = shape
        place = (torch.arange(bins) + 0.5) / bins
        waves = math.sqrt(2) * torch.cos(math.pi * torch.arange(1, positions + 1)[:, None] * place)
        self.register_buffer("positions", waves[None, :, :, None], persistent=False)
        self.unet = UNet(shape, features, inputs=channels + positions, **options)

    def forward(
        self, x: Float[Tensor, "b k f t"], noise: Float[Tensor, "b *parts"], context: Context
    ) -> Float[Tensor, "b k f t"]:
        positions = self.positions.to(x).expand(len(x), -1, -1, x.shape[-1])
        return self.unet(torch.cat([x, positions], 1), noise, context)
