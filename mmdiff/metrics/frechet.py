"""Fréchet distance between two sets of samples, from their means and covariances alone."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

SAMPLES_PER_FEATURE = 10
"""Fewest in each set. Two sets of n samples of one law, of f features of variance 1, are f (f + 5) / (2 n) apart."""


def frechet(
    mean_x: Float[Tensor, "f"], cov_x: Float[Tensor, "f f"], mean_y: Float[Tensor, "f"], cov_y: Float[Tensor, "f f"]
) -> Float[Tensor, ""]:
    """Squared 2-Wasserstein distance of two Gaussians, float64: Dowson and Landau 1982, equation 4.

    |mean_x - mean_y|^2 + tr(cov_x + cov_y - 2 (cov_x cov_y)^(1/2)). The last trace is that of the square root of the
    symmetric R cov_y R with R = cov_x^(1/2), which has the same eigenvalues, so all of them are real.
    """
    mean_x, cov_x, mean_y, cov_y = (part.double() for part in (mean_x, cov_x, mean_y, cov_y))
    values, vectors = torch.linalg.eigh(cov_x)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp(min=0).sqrt().sum()
    distance = (mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross
    return distance.clamp(min=0)


class FrechetDistance(Metric):
    """Squared Fréchet distance between Gaussians fitted to features of real and generated media.

    Only sums are kept, so memory does not grow with the number of samples, and processes add theirs up; each process
    must have seen some of both sets. The features are taken as they are, in their own units. The distance is biased
    upwards at few samples and may even rank two sets wrongly, so ``compute`` refuses sets of less than ten samples
    per feature; `KernelDistance` is unbiased at any size.

    Args:
        features: maps a batch of media to (b, f).
    """

    full_state_update = False
    higher_is_better = False
    real_count: Tensor
    fake_count: Tensor
    real_sum: Tensor
    fake_sum: Tensor

    def __init__(self, features: Callable[[Tensor], Tensor]):
        super().__init__()
        self.features = features
        # Scalars until the first batch tells the number of features: sums broadcast.
        for name in ("real", "fake"):
            for part in ("count", "sum", "products"):
                self.add_state(f"{name}_{part}", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, media: Tensor, *, real: bool, cond: dict[str, list[Any]] | None = None) -> None:
        """Add a batch of media."""
        x = self.features(media).double()
        name = "real" if real else "fake"
        for part, value in (("count", len(x)), ("sum", x.sum(0)), ("products", x.mT @ x)):
            setattr(self, f"{name}_{part}", getattr(self, f"{name}_{part}") + value)

    def compute(self) -> Float[Tensor, ""]:
        """The distance.

        Raises:
            ValueError: with less than ten samples per feature in either set.
        """
        real, fake = int(self.real_count), int(self.fake_count)
        size = max(self.real_sum.numel(), self.fake_sum.numel())
        if min(real, fake) < SAMPLES_PER_FEATURE * size:
            raise ValueError(
                f"A Fréchet distance of {size} features needs at least {SAMPLES_PER_FEATURE * size} real and as many "
                f"generated samples, got {real} and {fake}: use more samples, fewer features or a KernelDistance."
            )
        return frechet(*self._moments("real"), *self._moments("fake"))

    def _moments(self, name: str) -> tuple[Float[Tensor, "f"], Float[Tensor, "f f"]]:
        """Mean and unbiased covariance of one set."""
        count, total, products = (getattr(self, f"{name}_{part}") for part in ("count", "sum", "products"))
        mean = total / count
        return mean, (products - count * mean.outer(mean)) / (count - 1)
