"""What shows a join, as a number for each example: higher where it can be heard or seen."""

import torch
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
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


def sparseness(points: Float[Tensor, "n 3"], near: Bool[Tensor, "n"], neighbors: int = 8) -> Float[Tensor, ""]:
    """Mean distance of the points near a join to their 8th neighbor, over that of all points: a gap is above 1."""
    distance = cKDTree(points.numpy()).query(points.numpy(), neighbors + 1)[0][:, -1]
    distance = torch.from_numpy(distance).to(points)
    return distance[near].mean() / distance.mean()


def within(edited: Float[Tensor, "b"], real: Float[Tensor, "n"], share: float = 0.95) -> float:
    """The share of edited examples that do not exceed this quantile of real ones; ``share`` is what real ones have."""
    return (edited <= real.quantile(share)).float().mean().item()
