"""A diffusion transformer for states of one to three dimensions, with attention along chosen dimensions."""

from collections.abc import Sequence
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdiff.nn.attention import CrossAttention, attend, check_read, heads, tokens_of, with_dense
from mmdiff.nn.blocks import conv, modulate, zero
from mmdiff.nn.embed import FourierFeatures, PlaceEmbedding
from mmdiff.types import Context


class Transformer(nn.Module):
    """Blocks of attention and multilayer perceptron on patches, modulated by noise level and context: DiT.

    Peebles & Xie 2023, with rotary positions and normalized queries and keys, so that any size divisible into patches
    can be sampled. The noise level may differ between the parts of an example, down to single patches.

    Args:
        shape: of one example, (channels, *size).
        features: size of the context's vector and of its tokens.
        width: channels of a token.
        depth: number of blocks.
        patch: side of a patch along every dimension of size.
        detail: channels of two convolutions before the patches, over neighbors along the dimensions that patches
            cover: they see what is smaller than a patch wherever it lies (Xiao et al. 2021). Without if 0.
        attention: dimensions of size, counted from 0, along which each block attends; blocks take the entries in turn.
            ``[[0, 1, 2]]`` is full attention, ``[[1, 2], [0]]`` alternates (factorized attention).
        absolute: dimensions of size along which places differ in meaning; elsewhere only distances are told.
        head: least channels per head.
        tokens: whether every block attends to the context's tokens.
        dense: channels of the context's dense signals, which join the state's.
        recompute: forget activations inside blocks and compute them again for the gradient.
    """

    def __init__(
        self,
        shape: Sequence[int],
        features: int,
        *,
        width: int = 384,
        depth: int = 12,
        patch: Sequence[int] = (2, 2),
        detail: int = 0,
        attention: Sequence[Sequence[int]] = ((0, 1),),
        absolute: Sequence[int] = (),
        head: int = 64,
        tokens: bool = False,
        dense: int = 0,
        recompute: bool = False,
    ):
        super().__init__()
        channels, *size = shape
        self.patch = list(patch)
        if len(self.patch) != len(size) or any(n % p for n, p in zip(size, self.patch, strict=True)):
            raise ValueError(f"network.patch {self.patch} does not divide an example of size {size}.")
        self.recompute = recompute
        self.features, self.reads, self.dense = features, tokens, dense
        axes = range(len(size))
        self.states = "b c " + " ".join(f"(n{i} p{i})" for i in axes)
        self.tokens = f"b {' '.join(f'n{i}' for i in axes)} (c {' '.join(f'p{i}' for i in axes)})"
        places = torch.Size(self.patch).numel()
        self.fourier = FourierFeatures(width)
        self.noise = nn.Linear(width, width)
        self.context = nn.Linear(features, width)
        self.detail = _convolutions(channels + dense, detail, self.patch) if detail else nn.Identity()
        self.stem = nn.Linear((detail or channels + dense) * places, width)
        self.places = nn.ModuleDict({str(axis): PlaceEmbedding(width) for axis in absolute})
        words = features if tokens else None
        self.blocks = nn.ModuleList(_Block(width, head, list(axes), words) for axes in islice(cycle(attention), depth))
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.head = zero(nn.Linear(width, channels * places))

    def forward(
        self, x: Float[Tensor, "b c *size"], noise: Float[Tensor, "b *parts"], context: Context
    ) -> Float[Tensor, "b c *size"]:
        """``noise`` is (b,), or has the dimensions of ``x`` with one channel and sizes of 1 or those of ``x``."""
        check_read(context, self.reads, self.dense)
        words = tokens_of(context, x, self.features) if self.reads else ()
        grid = [n // p for n, p in zip(x.shape[2:], self.patch, strict=True)]
        emb = self.embed(noise, context, grid)
        sides = {f"p{i}": side for i, side in enumerate(self.patch)}
        seen = self.detail(with_dense(x, context, self.dense))
        h = self.stem(rearrange(seen, f"{self.states} -> {self.tokens}", **sides))
        for axis, place in self.places.items():
            length = grid[int(axis)]
            h = h + place(length).reshape(*[length if str(i) == axis else 1 for i in range(len(grid))], -1)
        for block in self.blocks:
            keeps = self.recompute and torch.is_grad_enabled()
            h = checkpoint(block, h, emb, *words, use_reentrant=False) if keeps else block(h, emb, *words)
        scale, shift = self.modulation(F.silu(emb)).chunk(2, -1)
        h = self.head(modulate(h, shift, scale))
        return rearrange(h, f"{self.tokens} -> {self.states}", **sides)

    def embed(
        self, noise: Float[Tensor, "b *parts"], context: Context, grid: Sequence[int]
    ) -> Float[Tensor, "b *grid w"]:
        """Embedding of the noise level and the context of each patch (size 1 where the level is shared)."""
        if noise.ndim == 1:
            noise = noise.reshape(-1, 1, *[1] * len(grid))
        emb = self.noise(self.fourier(noise[:, 0]))
        for axis, (patch, places) in enumerate(zip(self.patch, grid, strict=True), 1):
            if emb.shape[axis] > 1:
                emb = emb.unflatten(axis, (places, patch)).mean(axis + 1)
        vector = emb.new_zeros(1, self.context.in_features) if context.vector is None else context.vector
        return emb + self.context(vector).reshape(len(vector), *[1] * len(grid), -1)


def _convolutions(inputs: int, channels: int, patch: Sequence[int]) -> nn.Module:
    kernel = [3 if side > 1 else 1 for side in patch]
    dims = len(patch)
    return nn.Sequential(conv(dims, inputs, channels, kernel), nn.SiLU(), conv(dims, channels, channels, kernel))


class _Block(nn.Module):
    """Attention along some dimensions, then a multilayer perceptron, each gated by the embedding (adaLN-Zero).

    Between them, in a network that reads tokens, attention to these.
    """

    def __init__(self, width: int, head: int, axes: Sequence[int], words: int | None):
        super().__init__()
        self.axes = list(axes)
        self.heads = heads(width, head)
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.words = None if words is None else CrossAttention(width, words, head)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, x: Float[Tensor, "b *grid w"], emb: Float[Tensor, "b *parts w"], *words: Tensor | None
    ) -> Float[Tensor, "b *grid w"]:
        """``words`` are the context's tokens and their mask, in a network that reads them."""
        scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = self.modulation(F.silu(emb)).chunk(6, -1)
        x = torch.addcmul(x, gate, self.attend(modulate(x, shift, scale)))
        if self.words is not None:
            x = self.words(x.flatten(1, -2), *words).reshape(x.shape)
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(x, shift_mlp, scale_mlp)))

    def attend(self, x: Float[Tensor, "b *grid w"]) -> Float[Tensor, "b *grid w"]:
        """Attention among the tokens that differ in their place along the block's axes only."""
        dims = [1 + axis for axis in self.axes]
        last = list(range(x.ndim - 1 - len(dims), x.ndim - 1))
        moved = self.qkv(x).movedim(dims, last)
        size = moved.shape[last[0] : -1]
        places = torch.cartesian_prod(*(torch.arange(n, device=x.device, dtype=x.dtype) for n in size))
        tokens = attend(moved.flatten(last[0], -2), self.heads, places.reshape(-1, len(dims)))
        return self.out(tokens.unflatten(-2, size).movedim(last, dims))
