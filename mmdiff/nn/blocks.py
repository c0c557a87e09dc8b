"""Convolutional blocks for states (b, channels, *size) with one to three dimensions of size."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIDES = ("px", "py", "pz")
PATCHES = {
    1: "b c (x px) -> b (c px) x",
    2: "b c (x px) (y py) -> b (c px py) x y",
    3: "b c (x px) (y py) (z pz) -> b (c px py pz) x y z",
}


def conv(dims: int, inputs: int, outputs: int, kernel: int | Sequence[int] = 3, stride: int = 1) -> nn.Module:
    """A convolution of odd kernel size that keeps the size (or divides it by the stride, rounding up)."""
    sides = [kernel] * dims if isinstance(kernel, int) else list(kernel)
    return CONV[dims](inputs, outputs, sides, stride=stride, padding=[side // 2 for side in sides])


class Pointwise(nn.Linear):
    """A linear map of the channels at each place: a convolution of one place, faster where there are few of them."""

    def forward(self, x: Float[Tensor, "b i *size"]) -> Float[Tensor, "b o *size"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def zero(module: nn.Module) -> nn.Module:
    """Set all parameters to zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def norm(channels: int) -> nn.GroupNorm:
    """Group normalization with the most groups of at least 8 channels, up to 32, that divide the channels."""
    groups = max(g for g in range(1, 33) if channels % g == 0 and channels // g >= min(8, channels))
    return nn.GroupNorm(groups, channels)


def normalize(x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
    """Mean 0 and variance 1 in each row."""
    return F.layer_norm(x, x.shape[-1:])


def modulate(
    x: Float[Tensor, "*b w"], shift: Float[Tensor, "*m w"], scale: Float[Tensor, "*m w"]
) -> Float[Tensor, "*b w"]:
    """Normalized rows, then scaled and shifted; one modulation for all rows, or one for each."""
    return torch.addcmul(shift, normalize(x), 1 + scale)


def space_to_depth(x: Float[Tensor, "b c *size"], patch: int) -> Float[Tensor, "b d *patches"]:
    """Move patches of that side, along every dimension of size, into the channels."""
    dims = x.ndim - 2
    return rearrange(x, PATCHES[dims], **dict.fromkeys(SIDES[:dims], patch))


def depth_to_space(x: Float[Tensor, "b d *patches"], patch: int) -> Float[Tensor, "b c *size"]:
    """The inverse of `space_to_depth`."""
    dims = x.ndim - 2
    space, patches = PATCHES[dims].split(" -> ")
    return rearrange(x, f"{patches} -> {space}", **dict.fromkeys(SIDES[:dims], patch))


class ResBlock(nn.Module):
    """Two convolutions, modulated by an embedding, beside an identity: Dhariwal & Nichol 2021.

    Args:
        dims: number of dimensions of size.
        inputs: channels of the input.
        outputs: channels of the output.
        features: channels of the embedding.
        dropout: probability of dropping an activation.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, features: int, dropout: float = 0.0):
        super().__init__()
        self.norm_in = norm(inputs)
        self.conv_in = conv(dims, inputs, outputs)
        self.modulation = Pointwise(features, 2 * outputs)
        self.norm_out = nn.GroupNorm(norm(outputs).num_groups, outputs, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero(conv(dims, outputs, outputs))
        self.skip = conv(dims, inputs, outputs, kernel=1) if inputs != outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "b i *size"], emb: Float[Tensor, "b f *parts"]) -> Float[Tensor, "b o *size"]:
        """``emb`` has one column for the example, or one per part of it, broadcastable against the size of ``x``."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(F.silu(emb)).chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        return self.skip(x) + self.conv_out(self.dropout(F.silu(h)))


class Downsample(nn.Module):
    """Halves every dimension of size with a strided convolution."""

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.conv = conv(dims, channels, channels, stride=2)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *half"]:
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles every dimension of size: nearest neighbor, then a convolution."""

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.conv = conv(dims, channels, channels)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *double"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
