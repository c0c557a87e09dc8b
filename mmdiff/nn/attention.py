"""Attention over all positions of a state of any number of dimensions, or along sequences."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mmdiff.nn.blocks import norm, zero


class SelfAttention(nn.Module):
    """Multi-head self-attention with normalized queries and keys (Henry et al. 2020) beside an identity.

    Args:
        channels: of the state.
        head: least channels per head; the most heads that divide ``channels`` are taken.
    """

    def __init__(self, channels: int, head: int = 32):
        super().__init__()
        self.heads = heads(channels, head)
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        tokens = rearrange(self.norm(x).flatten(2), "b c n -> b n c")
        tokens = attend(self.qkv(tokens), self.heads)
        return x + rearrange(self.out(tokens), "b n c -> b c n").reshape(x.shape)


def heads(channels: int, head: int) -> int:
    """The most heads of at least ``head`` channels that divide the channels."""
    return max(h for h in range(1, max(channels // head, 1) + 1) if channels % h == 0)


def attend(
    qkv: Float[Tensor, "*b n d"], heads: int, positions: Float[Tensor, "n axes"] | None = None
) -> Float[Tensor, "*b n c"]:
    """Scaled dot-product attention of joined queries, keys and values; queries and keys are normalized.

    Args:
        qkv: queries, keys and values, each of heads x channels.
        heads: how many.
        positions: places of the tokens along some axes, told by rotation (see `rotate`).
    """
    q, k, v = rearrange(qkv, "... n (qkv h c) -> qkv ... h n c", qkv=3, h=heads)
    q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
    if positions is not None:
        q, k = rotate(q, positions), rotate(k, positions)
    return rearrange(F.scaled_dot_product_attention(q, k, v), "... h n c -> ... n (h c)")


def rotate(x: Float[Tensor, "*b n c"], positions: Float[Tensor, "n axes"]) -> Float[Tensor, "*b n c"]:
    """Rotary position embedding (Su et al. 2021): products of rotated vectors depend on differences of positions.

    The pairs of channels are shared out among the axes; the wavelengths of each run from 2 pi to 2000 pi. Channels
    that are left over are not rotated.
    """
    axes = positions.shape[-1]
    pairs = x.shape[-1] // (2 * axes)
    frequencies = 1000.0 ** -(torch.arange(pairs, device=x.device, dtype=x.dtype) / max(pairs, 1))
    angles = (positions.to(x)[..., None] * frequencies).flatten(-2)
    a, b, rest = x.split([pairs * axes, pairs * axes, x.shape[-1] - 2 * pairs * axes], -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)
