"""Editing: files that are kept in part, varied, blended, carried over to another condition, or restored.

What is asked and what the model was trained for decide how a sample is drawn; the record of the samples says it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from jaxtyping import Bool, Float
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from mmdiff.checkpoint import Model, build_sampler
from mmdiff.errors import check_at_least
from mmdiff.generation import ROUND, by_name, confining, made_by, make_folder
from mmdiff.guidance import conditional
from mmdiff.outputs import Output
from mmdiff.sampling import Sampler, SeededNoise
from mmdiff.solvers import heun
from mmdiff.solvers.repaint import repaint
from mmdiff.types import Denoise

METHODS = ("auto", "levels", "repaint")
SAYS = {
    "levels": "kept parts are held by noise levels per part, with which the model was trained",
    "levels, refined": "kept parts are held by noise levels per part, then the rest is resampled beside them (RePaint)",
    "levels, untrained": "kept parts are held by noise levels per part, with which the model was not trained",
    "repaint": "kept parts are held by resampling (RePaint): the model was not trained with levels of such parts",
    "repaint, asked": "kept parts are held by resampling (RePaint), as asked",
    "varied": "files are noised part of the way and drawn again",
    "restored": "files are drawn so that they agree with what was measured",
    "denoised": "files are taken for states of the model at the level of their noise, and drawn from there",
    "carried over": "files are inverted under their conditions and drawn under others",
    "blended": "files are inverted and their noise is blended",
}
"""What each way to edit does."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is to become of given media.

    Args:
        keep: the parts that stay, in the modality's words (see `Modality.part`).
        strength: how far the rest is noised, of 1.
        method: how parts are kept: ``levels`` per part, ``repaint``, or what the model was trained for.
        jump: see `mmdiff.solvers.repaint`.
        repeats: see `mmdiff.solvers.repaint`.
        refine: how far elements that can move (see `Modality.confine`), made by levels that the model was trained
            with, are noised again, of 1, and resampled by RePaint in twice the steps, each walked half as often;
            0 leaves them.
        toward: media that samples lead to from the given ones, in equal steps.
        source: conditions that the given media are inverted under, to be drawn again under others.
        measured: what of the given media can be relied on (see `Modality.operator`); the rest is restored.
        noise: standard deviation of its error, in model space.
        inverse: one of `mmdiff.inverse`.
    """

    keep: str | None = None
    strength: float = 1.0
    method: str = "auto"
    jump: int = 4
    repeats: int = 10
    refine: float = 0.4
    toward: Tensor | None = None
    source: Mapping[str, Any] | None = None
    measured: str | None = None
    noise: float = 0.0
    inverse: Callable[..., Denoise] | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method}.")
        chosen = [name for name in ("keep", "toward", "source", "measured") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(f"{chosen[0]} and {chosen[1]} are different edits; give one of them.")
        if not chosen and self.strength == 1:
            raise ValueError("nothing is asked for: give keep=, strength= below 1, toward=, source= or measured=.")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must lie above 0 and be at most 1, got {self.strength:g}.")
        if not 0 <= self.refine <= 1:
            raise ValueError(f"refine must lie between 0 and 1, got {self.refine:g}.")
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, got {self.noise:g}.")
        check_at_least(1, jump=self.jump, repeats=self.repeats)

    @property
    def refining(self) -> "Edit":
        """The edit by RePaint of what levels made: half the repeats, for twice the steps."""
        return replace(self, strength=min(self.refine, self.strength), repeats=(self.repeats + 1) // 2)


def along(known: Bool[Tensor, "b *parts"], dims: Sequence[int]) -> Bool[Tensor, "b *line"] | None:
    """A mask that varies along these dimensions of an example alone, of size 1 along the others; None if others do."""
    for dim in range(1, known.ndim):
        if dim - 1 not in dims:
            first = known.narrow(dim, 0, 1)
            if (known != first).any():
                return None
            known = first
    return known


def keeps_by_levels(config: DictConfig, known: Bool[Tensor, "b *parts"]) -> Bool[Tensor, "b *line"] | None:
    """The mask in the form that a model was trained with levels of; None if it was not."""
    levels = config.get("levels")
    if levels is None:
        return None
    return along(known, getattr(instantiate(levels), "dims", range(known.ndim)))


def invert(denoise: Denoise, x0: Float[Tensor, "b *d"], sigmas: Float[Tensor, "n"]) -> Float[Tensor, "b *d"]:
    """The state at ``sigmas[0]`` that the probability flow leads to ``x0``: Song et al. 2021a, section 5; by `heun`."""
    *_, last = heun(denoise, x0, sigmas.flip(0))
    return last.x


def spherical(
    first: Float[Tensor, "b *d"], second: Float[Tensor, "b *d"], share: Float[Tensor, "b"]
) -> Float[Tensor, "b *d"]:
    """A share of the way between two states along the arc between them: Shoemake 1985, Song et al. 2021a, eq. 67."""
    share = share.to(first).reshape(-1, *[1] * (first.ndim - 1))
    axes = tuple(range(1, first.ndim))
    lengths = torch.linalg.vector_norm(first, dim=axes) * torch.linalg.vector_norm(second, dim=axes)
    angle = ((first * second).sum(axes) / lengths).clamp(-1, 1).acos().reshape(share.shape)
    straight = angle.sin() < 1e-4
    sine = torch.where(straight, 1, angle.sin())
    low = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / sine)
    return low * first + torch.where(straight, share, (share * angle).sin() / sine) * second


@torch.no_grad()
def edited(
    model: Model,
    conds: Sequence[Mapping[str, Any]],
    given: Sequence[Tensor],
    edit: Edit,
    *,
    seed: int,
    batch_size: int,
    against: Sequence[Mapping[str, Any]] = (),
) -> Iterator[tuple[Tensor, str]]:
    """Batches in model space, a sample for each of ``conds``, and how it was made; sample i has seed ``seed + i``."""
    check_at_least(1, count=len(conds), batch_size=batch_size)
    check_at_least(0, seed=seed)
    if edit.toward is not None:
        check_at_least(2, count=len(conds))
    sampler = build_sampler(model.config)
    with tqdm(total=len(conds), unit="sample", dynamic_ncols=True) as bar:
        for start in range(0, len(conds), batch_size):
            part = conds[start : start + batch_size]
            numbers = range(start, start + len(part))
            media = [given[i % len(given)] for i in numbers]
            told = by_name(part), by_name(against[start : start + batch_size])
            draw = _Draw(model, sampler, *told, [seed + i for i in numbers])
            if edit.toward is not None:
                x, how = draw.between(media, edit.toward, torch.tensor([i / (len(conds) - 1) for i in numbers]), edit)
            elif edit.source is not None:
                x, how = draw.carried(media, edit.source, edit)
            elif edit.measured is not None:
                x, how = draw.restored(media, edit.measured, edit)
            else:
                x, how = draw.kept(media, edit)
            yield x.cpu(), how
            bar.update(len(part))


def edit_files(
    model: Model,
    conds: Sequence[Mapping[str, Any]],
    paths: Sequence[Path],
    given: Sequence[Tensor],
    edit: Edit,
    folder: str | Path,
    *,
    seed: int,
    batch_size: int,
    record: Mapping[str, Any],
    against: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Write one file per entry of ``conds``, ``samples.jsonl`` and ``preview.png``; returns what was done, in words.

    Args:
        model: what samples.
        conds: condition values of each sample.
        paths: of the files, used in turn.
        given: what they hold.
        edit: what is to become of them.
        folder: for the new ones.
        seed: of the first sample; sample i has ``seed + i``.
        batch_size: samples at a time.
        record: what ``samples.jsonl`` is to say of the edit.
        against: conditions of each sample that guidance moves away from.

    Raises:
        ValueError: for a part, a measurement or a condition that the model does not know.
        DataError: if the folder cannot be written.
    """
    asked = {**record, **made_by(model)}
    entries = [
        {"file": f"{i:05d}{model.modality.suffix}", "seed": seed + i, "cond": dict(cond)}
        | ({"against": dict(against[i])} if against else {})
        | {"given": str(paths[i % len(paths)]), **asked}
        for i, cond in enumerate(conds)
    ]
    output = Output(make_folder(folder), model.modality, entries)
    output.forget()
    ways = set()
    index = 0
    for x, how in edited(model, conds, given, edit, seed=seed, batch_size=batch_size, against=against):
        ways.add(how)
        for item in model.modality.decode(x):
            output.write(index, item, paths[index % len(paths)], {"edit": how, **_resampling(how, edit)})
            index += 1
    output.finish()
    return "; ".join(SAYS[how] for how in sorted(ways))


