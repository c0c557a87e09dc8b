"""Attention over all positions of a state of any number of dimensions, or along sequences."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmdiff.nn.blocks import norm, zero
from mmdiff.types import Context


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


class CrossAttention(nn.Module):
    """Multi-head attention to the tokens of a context, with normalized queries and keys, beside an identity.

    Args:
        channels: of the state.
        features: of the tokens.
        head: least channels per head.
    """

    def __init__(self, channels: int, features: int, head: int = 32):
        super().__init__()
        self.heads = heads(channels, head)
        self.features = features
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(features, 2 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(
        self, x: Float[Tensor, "b n c"], tokens: Float[Tensor, "b l f"], mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b n c"]:
        """``mask`` marks the tokens that may be attended to; all of them if None."""
        q = rearrange(self.query(F.layer_norm(x, x.shape[-1:])), "b n (h c) -> b h n c", h=self.heads)
        k, v = rearrange(self.key_value(tokens), "b l (kv h c) -> kv b h l c", kv=2, h=self.heads)
        q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
        return x + self.out(rearrange(seen, "b h n c -> b n (h c)"))


def check_read(context: Context, tokens: bool, dense: int) -> None:
    """Check that a network built for tokens or not, and so many dense channels, reads all of a context.

    Raises:
        ValueError: naming the option of the network that is missing.
    """
    given = 0 if context.dense is None else context.dense.shape[1]
    if context.tokens is not None and not tokens:
        raise ValueError("the conditions give tokens, which this network does not read; set network.tokens=true.")
    if given not in (0, dense):
        raise ValueError(f"the conditions give {given} dense channels; set network.dense={given} (it is {dense}).")


def tokens_of(
    context: Context, x: Float[Tensor, "b *d"], features: int
) -> tuple[Float[Tensor, "b l f"], Bool[Tensor, "b l"] | None]:
    """Tokens and mask of a context; one of zeros if it has none, so that every parameter has a gradient."""
    return (x.new_zeros(len(x), 1, features), None) if context.tokens is None else (context.tokens, context.token_mask)


def with_dense(x: Float[Tensor, "b c *size"], context: Context, dense: int) -> Float[Tensor, "b d *size"]:
    """The state with a context's dense signals as further channels; zeros if it has none."""
    signal = x.new_zeros(len(x), dense, *x.shape[2:]) if context.dense is None else context.dense.to(x)
    return torch.cat([x, signal.expand(-1, -1, *x.shape[2:])], 1)


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
    flat = qkv.reshape(-1, *qkv.shape[-2:])  # PyTorch's fused kernels take one dimension of batch only
    qk, v = rearrange(flat, "b n (qkv h c) -> qkv b h n c", qkv=3, h=heads).split([2, 1])
    qk = F.rms_norm(qk, qk.shape[-1:])
    if positions is not None:
        qk = rotate(qk, positions)
    tokens = rearrange(F.scaled_dot_product_attention(*qk, *v), "b h n c -> b n (h c)")
    return tokens.reshape(*qkv.shape[:-1], -1)


def rotate(x: Float[Tensor, "*b n c"], positions: Float[Tensor, "n axes"]) -> Float[Tensor, "*b n c"]:
    """Rotary position embedding (Su et al. 2021): products of rotated vectors depend on differences of positions.

    The pairs of channels are shared out among the axes; the wavelengths of each run from 2 pi to 2000 pi. Channels
    that are left over are not rotated.
    """
    axes, channels = positions.shape[-1], x.shape[-1]
    pairs = channels // (2 * axes)
    half, left = pairs * axes, channels - 2 * pairs * axes
    frequencies = 1000.0 ** -(torch.arange(pairs, device=x.device, dtype=x.dtype) / max(pairs, 1))
    angles = F.pad((positions.to(x)[..., None] * frequencies).flatten(-2).repeat(1, 2), (0, left))
    pair = torch.eye(half, device=x.device, dtype=x.dtype)
    quarter = F.pad(pair, (half, left, 0, half + left)) - F.pad(pair, (0, half + left, half, left))
    return torch.addcmul(x * angles.cos(), x @ quarter, angles.sin())
