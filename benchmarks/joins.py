"""What shows a join, as a number for each example: higher where it can be heard or seen."""

import torch
from jaxtyping import Float
from torch import Tensor


def spectral_flux(wave: Float[Tensor, "b n"], rate: int, seconds: float) -> Float[Tensor, "b"]:
    """Largest change of the log spectrum (dB, root mean square over bins) between frames of 16 ms, 32 ms around a time.

    Bins more than 60 dB below the loudest of the clip count as if they were 60 dB below.
    """
    size = round(0.032 * rate)
    window = torch.hann_window(size)
    power = torch.stft(wave, size, size // 2, window=window, pad_mode="constant", return_complex=True).abs() ** 2
    level = 10 * power.clamp(min=1e-12).log10()
    level = level.maximum(level.amax((1, 2), keepdim=True) - 60)
    flux = level.diff(dim=2).square().mean(1).sqrt()
    middle = round(seconds * rate / (size // 2))
    return flux[:, max(middle - 2, 0) : middle + 2].amax(1)


def frame_difference(clips: Float[Tensor, "b c t h w"], frame: int) -> Float[Tensor, "b"]:
    """Root mean square difference of a frame from the one before."""
    return (clips[:, :, frame] - clips[:, :, frame - 1]).square().mean((1, 2, 3)).sqrt()


def edge_difference(clips: Float[Tensor, "b c t h w"], column: int) -> Float[Tensor, "b"]:
    """Root mean square difference of a column of pixels from the one on its left."""
    return (clips[..., column] - clips[..., column - 1]).square().mean((1, 2, 3)).sqrt()


def density_step(points: Float[Tensor, "b n"], cut: float, width: float) -> Float[Tensor, "b"]:
    """How much denser clouds are on one side of a plane than on the other: |log(n+ / n-)| of the slabs that touch it.

    Args:
        points: their coordinates across the plane.
        cut: where the plane is.
        width: of each slab.
    """
    above = ((points >= cut) & (points < cut + width)).sum(1)
    below = ((points < cut) & (points >= cut - width)).sum(1)
    return ((above + 1) / (below + 1)).log().abs()


def within(edited: Float[Tensor, "b"], real: Float[Tensor, "n"], share: float = 0.95) -> float:
    """The share of edited examples that do not exceed this quantile of real ones; ``share`` is what real ones have."""
    return (edited <= real.quantile(share)).float().mean().item()
