"""The network. A larger one with attention is `mmdiff.nn.unet.UNet`, which takes data of any number of dimensions."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.nn.blocks import zero
from mmdiff.nn.embed import FourierFeatures
from mmdiff.types import Context


class Network(nn.Module):
    """Residual blocks of dilated convolutions, each told the noise level and the conditions.

    Args:
        shape: of one example, (channels, length).
        features: size of the context's vector.
        width: channels inside.
        depth: blocks; each sees twice as far as the one before, up to 32 numbers.
    """

    def __init__(self, shape: Sequence[int], features: int, *, width: int = 64, depth: int = 6):
        super().__init__()
        channels, _ = shape
        self.fourier = FourierFeatures(width)
        self.level = nn.Linear(width, width)
        self.context = nn.Linear(features, width)
        self.into = nn.Conv1d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, 2 ** (i % 6)) for i in range(depth))
        self.out = zero(nn.Conv1d(width, channels, 3, padding=1))

    def forward(self, x: Tensor, noise: Tensor, context: Context) -> Tensor:
        """``x`` is (b, channels, length), ``noise`` (b,) or (b, 1, length); the result is like ``x``."""
        parts = noise[:, None] if noise.ndim == 1 else noise[:, 0]  # given numbers have another level
        told = self.level(self.fourier(parts))
        if context.vector is not None:  # a model without conditions has none
            told = told + self.context(context.vector)[:, None]
        h = self.into(x)
        for block in self.blocks:
            h = block(h, told)
        return self.out(F.silu(h))


class Block(nn.Module):
    """x + convolution of what x and the noise level say."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.told = nn.Linear(width, 2 * width)
        self.first = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.told(F.silu(told)).mT.chunk(2, 1)
        h = self.first(F.silu(self.norm(x) * (1 + scale) + shift))
        return (x + self.second(F.silu(h))) / 2**0.5
