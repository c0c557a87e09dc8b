"""What every solver shares: the walk over the levels and divisions that are safe at sigma = 0."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmdiff.denoiser import expand_sigma


def levels(sigmas: Tensor, x: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Pairs of consecutive levels with their index.

    Scalar levels stay float64 on the CPU, where arithmetic with them costs no device synchronization and does not
    change the dtype of x; levels that differ between or within examples go to the device, dtype and dimensions of x.
    """
    sigmas = sigmas.double().cpu() if sigmas.ndim == 1 else torch.stack([expand_sigma(sigma, x) for sigma in sigmas])
    for i in range(len(sigmas) - 1):
        yield i, sigmas[i], sigmas[i + 1]


def ratio(numerator: Tensor, denominator: Tensor, *, at_zero: float) -> Tensor:
    """numerator / denominator, with the value ``at_zero`` where the denominator is 0."""
    zero = denominator == 0
    return torch.where(zero, at_zero, numerator / torch.where(zero, 1, denominator))
