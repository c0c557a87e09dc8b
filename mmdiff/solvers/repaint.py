"""Keeping parts of the state that the model knows one level for all of."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmdiff.errors import check_at_least
from mmdiff.solvers.steps import aligned, ratio
from mmdiff.types import Denoise, Noise, Step


def repaint(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n"],
    noise: Noise = torch.randn_like,
    *,
    given: Float[Tensor, "b *d"],
    known: Bool[Tensor, "#b *parts"],
    jump: int = 4,
    repeats: int = 10,
) -> Iterator[Step]:
    """RePaint: Lugmayr et al. 2022, algorithm 1, with the jumps of their appendix B.

    DDPM's posterior steps (`ancestral` with eta 1), after each of which the known part is what is given with noise of
    the level reached; then noise leads back up and the same steps are walked again, so that the rest agrees with what
    is known. The law tends to the conditional one as ``repeats`` grow. ``repeats`` evaluations per step; stochastic.
    The known part comes out bitwise.

    Args:
        denoise: the denoiser.
        x: initial state.
        sigmas: decreasing noise levels, one for all parts.
        noise: source of unit Gaussian noise.
        given: clean data.
        known: the elements of them to keep, broadcastable.
        jump: steps that are walked before noise leads back.
        repeats: how often each step is walked.
    """
    check_at_least(1, jump=jump, repeats=repeats)
    walk, index = aligned(sigmas, x), 0
    for start in range(0, len(walk) - 1, jump):
        stretch = walk[start : start + jump + 1]
        for repeat in range(repeats):
            if repeat:
                x = x + (stretch[0] ** 2 - stretch[-1] ** 2).sqrt() * noise(x)
            for sigma, target in pairwise(stretch):
                x0 = denoise(x, sigma)
                kept = ratio(target, sigma, at_zero=1) ** 2
                x = x0 + kept * (x - x0) + target * (1 - kept).sqrt() * noise(x)
                x = torch.where(known, given + target * noise(x), x)
                yield Step(index, target, x, x0)
                index += 1
