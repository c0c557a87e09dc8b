"""Kernel distance between two sets of samples."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


def squared_mmd(x: Float[Tensor, "n f"], y: Float[Tensor, "m f"], bandwidth: float) -> Float[Tensor, ""]:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel: Gretton et al. 2012, equation 3."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * bandwidth**2))

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


class KernelDistance(Metric):
    """1000 times the unbiased squared MMD between features of real and generated media.

    Features are standardized and the bandwidth is the median distance, both by the real set, as in Chung et al. 2025
    (KAD). Unbiased, so 0 is the expectation for equal distributions at any sample size, and values below 0 occur.
    ``compute`` also gives the distance between two halves of the real set, to read the first against.

    Args:
        features: maps a batch of media to (b, f).
    """

    full_state_update = False
    higher_is_better = False
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, features: Callable[[Tensor], Tensor]):
        super().__init__()
        self.features = features
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, media: Tensor, *, real: bool, cond: dict[str, list[Any]] | None = None) -> None:
        """Add a batch of media."""
        (self.real if real else self.fake).append(self.features(media).double())

    def compute(self) -> dict[str, Tensor]:
        """``{"": distance, "real_halves": the same between two halves of the real set}``; nan with too few samples."""
        real = torch.cat(self.real) if isinstance(self.real, list) else self.real
        fake = torch.cat(self.fake) if isinstance(self.fake, list) else self.fake
        std, mean = torch.std_mean(real, 0, correction=min(1, len(real) - 1))
        real, fake = (real - mean) / std.clamp(min=1e-9), (fake - mean) / std.clamp(min=1e-9)
        bandwidth = torch.pdist(real).median().item()
        return {
            "": 1000 * squared_mmd(real, fake, bandwidth),
            "real_halves": 1000 * squared_mmd(real[::2], real[1::2], bandwidth),
        }
