"""Recognition: conditions that nobody told, read by a model off the media that it is given."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from hydra.utils import instantiate
from jaxtyping import Bool, Float
from torch import Tensor

from mmdiff.checkpoint import Model
from mmdiff.conditioning import ClassEmbedder
from mmdiff.denoiser import Denoiser
from mmdiff.errors import check_at_least
from mmdiff.sampling import SeededNoise
from mmdiff.weighting import MinSNR


def recognize(
    model: Model,
    names: Sequence[str],
    conds: Sequence[Mapping[str, Any]],
    given: Sequence[Tensor],
    known: str | None = None,
    *,
    draws: int = 32,
) -> list[dict[str, Any]]:
    """Conditions of each sample, those of ``names`` that are open completed by what is seen in its given media.

    A model that denoises best when it is told "triangle" sees a triangle: the class with the least loss on what is
    kept, at the same levels and noise for all classes (Li et al. 2023, a diffusion model as a classifier), weighted as
    in the bound on the likelihood (Kingma et al. 2021), which leaves little to levels where nothing is to be seen.
    Names are read one after another, each knowing what was read before.

    Args:
        model: which was trained with these conditions.
        names: of conditions with classes.
        conds: of each sample.
        given: media, used in turn.
        known: the parts of them that are kept, in the modality's words; the others are not looked at.
        draws: levels at which a class is tried, spread over those of training.

    Raises:
        ValueError: if nothing is given, or for a condition that has no classes.
    """
    check_at_least(1, draws=draws)
    embedders = model.denoiser.conditioner.embedders
    readable = [name for name, embedder in embedders.items() if isinstance(embedder, ClassEmbedder)]
    for name in names:
        if name not in readable:
            raise ValueError(f"infer={name}: the conditions of this model with classes are {', '.join(readable)}.")
    if names and not given:
        raise ValueError("infer reads conditions off given media; add given=FILE.")
    sigmas = instantiate(model.config.train_schedule).quantile((torch.arange(draws).double() + 0.5) / draws)
    read: dict[tuple[int, str], dict[str, Any]] = {}
    completed = []
    for i, cond in enumerate(conds):
        place = i % max(len(given), 1)
        key = place, repr(sorted(cond.items(), key=str))
        if key not in read:
            read[key] = dict(cond)
            if unsaid := [name for name in names if cond.get(name) is None]:
                x0, kept = model.modality.place(given[place], known)
                for name in unsaid:
                    read[key][name] = _classify(model.denoiser, name, read[key], x0, kept, sigmas)
        completed.append(dict(read[key]))
    return completed


@torch.no_grad()
def _classify(
    denoiser: Denoiser,
    name: str,
    cond: Mapping[str, Any],
    x0: Float[Tensor, "*d"],
    kept: Bool[Tensor, "*parts"],
    sigmas: Float[Tensor, "draws"],
) -> Any:
    device, count = next(denoiser.parameters()).device, len(sigmas)
    x0, kept = x0.to(device).expand(count, *x0.shape), kept.to(device)
    levels = sigmas.to(x0)
    if not kept.all():
        levels = torch.where(kept, levels.reshape(-1, *[1] * kept.ndim), levels.max())
    noise = SeededNoise(range(count))(x0)
    losses = {}
    embedder = cast(ClassEmbedder, denoiser.conditioner.embedders[name])
    for label in embedder.classes:
        told = {**cond, name: label}
        context = denoiser.conditioner({key: [value] * count for key, value in told.items()}, count)
        loss = denoiser.loss(x0, levels, noise, context, mask=kept.expand_as(x0), weighting=MinSNR(gamma=math.inf))
        losses[label] = loss.mean().item()
    return min(losses, key=losses.__getitem__)
