"""Guidance: a denoiser made from a denoiser. Conditions are bound here, so a solver never sees them."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmdiff.types import Context, Denoise, DenoiseInContext

Guidance = Callable[[DenoiseInContext, Context, Context], Denoise]


@runtime_checkable
class Asking(Protocol):
    """A guidance that needs to know what is asked in raw values, for a model with a conditioner of its own."""

    def ask(self, cond: Mapping[str, Sequence[Any]], count: int, device: torch.device) -> Guidance:
        """The guidance for ``count`` examples with these values of each condition."""


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
    history: float = 0.0,
) -> Denoise:
    """Classifier-free guidance: Ho & Salimans 2022, within an interval of noise levels: Kynkäänniemi et al. 2024.

    Both branches run as one batch of twice the size; outside the interval only the conditional one runs.

    Args:
        denoise: the denoiser whose conditions are to be bound.
        context: what is asked for.
        null: the context in which nothing is said, or that of a negative prompt: what to move away from.
        scale: 1 is no guidance; larger values move away from the unconditional estimate.
        interval: noise levels (low, high], by the highest one of an example's parts, at which guidance acts.
        rescale: in [0, 1], pulls the standard deviation of x0 back to the conditional one's: Lin et al. 2024.
        history: noise level at which the unconditional estimate sees the parts at level 0, those given or done. With
            the highest level it sees nothing of them, and guidance is also towards what follows from them: history
            guidance, Song et al. 2025. With 0 it sees them as they are.
    """
    low, high = interval
    if not low < high:
        raise ValueError(f"guidance.interval must be increasing, got [{low:g}, {high:g}].")
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance.rescale must lie in [0, 1], got {rescale:g}.")
    if history < 0:
        raise ValueError(f"guidance.history must not be negative, got {history:g}.")
    both = join(context, null)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        highest = sigma.flatten(1).amax(1) if sigma.ndim > 1 else sigma
        acts = (low < highest) & (highest <= high)
        if scale == 1 or not acts.any():
            return denoise(x, sigma, context)
        hidden, levels = _noised(x, sigma, history) if history and sigma.ndim == x.ndim else (x, sigma)
        per_example = levels.ndim > 0 and len(levels) == len(x)
        twice = torch.cat([sigma.expand_as(levels), levels]) if per_example else sigma
        asked, unasked = denoise(torch.cat([x, hidden]), twice, both).chunk(2)
        x0 = unasked + scale * (asked - unasked)
        if rescale:
            axes = tuple(range(1, x.ndim))
            x0 = x0 * (1 + rescale * (asked.std(axes, keepdim=True) / x0.std(axes, keepdim=True) - 1))
        if sigma.ndim == 0:
            return x0
        acts = acts.reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(acts & (sigma > 0) if sigma.ndim > 1 else acts, x0, asked)

    return guided


def _noised(x: Float[Tensor, "b *d"], sigma: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """A state whose parts at level 0 were noised to another level, and the levels; the noise is always the same."""
    sigma = sigma.expand(len(x), *sigma.shape[1:])
    noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
    return torch.where(sigma > 0, x, x + level * noise), torch.where(sigma > 0, sigma, level)


def composed(
    denoise: DenoiseInContext, contexts: Sequence[Context], null: Context, *, scales: Sequence[float]
) -> Denoise:
    """Several conditions with a scale each: Liu et al. 2022, equation 11. All branches run as one batch.

    Args:
        denoise: the denoiser whose conditions are to be bound.
        contexts: what is asked for.
        null: the context in which nothing is said.
        scales: weight of each context's difference from the unconditional estimate.
    """
    if len(scales) != len(contexts):
        raise ValueError(f"guidance.scales must hold one number for each of {len(contexts)} contexts, got {scales}.")
    every = reduce(join, [null, *contexts])

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        count = 1 + len(contexts)
        per_example = sigma.ndim > 0 and len(sigma) == len(x)
        repeated = torch.cat([sigma] * count) if per_example else sigma
        unasked, *asked = denoise(torch.cat([x] * count), repeated, every).chunk(count)
        x0 = unasked + sum(scale * (one - unasked) for scale, one in zip(scales, asked, strict=True))
        return torch.where(sigma > 0, x0, unasked) if sigma.ndim == x.ndim else x0

    return guided


def weighted(denoisers: Sequence[Denoise], weights: Float[Tensor, "n b"]) -> Denoise:
    """The mean of several bound denoisers: for guided ones of one scale that is `composed`, with the scale shared out.

    Args:
        denoisers: bound to the parts of what is asked.
        weights: of each part for each example; those of an example add up to 1.
    """

    def mean(x: Tensor, sigma: Tensor) -> Tensor:
        parts = torch.stack([denoise(x, sigma) for denoise in denoisers])
        x0 = (weights.to(x).reshape(*weights.shape, *[1] * (x.ndim - 1)) * parts).sum(0)
        return torch.where(sigma > 0, x0, parts[0]) if sigma.ndim == x.ndim else x0

    return mean


def adaptive_projected(
    denoise: DenoiseInContext,
    context: Context,
    null: Context,
    *,
    scale: float,
    parallel: float = 0.0,
    radius: float = math.inf,
) -> Denoise:
    """Adaptive projected guidance: Sadat et al. 2024, algorithm 1 without its momentum, which is state between calls.

    Both branches run as one batch of twice the size. High scales saturate less than with `classifier_free`.

    Args:
        denoise: the denoiser whose conditions are to be bound.
        context: what is asked for.
        null: the context in which nothing is said.
        scale: 1 is no guidance.
        parallel: share that is kept of the guidance along the conditional estimate (the paper's eta); 1 and an
            infinite radius are `classifier_free`.
        radius: largest norm of the difference of the two estimates (the paper's r).
    """
    if radius <= 0:
        raise ValueError(f"guidance.radius must be positive, got {radius:g}.")
    both = join(context, null)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        per_example = sigma.ndim > 0 and len(sigma) == len(x)
        twice = torch.cat([sigma, sigma]) if per_example else sigma
        asked, unasked = denoise(torch.cat([x, x]), twice, both).chunk(2)
        change = asked - unasked
        axes = tuple(range(1, x.ndim))
        size, length = (
            torch.linalg.vector_norm(one, dim=axes, keepdim=True).clamp(min=1e-12) for one in (change, asked)
        )
        change, unit = change * (radius / size).clamp(max=1), asked / length
        along = (change * unit).sum(axes, keepdim=True) * unit
        x0 = asked + (scale - 1) * (change - (1 - parallel) * along)
        return torch.where(sigma > 0, x0, asked) if sigma.ndim == x.ndim else x0

    return guided


def dynamic_thresholding(
    denoise: DenoiseInContext,
    context: Context,
    null: Context,
    *,
    guidance: Guidance,
    least: float,
    quantile: float = 0.995,
) -> Denoise:
    """Another guidance whose largest values are pulled in: Saharia et al. 2022, section 2.3.

    An example's x0 is clipped at a quantile of its absolute values and shrunk to ``least`` where that exceeds it.

    Args:
        denoise: the denoiser whose conditions are to be bound.
        context: what is asked for.
        null: the context in which nothing is said.
        guidance: of this module.
        least: the largest value of the data.
        quantile: share of an example's values that is not clipped.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"guidance.quantile must lie in (0, 1], got {quantile:g}.")
    if least <= 0:
        raise ValueError(f"guidance.least must be positive, got {least:g}.")
    free = guidance(denoise, context, null)

    def thresholded(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = free(x, sigma)
        sizes = x0.abs().flatten(1)
        size = sizes.kthvalue(math.ceil(quantile * sizes.shape[1]), 1).values.clamp(min=least)
        size = size.reshape(-1, *[1] * (x.ndim - 1))
        bounded = x0.clamp(-size, size) * (least / size)
        return torch.where(sigma > 0, bounded, x0) if sigma.ndim == x.ndim else bounded

    return thresholded


def autoguidance(denoise: DenoiseInContext, context: Context, null: Context, *, weak: Denoise, scale: float) -> Denoise:
    """Autoguidance: Karras et al. 2024, equation 3: away from what a weaker model makes of the same conditions.

    Args:
        denoise: the denoiser whose conditions are to be bound.
        context: what is asked for.
        null: not used.
        weak: a smaller or less trained denoiser, its conditions bound.
        scale: 1 is no guidance, and does without the weaker model.
    """
    if scale == 1:
        return conditional(denoise, context, null)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        strong, other = denoise(x, sigma, context), weak(x, sigma)
        x0 = other + scale * (strong - other)
        return torch.where(sigma > 0, x0, strong) if sigma.ndim == x.ndim else x0

    return guided


def join(first: Context, second: Context) -> Context:
    """Two contexts of the same structure as one batch; the shorter tokens are padded."""
    length = max(0 if c.tokens is None else c.tokens.shape[1] for c in (first, second))
    first, second = (_padded(c, length) for c in (first, second))
    return Context(*(None if a is None or b is None else torch.cat([a, b]) for a, b in zip(first, second, strict=True)))


def _padded(context: Context, length: int) -> Context:
    if context.tokens is None:
        return context
    missing = length - context.tokens.shape[1]
    mask = context.token_mask
    if mask is None:
        mask = torch.ones_like(context.tokens[..., 0], dtype=torch.bool)
    return context._replace(tokens=F.pad(context.tokens, (0, 0, 0, missing)), token_mask=F.pad(mask, (0, missing)))
