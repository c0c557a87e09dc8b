"""Networks for clips: the core's image U-Net, whose blocks learn to look along time."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mmdiff.nn.attention import attend, heads
from mmdiff.nn.blocks import Pointwise, norm, zero
from mmdiff.nn.unet import UNet
from mmdiff.types import Context


class VideoUNet(UNet):
    """A factorized space-time U-Net: Ho et al. 2022 (Video Diffusion Models).

    Every frame passes the two-dimensional U-Net; after each of its residual blocks frames are mixed by a convolution
    along time, and at chosen resolutions by attention. The mixing starts as the identity and adds parameters without
    changing the names of the others, so the weights of an image model are a start (see `inflate`). The noise level may
    differ between frames.

    Args:
        shape: of one clip, (channels, frames, height, width).
        features: size of the context's vector.
        temporal_attention: resolutions with attention along time, counted from 0 at full resolution.
        clip_attention: resolutions with attention between all places of all frames: what moves is somewhere else in
            the next frame. Its cost grows with the square of the places, so it is for the lowest.
        temporal_kernel: side, in places, of the convolutions along time; with 1 they mix frames place by place, with 3
            they can also carry what moves from one place to the next.
        unet: the options of `mmdiff.nn.unet.UNet`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        features: int,
        *,
        temporal_attention: Sequence[int] = (),
        clip_attention: Sequence[int] = (),
        temporal_kernel: int = 1,
        **unet: Any,
    ):
        def mixer(channels: int, embedding: int, level: int) -> "TimeMixer":
            attention = "clip" if level in clip_attention else "time" if level in temporal_attention else None
            return TimeMixer(channels, embedding, temporal_kernel, attention)

        channels, _, *size = shape
        super().__init__((channels, *size), features, mixer=mixer, **unet)

    def forward(  # type: ignore[override]  # frames have a dimension of their own here
        self, x: Float[Tensor, "b c t h w"], noise: Float[Tensor, "b *parts"], context: Context
    ) -> Float[Tensor, "b c t h w"]:
        """``noise`` is (b,), or (b, 1, t or 1, h or 1, w or 1)."""
        count, _, length, *_ = x.shape
        if noise.ndim == 1:
            noise = noise.reshape(-1, 1, 1, 1, 1)
        noise = rearrange(noise.expand(-1, -1, length, -1, -1), "b c t h w -> (b t) c h w")
        context = Context(
            *(part if part is None else part.repeat_interleave(length, 0) for part in context[:3]),
            dense=context.dense if context.dense is None else _frames(context.dense.expand(-1, -1, *x.shape[2:])),
        )
        frames = _frames(x).contiguous(memory_format=torch.channels_last)
        return rearrange(super().forward(frames, noise, context, length), "(b t) c h w -> b c t h w", b=count)


def _frames(clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "n c h w"]:
    return rearrange(clips, "b c t h w -> (b t) c h w")


class TimeMixer(nn.Module):
    """Convolution over three frames, then attention, each beside an identity that it starts as.

    The frames are modulated before they are mixed, so what is asked and how noisy a frame is decide what it tells.

    Args:
        channels: of a frame.
        features: channels of the embedding.
        kernel: side of the convolution in space.
        attention: ``"time"`` between the frames at each place, ``"clip"`` between all places of all frames, or None.
    """

    def __init__(self, channels: int, features: int, kernel: int, attention: str | None):
        super().__init__()
        self.norm = nn.GroupNorm(norm(channels).num_groups, channels, affine=False)
        self.modulation = Pointwise(features, 2 * channels)
        self.conv = zero(nn.Conv3d(channels, channels, (3, kernel, kernel), padding=(1, kernel // 2, kernel // 2)))
        self.attention = attention and TimeAttention(channels, features, everywhere=attention == "clip")

    def forward(
        self, x: Float[Tensor, "n c h w"], emb: Float[Tensor, "n f *parts"], length: int
    ) -> Float[Tensor, "n c h w"]:
        """``x`` holds clips of ``length`` frames, one frame after another."""
        if length == 1:
            return x
        scale, shift = self.modulation(F.silu(emb)).chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm(x), 1 + scale))
        h = x + over_frames(self.conv, h, length)
        return self.attention(h, emb, length) if self.attention else h


def over_frames(conv: nn.Conv3d, x: Float[Tensor, "n c h w"], length: int) -> Float[Tensor, "n d h w"]:
    """The convolution over clips of ``length`` frames; frames in the channels-last layout are read where they lie.

    A kernel of one place in space passes as two-dimensional, over frames and places: on a CPU many times as fast.
    """
    clips = rearrange(x, "(b t) c h w -> b c t h w", t=length)
    if conv.kernel_size[1:] == (1, 1):
        mixed = F.conv2d(clips.flatten(3), conv.weight.squeeze(-1), conv.bias, padding=(1, 0))
        mixed = mixed.unflatten(3, clips.shape[3:])
    else:
        mixed = conv(clips)
    return rearrange(mixed, "b c t h w -> (b t) c h w")


class TimeAttention(nn.Module):
    """Self-attention between frames, with rotary positions, beside an identity.

    The frames are modulated first, so which way and how far a place looks may depend on what is asked.

    Args:
        channels: of a frame.
        features: channels of the embedding.
        everywhere: whether a place attends to all places of all frames, or to itself in all frames.
        head: least channels per head.
    """

    def __init__(self, channels: int, features: int, everywhere: bool, head: int = 32):
        super().__init__()
        self.everywhere = everywhere
        self.heads = heads(channels, head)
        self.norm = nn.GroupNorm(norm(channels).num_groups, channels, affine=False)
        self.modulation = Pointwise(features, 2 * channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(
        self, x: Float[Tensor, "n c h w"], emb: Float[Tensor, "n f *parts"], length: int
    ) -> Float[Tensor, "n c h w"]:
        """``x`` holds clips of ``length`` frames, one frame after another."""
        scale, shift = self.modulation(F.silu(emb)).chunk(2, dim=1)
        sizes = {"t": length, "h": x.shape[2], "w": x.shape[3]}
        grid = "b (t h w) c" if self.everywhere else "b (h w) t c"
        tokens = rearrange(torch.addcmul(shift, self.norm(x), 1 + scale), f"(b t) c h w -> {grid}", **sizes)
        axes = [torch.arange(n, device=x.device, dtype=x.dtype) for n in sizes.values()]
        places = torch.cartesian_prod(*axes) if self.everywhere else axes[0][:, None]
        tokens = self.out(attend(self.qkv(tokens), self.heads, places))
        return x + rearrange(tokens, f"{grid} -> (b t) c h w", **sizes)


def inflate(network: VideoUNet, image: Mapping[str, Tensor]) -> None:
    """Load the weights of an image U-Net of the same options; frames are then denoised one by one until trained.

    Args:
        network: takes the weights.
        image: ``state_dict`` of the `mmdiff.nn.unet.UNet`.

    Raises:
        ValueError: if the weights are of a network of other options.
    """
    try:
        missing, unexpected = network.load_state_dict(image, strict=False)
    except RuntimeError as error:
        raise ValueError(f"the image network has other options: {error}") from error
    foreign = [*unexpected, *(name for name in missing if ".mixer." not in name)]
    if foreign:
        raise ValueError(f"the image network has other options: {foreign[0]} is not in both.")
