"""A network for sets of points that is exactly permutation-equivariant and linear in their number.

Letters: ``b`` examples, ``c`` channels of a point, ``n`` points, ``k`` latents, ``w`` width, ``f`` features of the
context. Only attention and layers that act on each point alone see the points; nothing knows their order.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmdiff.errors import check_at_least
from mmdiff.nn.blocks import zero
from mmdiff.nn.embed import FourierFeatures
from mmdiff.types import Context


class PointLatent(nn.Module):
    """Latents that read the points, think, and are read by the points, some times over.

    The reads and writes of Set Transformer (Lee et al. 2019) and RIN (Jabri et al. 2023), modulated by noise level and
    context with the adaLN-Zero of DiT (Peebles & Xie 2023). The points keep their own state from stage to stage.

    Args:
        shape: of one example, (channels, points); the first three channels (or all, if fewer) are coordinates. The
            number of points is that of the data, networks take any.
        features: size of the context's vector and of its tokens.
        width: channels of points and latents.
        latents: how many; the cost is proportional to points times latents.
        stages: rounds of reading and writing.
        depth: self-attention blocks on the latents in each stage.
        head: least channels per attention head.
    """

    def __init__(
        self,
        shape: Sequence[int],
        features: int,
        *,
        width: int = 192,
        latents: int = 128,
        stages: int = 3,
        depth: int = 2,
        head: int = 32,
    ):
        super().__init__()
        check_at_least(1, width=width, latents=latents, stages=stages, head=head)
        check_at_least(0, depth=depth)
        channels, _ = shape
        self.features = features
        self.embed = PointEmbedding(channels, width)
        self.level = LevelEmbedding(features, width)
        self.tokens = nn.Linear(features, width)
        self.mark = nn.Linear(width, width)
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.stages = nn.ModuleList(Stage(width, depth, head) for _ in range(stages))
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.out = zero(nn.Linear(width, channels))

    def forward(
        self, x: Float[Tensor, "b c n"], noise: Float[Tensor, "b *parts"], context: Context
    ) -> Float[Tensor, "b c n"]:
        """``noise`` is (b,), (b, 1, 1), or one level per point (b, 1, n). Of the context all but ``dense`` is read."""
        level = self.level(noise.reshape(len(x), -1), context.vector)
        points = self.embed(x) + self.mark(level)
        latents = self.latents.expand(len(x), -1, -1)
        tokens = x.new_zeros(len(x), 0, self.features) if context.tokens is None else context.tokens
        tokens = normalize(self.tokens(tokens))
        mask = key_mask(context.token_mask, x.shape[2])
        for stage in self.stages:
            points, latents = stage(points, latents, tokens, mask, level)
        shift, scale = self.modulation(level).chunk(2, dim=-1)
        return self.out(modulate(points, shift, scale)).mT


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

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b n w"]:
        points = x.mT
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
    """Latents read points and tokens, attend to each other, and points read latents; then each point for itself."""

    def __init__(self, width: int, depth: int, head: int):
        super().__init__()
        self.read = Modulated(width, Attention(width, head))
        self.think = nn.ModuleList()
        for _ in range(depth):
            self.think.append(Modulated(width, Attention(width, head)))
            self.think.append(Modulated(width, mlp(width, 4)))
        self.write = Modulated(width, Attention(width, head))
        self.refine = Modulated(width, mlp(width, 2))

    def forward(
        self,
        points: Float[Tensor, "b n w"],
        latents: Float[Tensor, "b k w"],
        tokens: Float[Tensor, "b l w"],
        mask: Bool[Tensor, "b 1 1 keys"] | None,
        level: Float[Tensor, "b m w"],
    ) -> tuple[Float[Tensor, "b n w"], Float[Tensor, "b k w"]]:
        mean = level.mean(1, keepdim=True)
        latents = self.read(latents, mean, torch.cat([normalize(points), tokens], 1), mask)
        for layer in self.think:
            latents = layer(latents, mean)
        points = self.write(points, level, normalize(latents))
        return self.refine(points, level), latents


class Modulated(nn.Module):
    """A layer beside an identity; its input is normalized, scaled and shifted, its output gated: adaLN-Zero."""

    def __init__(self, width: int, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.modulation = zero(nn.Linear(width, 3 * width))

    def forward(
        self, x: Float[Tensor, "b s w"], level: Float[Tensor, "b m w"], *others: Tensor | None
    ) -> Float[Tensor, "b s w"]:
        """``others`` go to the layer as they are."""
        shift, scale, gate = self.modulation(level).chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.layer(modulate(x, shift, scale), *others))


class Attention(nn.Module):
    """Multi-head attention to a memory, or to itself, with normalized queries and keys (Henry et al. 2020)."""

    def __init__(self, width: int, head: int):
        super().__init__()
        self.heads = max(h for h in range(1, max(width // head, 1) + 1) if width % h == 0)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.gain = nn.Parameter(torch.ones(width // self.heads))
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b s w"],
        memory: Float[Tensor, "b t w"] | None = None,
        mask: Bool[Tensor, "b 1 1 t"] | None = None,
    ) -> Float[Tensor, "b s w"]:
        """``mask`` marks what may be attended to."""
        q = rearrange(self.query(x), "b s (h c) -> b h s c", h=self.heads)
        k, v = rearrange(
            self.key_value(x if memory is None else memory), "b t (kv h c) -> kv b h t c", kv=2, h=self.heads
        )
        q, k = self.gain * F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v, mask), "b h s c -> b s (h c)"))


def mlp(width: int, ratio: int) -> nn.Sequential:
    """Two linear layers on each row alone."""
    return nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


def normalize(x: Float[Tensor, "b s w"]) -> Float[Tensor, "b s w"]:
    """Mean 0 and variance 1 in each row."""
    return F.layer_norm(x, x.shape[-1:])


def modulate(
    x: Float[Tensor, "b s w"], shift: Float[Tensor, "b m w"], scale: Float[Tensor, "b m w"]
) -> Float[Tensor, "b s w"]:
    """Normalized rows, then scaled and shifted; one modulation for all rows (m = 1) or one for each."""
    return torch.addcmul(shift, normalize(x), 1 + scale)


def key_mask(token_mask: Bool[Tensor, "b l"] | None, points: int) -> Bool[Tensor, "b 1 1 keys"] | None:
    """All points and the given tokens may be attended to; None if that is everything."""
    if token_mask is None:
        return None
    return F.pad(token_mask, (points, 0), value=True)[:, None, None]
