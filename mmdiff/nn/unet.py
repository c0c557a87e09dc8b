"""A U-Net for states of one to three dimensions."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdiff.nn.attention import CrossAttention, SelfAttention, check_read, tokens_of, with_dense
from mmdiff.nn.blocks import Downsample, Pointwise, ResBlock, Upsample, conv, depth_to_space, norm, space_to_depth, zero
from mmdiff.nn.embed import FourierFeatures, PlaceEmbedding
from mmdiff.types import Context

POOL: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class UNet(nn.Module):
    """Residual blocks on a pyramid of resolutions: Ronneberger et al. 2015, with the blocks of Dhariwal & Nichol 2021.

    Sizes need not be divisible by the pyramid's: the state is padded inside. The noise level may differ between the
    parts of an example; its embedding is then pooled along the pyramid with the state.

    Args:
        shape: of one example, (channels, *size).
        features: size of the context's vector and of its tokens.
        width: channels at full resolution.
        multipliers: channels of each resolution, in units of ``width``.
        blocks: residual blocks per resolution on the way down; one more on the way up.
        attention: resolutions with attention, counted from 0 at full resolution.
        patch: side of the patches that become channels before the first convolution (space to depth).
        absolute: dimensions of size, counted from 0, along which places differ in meaning. Convolutions treat all
            places alike; here the place joins noise level and context in the embedding, so what a block does may
            depend on all three together.
        dropout: in the residual blocks.
        tokens: whether to attend to the context's tokens, at the resolutions with attention, or else the lowest.
        dense: channels of the context's dense signals, which join the state's.
        mixer: called with (channels, features of the embedding, level), returns a module that is applied after each
            residual block of a network whose batch holds sequences: it maps (sequences * length, channels, *size), the
            embedding and the length to the like of the first.
        recompute: forget activations inside blocks and compute them again for the gradient: less memory, more time
            (Chen et al. 2016).
    """

    def __init__(
        self,
        shape: Sequence[int],
        features: int,
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 2,
        attention: Sequence[int] = (3,),
        patch: int = 1,
        absolute: Sequence[int] = (),
        dropout: float = 0.0,
        tokens: bool = False,
        dense: int = 0,
        mixer: Callable[[int, int, int], nn.Module] | None = None,
        recompute: bool = False,
    ):
        super().__init__()
        channels, *size = shape
        self.dims = dims = len(size)
        self.patch = patch
        self.recompute = recompute
        self.tokens = tokens
        self.dense = dense
        self.levels = len(multipliers)
        self.multiple = patch * 2 ** (self.levels - 1)
        embedding = max(4 * width, features)
        self.fourier = FourierFeatures(embedding)
        self.noise = Pointwise(embedding, embedding)
        self.context = nn.Linear(features, embedding)
        self.places = nn.ModuleDict({str(axis): PlaceEmbedding(embedding) for axis in absolute})
        self.mix = Pointwise(embedding, embedding)

        widths = [width * m for m in multipliers]
        last, attention_levels = len(widths) - 1, list(attention)

        def stage(inputs: int, outputs: int, level: int, attends: bool) -> "_Stage":
            block = ResBlock(dims, inputs, outputs, embedding, dropout)
            attention = SelfAttention(outputs) if attends else None
            reads = tokens and (attends or (level == last and not attention_levels))
            words = CrossAttention(outputs, features) if reads else None
            return _Stage(block, level, attention, mixer and mixer(outputs, embedding, level), words)

        self.stem = conv(dims, (channels + dense) * patch**dims, width)
        self.down = nn.ModuleList()
        skips, now = [width], width
        for level, out in enumerate(widths):
            for _ in range(blocks):
                self.down.append(stage(now, out, level, level in attention))
                now = out
                skips.append(now)
            if level < len(widths) - 1:
                self.down.append(_Stage(Downsample(dims, now), level + 1))
                skips.append(now)
        self.middle = nn.ModuleList([stage(now, now, last, last in attention), stage(now, now, last, False)])
        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(now + skips.pop(), out, level, level in attention))
                now = out
            if level:
                self.up.append(_Stage(Upsample(dims, now), level - 1))
        self.norm = norm(now)
        self.head = zero(conv(dims, now, channels * patch**dims))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # a training step takes 0.85 of the time, on the CPU

    def forward(
        self, x: Float[Tensor, "b i *size"], noise: Float[Tensor, "b *parts"], context: Context, length: int = 1
    ) -> Float[Tensor, "b o *size"]:
        """``noise`` is (b,), or has the dimensions of ``x`` with one channel and sizes of 1 or those of ``x``.

        ``length`` is that of the sequences in the batch, for a network with mixers.
        """
        size = x.shape[2:]
        check_read(context, self.tokens, self.dense)
        x = with_dense(x, context, self.dense)
        if noise.ndim == 1:
            noise = noise.reshape(-1, 1, *[1] * self.dims)
        x = F.pad(x, self.padding(size))
        noise = F.pad(noise, self.padding([n if n > 1 else 0 for n in noise.shape[2:]]), mode="replicate")
        embeddings = self.embed(noise, context, x.shape[2:])
        h = self.stem(space_to_depth(x, self.patch))
        skips = [h]
        for stage in self.down:
            h = self.run(stage, h, embeddings, context, length)
            skips.append(h)
        for stage in self.middle:
            h = self.run(stage, h, embeddings, context, length)
        for stage in self.up:
            h = self.run(stage, h if stage.resizes else torch.cat([h, skips.pop()], 1), embeddings, context, length)
        h = depth_to_space(self.head(F.silu(self.norm(h))), self.patch)
        return h[(slice(None), slice(None), *map(slice, size))]

    def run(self, stage: nn.Module, h: Tensor, embeddings: Sequence[Tensor], context: Context, length: int) -> Tensor:
        """One stage, with its activations kept or computed again."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(stage, h, embeddings, context, length, use_reentrant=False)
        return stage(h, embeddings, context, length)

    def padding(self, size: Sequence[int]) -> list[int]:
        """Amounts for `F.pad` that make sizes divisible by the pyramid's; a size of 0 (no parts) stays."""
        return [amount for n in reversed(size) for amount in (0, -n % self.multiple)]

    def embed(
        self, noise: Float[Tensor, "b 1 *parts"], context: Context, size: Sequence[int]
    ) -> list[Float[Tensor, "b f *places"]]:
        """Embedding of noise level, context and absolute places at each resolution."""
        emb = self.noise(self.fourier(noise[:, 0]).movedim(-1, 1))
        # Without conditions too, so that every parameter has a gradient: distributed training waits for all of them.
        vector = self.context(emb.new_zeros(1, self.context.in_features) if context.vector is None else context.vector)
        emb = emb + vector.reshape(*vector.shape, *[1] * self.dims)
        for axis, place in self.places.items():
            length = size[int(axis)]
            emb = emb + place(length).T.reshape(1, -1, *[length if str(i) == axis else 1 for i in range(self.dims)])
        emb = self.mix(F.silu(emb))
        pool = POOL[self.dims]
        return [pool(emb, [max(n // (self.patch << level), 1) for n in emb.shape[2:]]) for level in range(self.levels)]


class _Stage(nn.Module):
    """One step along the pyramid: a residual block, perhaps with attention and a mixer, or a change of resolution."""

    def __init__(
        self,
        block: nn.Module,
        level: int,
        attention: nn.Module | None = None,
        mixer: nn.Module | None = None,
        words: CrossAttention | None = None,
    ):
        super().__init__()
        self.block = block
        self.level = level
        self.resizes = not isinstance(block, ResBlock)
        self.attention = attention or nn.Identity()
        self.mixer = mixer
        self.words = words

    def forward(self, x: Tensor, embeddings: Sequence[Tensor], context: Context, length: int) -> Tensor:
        h = self.attention(self.block(x) if self.resizes else self.block(x, embeddings[self.level]))
        if self.words is not None:
            h = self.words(h.flatten(2).mT, *tokens_of(context, h, self.words.features)).mT.reshape(h.shape)
        return h if self.mixer is None else self.mixer(h, embeddings[self.level], length)
