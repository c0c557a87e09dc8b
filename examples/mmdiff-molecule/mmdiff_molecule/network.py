"""The network: a transformer on atoms that sees where they are from each other."""

import math
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
    """Attention among all atoms, told their distances and directions, modulated by noise level and context (DiT).

    At the end an atom also moves along the lines to the others, as in an equivariant network (Satorras et al. 2021): a
    bond that is too long is one number for all the ways it can point.

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
        count = heads(width, head)
        self.fourier = FourierFeatures(width)
        self.noise = nn.Linear(width, width)
        self.context = nn.Linear(features, width)
        self.stem = nn.Linear(channels, width)
        self.places = nn.Parameter(torch.randn(atoms, width) / 2)
        self.register_buffer("centers", torch.linspace(0, FARTHEST, DISTANCES))
        self.blocks = nn.ModuleList(Block(width, count) for _ in range(depth))
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.head = zero(nn.Linear(width, channels))
        self.pairs = Pairs(width, count)
        self.pull = zero(nn.Linear(width, count))

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
            h = block(h, emb, near, points)
        scale, shift = self.modulation(emb).chunk(2, -1)
        h = F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift
        pull = self.pairs(h, near) * rearrange(self.pull(h), "b n h -> b h n 1") / (1 + far[:, None])
        moves = offsets(pull, points).sum(1) / points.shape[1]
        return torch.cat([moves, moves.new_zeros(*moves.shape[:2], x.shape[1] - 3)], 2).mT + self.head(h).mT


class Block(nn.Module):
    """Attention that tells where the atoms attended to are, then a perceptron, each gated by the embedding (adaLN)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.pairs = Pairs(width, heads)
        self.values = nn.Linear(width, width)
        self.out = nn.Linear(width + heads * (3 + DISTANCES), width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self,
        h: Float[Tensor, "b n w"],
        emb: Float[Tensor, "b m w"],
        near: Float[Tensor, "b n n r"],
        points: Float[Tensor, "b n 3"],
    ) -> Float[Tensor, "b n w"]:
        """``near`` are radial functions of the distances of atoms at ``points``."""
        scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = self.modulation(emb).chunk(6, -1)
        inputs = F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift
        share = self.pairs(inputs, near).softmax(-1)
        values = share @ rearrange(self.values(inputs), "b n (h c) -> b h n c", h=self.heads)
        distances = torch.einsum("b h n m, b n m r -> b h n r", share, near)
        seen = torch.cat([values, offsets(share, points), distances], -1)
        h = h + gate * self.out(rearrange(seen, "b h n c -> b n (h c)"))
        return h + gate_mlp * self.mlp(F.layer_norm(h, h.shape[-1:]) * (1 + scale_mlp) + shift_mlp)


class Pairs(nn.Module):
    """A number for each pair of atoms and each head, from what the two are and from their distance."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qk = nn.Linear(width, 2 * width)
        self.bias = nn.Linear(DISTANCES, heads)

    def forward(self, h: Float[Tensor, "b n w"], near: Float[Tensor, "b n n r"]) -> Float[Tensor, "b h n n"]:
        """``near`` are radial functions of the distances."""
        q, k = rearrange(self.qk(h), "b n (qk h c) -> qk b h n c", qk=2, h=self.heads)
        return q @ k.mT / math.sqrt(q.shape[-1]) + rearrange(self.bias(near), "b n m h -> b h n m")


def offsets(weights: Float[Tensor, "b h n n"], points: Float[Tensor, "b n 3"]) -> Float[Tensor, "b h n 3"]:
    """Weighted sums of the vectors from each atom to the others."""
    return weights @ points[:, None] - weights.sum(-1, keepdim=True) * points[:, None]
