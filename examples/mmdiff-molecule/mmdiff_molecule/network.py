"""The network: a transformer on atoms that sees their distances."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mmdiff.nn.attention import heads
from mmdiff.nn.blocks import zero
from mmdiff.nn.embed import FourierFeatures
from mmdiff.types import Context

DISTANCES = 24
"""Radial functions, evenly spaced from 0 to `FARTHEST`, that a distance is told by."""

FARTHEST = 5.0


class AtomTransformer(nn.Module):
    """Attention among all atoms with a bias for each distance, modulated by noise level and context (DiT).

    Args:
        shape: of one example, (3 + kinds, atoms); the first three channels are coordinates.
        features: size of the context's vector.
        width: channels of an atom.
        depth: number of blocks.
        head: least channels per head.
    """

    centers: Tensor

    def __init__(self, shape: Sequence[int], features: int, *, width: int = 128, depth: int = 6, head: int = 32):
        super().__init__()
        channels, atoms = shape
        self.fourier = FourierFeatures(width)
        self.noise = nn.Linear(width, width)
        self.context = nn.Linear(features, width)
        self.stem = nn.Linear(channels, width)
        self.places = nn.Parameter(torch.randn(atoms, width) / 2)
        self.register_buffer("centers", torch.linspace(0, FARTHEST, DISTANCES))
        self.blocks = nn.ModuleList(Block(width, heads(width, head)) for _ in range(depth))
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.head = zero(nn.Linear(width, channels))

    def forward(self, x: Float[Tensor, "b c n"], noise: Float[Tensor, "b *parts"], context: Context) -> Tensor:
        """``noise`` is (b,), or (b, 1, n) with a level for each atom; the result is like ``x``."""
        emb = self.noise(self.fourier(noise.reshape(len(x), 1) if noise.ndim == 1 else noise[:, 0]))
        vector = emb.new_zeros(1, self.context.in_features) if context.vector is None else context.vector
        emb = F.silu(emb + self.context(vector)[:, None])
        points = x[:, :3].mT
        far = (points[:, :, None] - points[:, None]).square().sum(-1).add(1e-6).sqrt()
        near = torch.exp(-(((far[..., None] - self.centers) * DISTANCES / FARTHEST) ** 2) / 2)
        h = self.stem(x.mT) + self.places
        for block in self.blocks:
            h = block(h, emb, near)
        scale, shift = self.modulation(emb).chunk(2, -1)
        return self.head(F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift).mT


class Block(nn.Module):
    """Attention biased by distances, then a multilayer perceptron, each gated by the embedding (adaLN-Zero)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.bias = nn.Linear(DISTANCES, heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, h: Float[Tensor, "b n w"], emb: Float[Tensor, "b m w"], near: Float[Tensor, "b n n r"]
    ) -> Float[Tensor, "b n w"]:
        """``near`` tells how far atoms are from each other."""
        scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = self.modulation(emb).chunk(6, -1)
        inputs = F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift
        q, k, v = rearrange(self.qkv(inputs), "b n (qkv h c) -> qkv b h n c", qkv=3, h=self.heads)
        bias = rearrange(self.bias(near), "b n m h -> b h n m")
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        h = h + gate * self.out(rearrange(seen, "b h n c -> b n (h c)"))
        return h + gate_mlp * self.mlp(F.layer_norm(h, h.shape[-1:]) * (1 + scale_mlp) + shift_mlp)