def _resampling(how: str, edit: Edit) -> dict[str, Any]:
    """What the record says of RePaint."""
    if how == "levels, refined":
        return {"refine": {"strength": edit.refining.strength, "solver": _repaint_options(edit.refining)}}
    return {"solver": _repaint_options(edit), "lag": 0} if how.startswith("repaint") else {}


def _repaint_options(edit: Edit) -> dict[str, Any]:
    return {"name": "repaint", "jump": edit.jump, "repeats": edit.repeats}


@dataclass(frozen=True)
class _Draw:
    """One batch of edits."""

    model: Model
    sampler: Sampler
    cond: Mapping[str, Sequence[Any]]
    against: Mapping[str, Sequence[Any]]
    seeds: Sequence[int]

    def kept(self, media: Sequence[Tensor], edit: Edit) -> tuple[Tensor, str]:
        modality = self.model.modality
        if edit.keep is None:
            return self._sampled(torch.stack([modality.encode(one) for one in media]), edit.strength), "varied"
        placed = [modality.place(one, edit.keep) for one in media]
        x0, known = torch.stack([x for x, _ in placed]), torch.stack([keep for _, keep in placed])
        if known.flatten(1).all(1).any():
            raise ValueError(f"keep={edit.keep} keeps all of what is given; nothing is left to generate.")
        keeping = confining(modality, media, edit.keep, known)
        line = keeps_by_levels(self.model.config, known)
        if edit.method == "levels" or (edit.method == "auto" and line is not None):
            sampler = self.sampler if edit.strength == 1 else replace(self.sampler, lag=0)
            if line is None:
                return self._sampled(x0, edit.strength, sampler, known=known, adapt=keeping), "levels, untrained"
            x = self._sampled(x0, edit.strength, sampler, known=line, adapt=keeping)
            if keeping is None or edit.refine == 0:
                return x, "levels"
            finer = replace(self.sampler, steps=2 * self.sampler.steps)
            again = replace(self, sampler=finer, seeds=[seed + ROUND for seed in self.seeds])
            return again._resampled(x, known, keeping, edit.refining), "levels, refined"
        return self._resampled(x0, known, keeping, edit), "repaint" if line is None else "repaint, asked"

    def restored(self, media: Sequence[Tensor], measured: str, edit: Edit) -> tuple[Tensor, str]:
        modality, inverse = self.model.modality, edit.inverse
        assert inverse is not None
        device = next(self.model.denoiser.parameters()).device
        x0 = torch.stack([modality.encode(one) for one in media]).to(device)
        if measured == "all" and edit.noise and all(modality.mask(one) is None for one in media):
            return self._from(x0, self._sigmas_below(edit.noise)), "denoised"
        operators = [modality.operator(measured, one) for one in media]

        def each(x: Tensor) -> Tensor:
            return torch.cat([one(x[i : i + 1]) for i, one in enumerate(operators)])

        operator = operators[0] if all(one is media[0] for one in media) else each

        heeding = partial(inverse, operator=operator, y=operator(x0), noise=edit.noise)
        return self._sampled(None if edit.strength == 1 else x0, edit.strength, adapt=heeding), "restored"

    def carried(self, media: Sequence[Tensor], source: Mapping[str, Any], edit: Edit) -> tuple[Tensor, str]:
        state = self._inverted(media, {name: [value] * len(media) for name, value in source.items()}, edit)
        return self._from(state, self._sigmas(edit)), "carried over"

    def between(self, media: Sequence[Tensor], last: Tensor, share: Tensor, edit: Edit) -> tuple[Tensor, str]:
        here, there = (self._inverted(ones, self.cond, edit) for ones in (media, [last] * len(media)))
        return self._from(spherical(here, there, share), self._sigmas(edit)), "blended"

    def _inverted(self, media: Sequence[Tensor], cond: Mapping[str, Sequence[Any]], edit: Edit) -> Tensor:
        denoiser, modality = self.model.denoiser, self.model.modality
        denoise = replace(self.sampler, guidance=conditional).bind(denoiser, cond, len(media))
        x0 = torch.stack([modality.encode(one) for one in media]).to(next(denoiser.parameters()).device)
        return invert(denoise, x0, self._sigmas(edit))

    def _from(self, state: Tensor, sigmas: Tensor) -> Tensor:
        denoise = self.sampler.bind(self.model.denoiser, self.cond, len(state), self.against)
        *_, last = self.sampler.solver(denoise, state, sigmas, SeededNoise(self.seeds))
        return last.x

    def _sigmas(self, edit: Edit) -> Tensor:
        return self.sampler.schedule.grid(self.sampler.steps, edit.strength)

    def _sigmas_below(self, noise: float) -> Tensor:
        """The schedule from a level on, in as many steps as a whole sample takes."""
        schedule = self.sampler.schedule
        times = torch.linspace(0, 1, 10_001, dtype=torch.float64)
        above = (schedule.quantile(times) >= noise).nonzero()
        if not len(above):
            most = schedule.quantile(times[-1:]).item()
            raise ValueError(f"noise={noise:g} lies above the highest level of the schedule, {most:.4g}.")
        sigmas = schedule.grid(self.sampler.steps, max(times[above[0, 0]].item(), 1e-4))
        return torch.cat([sigmas.new_tensor([noise]), sigmas[1:][sigmas[1:] < noise]])

    def _resampled(self, x0: Tensor, known: Tensor, keeping: Callable[[Denoise], Denoise] | None, edit: Edit) -> Tensor:
        resampling = partial(repaint, jump=edit.jump, repeats=edit.repeats)
        return self._sampled(x0, edit.strength, known=known, adapt=keeping, resampling=resampling)

    def _sampled(self, x0: Tensor | None, strength: float, sampler: Sampler | None = None, **options: Any) -> Tensor:
        modality, sampler = self.model.modality, sampler or replace(self.sampler, lag=0)
        return sampler(
            self.model.denoiser,
            modality.shape,
            self.cond,
            self.seeds,
            against=self.against,
            given=x0,
            time=modality.time,
            strength=strength,
            **options,
        )
