"""A network for sets of points that is permutation-equivariant and linear in their number.

Letters: ``b`` examples, ``c`` channels of a point, ``n`` points, ``k`` cells of ``s`` points, ``w`` width of points,
``v`` width of cells, ``l`` words, ``f`` features of the context. What is said of a point depends on where it is among
the others, never on its place in the list.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmdiff.errors import check_at_least
from mmdiff.nn.attention import heads
from mmdiff.nn.blocks import modulate, normalize, zero
from mmdiff.nn.embed import FourierFeatures
from mmdiff.types import Context
from mmdiff_pointcloud.coupling import leaves


class PointCells(nn.Module):
    """A transformer whose tokens are cells of neighboring points: the patches of DiT (Peebles & Xie 2023) for sets.

    A k-d tree parts the points into a fixed number of cells of equal numbers. In every stage a cell takes in the mean
    of its points, the cells attend to each other, and each point is changed by its own state and its cell. More points
    make fuller cells, not more of them, so a cell stands for the same share of the whole at any number.

    Args:
        shape: of one example, (channels, points); the first three channels (or all, if fewer) are coordinates. The
            number of points is that of the data, networks take any.
        features: size of the context's vector and of its tokens.
        width: channels of a point.
        cell_width: channels of a cell.
        cells: how many, a power of 2; of fewer points than that each is nearly a cell of its own.
        stages: rounds of pooling, attention and spreading.
        depth: transformer blocks on the cells in each stage.
        head: least channels per attention head.
    """

    def __init__(
        self,
        shape: Sequence[int],
        features: int,
        *,
        width: int = 96,
        cell_width: int = 256,
        cells: int = 64,
        stages: int = 3,
        depth: int = 2,
        head: int = 32,
    ):
        super().__init__()
        check_at_least(1, width=width, cell_width=cell_width, cells=cells, stages=stages, head=head)
        check_at_least(0, depth=depth)
        if cells.bit_count() > 1:
            raise ValueError(f"network.cells must be a power of 2, got {cells}.")
        channels, _ = shape
        self.cells = cells
        self.features = features
        self.dims = min(channels, 3)
        self.embed = PointEmbedding(channels, width)
        self.near = nn.Linear(self.dims, width)
        self.center = PointEmbedding(self.dims + 1, cell_width)
        self.level = LevelEmbedding(features, width)
        self.tokens = nn.Linear(features, cell_width)
        self.stages = nn.ModuleList(Stage(width, cell_width, depth, head) for _ in range(stages))
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.out = zero(nn.Linear(width, channels))

    def forward(
        self, x: Float[Tensor, "b c n"], noise: Float[Tensor, "b *parts"], context: Context
    ) -> Float[Tensor, "b c n"]:
        """``noise`` is (b,), (b, 1, 1), or one level per point (b, 1, n). Of the context all but ``dense`` is read."""
        partition = part(x[:, : self.dims], self.cells)
        states = partition.gather(x.mT)
        level = self.level(noise.reshape(len(x), -1), context.vector)
        level = partition.gather(level) if level.shape[1] > 1 else level[:, :, None]

        places = states[..., : self.dims]
        center = places.mean(2, keepdim=True)
        radius = ((places - center).square().mean((2, 3), keepdim=True) + 1e-8).sqrt()
        points = self.embed(states) + self.near((places - center) / radius)
        cells = self.center(torch.cat([center, radius.log()], 3).squeeze(2))

        words = x.new_zeros(len(x), 0, self.features) if context.tokens is None else context.tokens
        words = normalize(self.tokens(words))
        mask = key_mask(context.token_mask, cells.shape[1])
        for stage in self.stages:
            points, cells = stage(points, cells, words, mask, level)
        shift, scale = self.modulation(level).chunk(2, dim=-1)
        return partition.scatter(self.out(modulate(points, shift, scale))).mT


class Partition(NamedTuple):
    """Cells of points: the indices of their members, and the place of each point in the flattened cells."""

    members: Int[Tensor, "b k s"]
    home: Int[Tensor, "b n"]

    def gather(self, rows: Float[Tensor, "b n c"]) -> Float[Tensor, "b k s c"]:
        """Rows of points, cell by cell."""
        index = self.members.flatten(1)[..., None].expand(-1, -1, rows.shape[2])
        return rows.gather(1, index).unflatten(1, self.members.shape[1:])

    def scatter(self, cells: Float[Tensor, "b k s c"]) -> Float[Tensor, "b n c"]:
        """The inverse of `gather`."""
        return cells.flatten(1, 2).gather(1, self.home[..., None].expand(-1, -1, cells.shape[3]))


def part(points: Float[Tensor, "b d n"], cells: int) -> Partition:
    """Part points into the cells of a balanced k-d tree.

    Where the number of points is no multiple of that of cells, some cells repeat one of their members.

    Args:
        points: coordinates.
        cells: how many, a power of 2; with fewer points, the largest one that is not above their number.
    """
    n = points.shape[2]
    bits = min(cells, n).bit_length() - 1
    order = leaves(points, bits)
    place = torch.arange(n, device=points.device)
    cell = place * 2**bits // n
    first = torch.searchsorted(cell, torch.arange(2**bits + 1, device=points.device))
    size = -(-n // 2**bits)
    slots = (first[:-1, None] + torch.arange(size, device=points.device)).minimum(first[1:, None] - 1)
    home = torch.empty_like(order).scatter_(1, order, (cell * size + place - first[cell]).expand_as(order))
    return Partition(order[:, slots], home)


class PointEmbedding(nn.Module):
    """A linear map of all channels and of Fourier features of the coordinates (Tancik et al. 2020).

    The waves run in random directions, so that no axis is special; their frequencies are spread evenly in octaves.

    Args:
        channels: of a point.
        width: of the embedding, and the number of waves.
        coarsest: lowest frequency, in cycles per standard deviation of the data.
        finest: highest frequency.
    """

    waves: Tensor
    phases: Tensor

    def __init__(self, channels: int, width: int, coarsest: float = 0.125, finest: float = 4.0):
        super().__init__()
        directions = F.normalize(torch.randn(min(channels, 3), width), dim=0)
        frequencies = coarsest * (finest / coarsest) ** torch.linspace(0, 1, width)
        self.register_buffer("waves", 2 * torch.pi * frequencies * directions)
        self.register_buffer("phases", 2 * torch.pi * torch.rand(width))
        self.linear = nn.Linear(channels, width)
        self.fourier = nn.Linear(width, width)

    def forward(self, points: Float[Tensor, "*b c"]) -> Float[Tensor, "*b w"]:
        waves = torch.cos(points[..., : len(self.waves)] @ self.waves + self.phases)
        return self.linear(points) + self.fourier(2**0.5 * waves)


class LevelEmbedding(nn.Module):
    """What all layers are modulated by: noise levels and the context's vector, once per example or once per point."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.features = features
        self.fourier = FourierFeatures(width)
        self.noise = nn.Linear(width, width)
        self.context = nn.Linear(features, width)
        self.mix = nn.Linear(width, width)

    def forward(self, noise: Float[Tensor, "b m"], vector: Float[Tensor, "b f"] | None) -> Float[Tensor, "b m w"]:
        if vector is None:
            vector = noise.new_zeros(len(noise), self.features)
        emb = self.noise(self.fourier(noise)) + self.context(vector)[:, None]
        return F.silu(self.mix(F.silu(emb)))


