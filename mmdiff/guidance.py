"""Guidance: a denoiser made from a denoiser. Conditions are bound here, so a solver never sees them."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mmdiff.types import Context, Denoise, DenoiseInContext


def conditional(denoise: DenoiseInContext, context: Context, null: Context) -> Denoise:
    """No guidance: the model's own conditional estimate."""
    return partial(denoise, context=context)


def classifier_free(
    denoise: DenoiseInContext,
    context: Context,
    null: Context,
    *,
    scale: float,
    interval: Sequence[float] = (0.0, math.inf),
    rescale: float = 0.0,
) -> Denoise:
    """Classifier-free guidance: Ho & Salimans 2022, within an interval of noise levels: Kynkäänniemi et al. 2024.

    Both branches run as one batch of twice the size; outside the interval only the conditional one runs.

    Args:
        denoise: the denoiser whose conditions are to be bound.
        context: what is asked for.
        null: the context in which nothing is said.
        scale: 1 is no guidance; larger values move away from the unconditional estimate.
        interval: noise levels (low, high], by the highest one of an example's parts, at which guidance acts.
        rescale: in [0, 1], pulls the standard deviation of x0 back to the conditional one's: Lin et al. 2024.
    """
    low, high = interval
    if not low < high:
        raise ValueError(f"guidance.interval must be increasing, got [{low:g}, {high:g}].")
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance.rescale must lie in [0, 1], got {rescale:g}.")
    both = join(context, null)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        highest = sigma.flatten(1).amax(1) if sigma.ndim > 1 else sigma
        acts = (low < highest) & (highest <= high)
        if scale == 1 or not acts.any():
            return denoise(x, sigma, context)
        per_example = sigma.ndim > 0 and len(sigma) == len(x)
        twice = torch.cat([sigma, sigma]) if per_example else sigma
        asked, unasked = denoise(torch.cat([x, x]), twice, both).chunk(2)
        x0 = unasked + scale * (asked - unasked)
        if rescale:
            axes = tuple(range(1, x.ndim))
            x0 = x0 * (1 + rescale * (asked.std(axes, keepdim=True) / x0.std(axes, keepdim=True) - 1))
        if sigma.ndim == 0:
            return x0
        acts = acts.reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(acts & (sigma > 0) if sigma.ndim > 1 else acts, x0, asked)

    return guided


def join(first: Context, second: Context) -> Context:
    """Two contexts of the same structure as one batch."""
    return Context(*(None if a is None or b is None else torch.cat([a, b]) for a, b in zip(first, second, strict=True)))
