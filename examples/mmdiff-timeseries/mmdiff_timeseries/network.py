"""The network: the core's U-Net along time, told which values are known."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmdiff.nn.unet import UNet
from mmdiff.types import Context


class SeriesUNet(nn.Module):
    """A one-dimensional U-Net whose channels are those of the series, and the noise level of every value beside them.

    Args:
        shape: of one example, (1, channels, length).
        features: size of the context's vector.
        unet: the options of `mmdiff.nn.unet.UNet`.
    """

    def __init__(self, shape: Sequence[int], features: int, **unet: Any):
        super().__init__()
        _, self.channels, length = shape
        self.unet = UNet((2 * self.channels, length), features, **unet)

    def forward(self, x: Float[Tensor, "b 1 c n"], noise: Float[Tensor, "b *parts"], context: Context) -> Tensor:
        """``noise`` is (b,), or has a level for each value, channel or moment; the highest modulates the blocks."""
        noise = noise.reshape(-1, 1, 1) if noise.ndim == 1 else noise[:, 0]
        highest = noise.flatten(1).amax(1)
        cleaner = highest[:, None, None] - noise  # 0 where a value is as noisy as any
        inputs = torch.cat([x[:, 0], cleaner.expand_as(x[:, 0])], 1)
        return self.unet(inputs, highest, context)[:, None, : self.channels]
