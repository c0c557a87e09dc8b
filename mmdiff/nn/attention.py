"""Attention over all positions of a state of any number of dimensions."""

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
        self.heads = max(h for h in range(1, max(channels // head, 1) + 1) if channels % h == 0)
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        tokens = rearrange(self.norm(x).flatten(2), "b c n -> b n c")
        q, k, v = rearrange(self.qkv(tokens), "b n (qkv h c) -> qkv b h n c", qkv=3, h=self.heads)
        q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        tokens = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n c -> b n (h c)")
        return x + rearrange(self.out(tokens), "b n c -> b c n").reshape(x.shape)
