"""What every solver shares: the walk over the levels, divisions that are safe at sigma = 0, and Brownian noise."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mmdiff.denoiser import expand_sigma
from mmdiff.types import Noise


def aligned(sigmas: Tensor, x: Tensor) -> Tensor:
    """The levels of a walk, ready for arithmetic with x.

    Scalar levels stay float64 on the CPU, where arithmetic with them costs no device synchronization and does not
    change the dtype of x; levels that differ between or within examples go to the device, dtype and dimensions of x.
    """
    return sigmas.double().cpu() if sigmas.ndim == 1 else torch.stack([expand_sigma(sigma, x) for sigma in sigmas])


def levels(sigmas: Tensor, x: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Pairs of consecutive levels with their index (see `aligned`)."""
    for i, pair in enumerate(pairwise(aligned(sigmas, x).unbind())):
        yield i, *pair


def ratio(numerator: Tensor, denominator: Tensor, *, at_zero: float) -> Tensor:
    """numerator / denominator, with the value ``at_zero`` where the denominator is 0."""
    zero = denominator == 0
    return torch.where(zero, at_zero, numerator / torch.where(zero, 1, denominator))


def brownian(noise: Noise, x: Tensor, kept: Sequence[Tensor]) -> list[Tensor]:
    """Unit noise of every step, from one Brownian path for a grid and for each of its halvings.

    A step adds sigma' sqrt(1 - kept^2) times its noise and keeps the share ``kept`` of what was there, as a fraction
    of sigma. Two steps in a row add up to one, so the noise of both is a rotation of the noise of the whole and a
    fresh draw. Steps are halved while their number is even; all noise is held at once.

    Args:
        noise: source of unit Gaussian noise.
        x: state.
        kept: for each step (sigma' / sigma)^eta.
    """
    if len(kept) % 2:
        return [noise(x) for _ in kept]
    pairs = list(zip(kept[::2], kept[1::2], strict=True))
    halves = []
    for whole, (first, second) in zip(brownian(noise, x, [a * b for a, b in pairs]), pairs, strict=True):
        fresh = noise(x)
        share = ratio(1 - second**2, 1 - (first * second) ** 2, at_zero=1)
        early, late = (1 - share).clamp(min=0).sqrt(), share.sqrt()
        halves += [early * whole + late * fresh, late * whole - early * fresh]
    return halves