class Stage(nn.Module):
    """Cells take in their points and attend to each other and to words; then each point changes, told by its cell."""

    def __init__(self, width: int, cell_width: int, depth: int, head: int):
        super().__init__()
        self.pool = nn.Linear(width, cell_width)
        self.attend = nn.ModuleList(Modulated(cell_width, width, Attention(cell_width, head)) for _ in range(depth))
        self.think = nn.ModuleList(Modulated(cell_width, width, mlp(cell_width, 4)) for _ in range(depth))
        self.tell = nn.Linear(cell_width, 3 * width)
        self.modulation = zero(nn.Linear(width, 3 * width))
        self.refine = mlp(width, 2)

    def forward(
        self,
        points: Float[Tensor, "b k s w"],
        cells: Float[Tensor, "b k v"],
        words: Float[Tensor, "b l v"],
        mask: Bool[Tensor, "b 1 1 keys"] | None,
        level: Float[Tensor, "b *m w"],
    ) -> tuple[Float[Tensor, "b k s w"], Float[Tensor, "b k v"]]:
        """``level`` has a row for each point (b, k, s, w), or one for all of an example (b, 1, 1, w)."""
        mean = level.mean((1, 2))[:, None]
        cells = cells + self.pool(normalize(points).mean(2))
        for attend, think in zip(self.attend, self.think, strict=True):
            cells = think(attend(cells, mean, words, mask), mean)
        shift, scale, gate = (self.tell(normalize(cells))[:, :, None] + self.modulation(level)).chunk(3, dim=-1)
        return torch.addcmul(points, gate, self.refine(modulate(points, shift, scale))), cells


class Modulated(nn.Module):
    """A layer beside an identity; its input is normalized, scaled and shifted, its output gated: adaLN-Zero."""

    def __init__(self, width: int, level_width: int, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.modulation = zero(nn.Linear(level_width, 3 * width))

    def forward(
        self, x: Float[Tensor, "b k v"], level: Float[Tensor, "b 1 w"], *others: Tensor | None
    ) -> Float[Tensor, "b k v"]:
        """``others`` go to the layer as they are."""
        shift, scale, gate = self.modulation(level).chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.layer(modulate(x, shift, scale), *others))


class Attention(nn.Module):
    """Multi-head attention to each other and to words, with normalized queries and keys (Dehghani et al. 2023)."""

    def __init__(self, width: int, head: int):
        super().__init__()
        self.heads = heads(width, head)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.gain = nn.Parameter(torch.ones(width // self.heads))
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b k v"], words: Float[Tensor, "b l v"], mask: Bool[Tensor, "b 1 1 keys"] | None = None
    ) -> Float[Tensor, "b k v"]:
        """``mask`` marks what may be attended to: of ``x``, then of ``words``."""
        q = rearrange(self.query(x), "b k (h c) -> b h k c", h=self.heads)
        memory = self.key_value(torch.cat([x, words], 1))
        k, v = rearrange(memory, "b t (kv h c) -> kv b h t c", kv=2, h=self.heads)
        q, k = F.layer_norm(q, q.shape[-1:], self.gain), normalize(k)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v, mask), "b h k c -> b k (h c)"))


def mlp(width: int, ratio: int) -> nn.Sequential:
    """Two linear layers on each row alone."""
    return nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


def key_mask(token_mask: Bool[Tensor, "b l"] | None, cells: int) -> Bool[Tensor, "b 1 1 keys"] | None:
    """All cells and the given words may be attended to; None if that is everything."""
    if token_mask is None:
        return None
    return F.pad(token_mask, (cells, 0), value=True)[:, None, None]
