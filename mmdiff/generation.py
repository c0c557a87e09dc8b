"""Generation to files: from a model and what is asked of it to a folder a person can look into."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from jaxtyping import Bool
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor
from tqdm import tqdm

from mmdiff.autoguidance import check_guidance
from mmdiff.checkpoint import Model, build_sampler, fingerprint, to_dict
from mmdiff.errors import DataError, allowed, check_at_least
from mmdiff.modality import Modality
from mmdiff.outputs import Alone, Output, Processes
from mmdiff.sampling import Between, Sampler
from mmdiff.types import Denoise

ROUND = 0x9E3779B9  # far from all seeds in use, as are its multiples modulo 2^32, beyond which generators do not count
CHOICES = ("schedule", "solver", "guidance", "steps", "lag")


def override(model: Model, given: DictConfig) -> Model:
    """A model with the sampling choices of a command over those of its checkpoint.

    A group chosen anew replaces the checkpoint's; single values given without a choice are set in it. Values of the
    modality apply to what is generated, for instance a longer duration; the network stays as it was trained.

    Raises:
        ValueError: for a value that the checkpoint's choice does not take.
    """
    config = model.config
    trained = OmegaConf.create({"modality": config.modality})
    with open_dict(config):
        for name in (*CHOICES, "modality"):
            value = given.get(name)
            if isinstance(value, DictConfig) and "_target_" not in value:
                surplus = min(set(value) - set(config[name]), default=None)
                if surplus and name == "modality":
                    options = [str(key) for key in (*given, *config.modality) if key not in ("hydra", "_target_")]
                    raise ValueError(f"{surplus} is not an option; {allowed(surplus, options, 'the command')}.")
                if surplus:
                    chosen = config[name]["_target_"].rpartition(".")[2]
                    raise ValueError(f"{name}.{surplus} is not an option of {chosen}; choose another {name}=NAME.")
                config[name] = OmegaConf.merge(config[name], value)
            elif value is not None:
                config[name] = value
    check_guidance(config.guidance, trained)
    return model if given.get("modality") is None else model._replace(modality=instantiate(config.modality))


def spread(cond: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Conditions of each sample: a list of values is used in turn, a single one by all."""
    check_at_least(1, count=count)
    lists = {name: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else [v] for name, v in cond.items()}
    empty = [name for name, values in lists.items() if not values]
    if empty:
        raise ValueError(f"cond.{empty[0]} is an empty list; give a value or leave the name out.")
    return [{name: values[i % len(values)] for name, values in lists.items()} for i in range(count)]


def batches(
    model: Model,
    conds: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    batch_size: int,
    against: Sequence[Mapping[str, Any]] = (),
    toward: int | None = None,
    given: Sequence[Tensor] = (),
    known: str | None = None,
    extend: int = 0,
    starts: Sequence[int] | None = None,
    quiet: bool = False,
) -> Iterator[Tensor]:
    """Media of one sample per entry of ``conds``, in batches; sample i has seed ``seed + i`` (see `generate`).

    ``starts`` are the first samples of the batches that are wanted, if not all; ``quiet`` shows no progress.
    """
    check_at_least(1, count=len(conds), batch_size=batch_size)
    check_at_least(0, seed=seed, extend=extend)
    numbers: Sequence[int | Between] = range(seed, seed + len(conds))
    if toward is not None:
        check_at_least(0, toward=toward)
        check_at_least(2, count=len(conds))
        numbers = [Between(seed, toward, i / (len(conds) - 1)) for i in range(len(conds))]
    if known is not None and not given:
        raise ValueError(f"known={known} names parts of given media; add given=FILE.")
    sampler = build_sampler(model.config)
    starts = range(0, len(conds), batch_size) if starts is None else starts
    total = sum(len(conds[start : start + batch_size]) for start in starts)
    with tqdm(total=total, unit="sample", dynamic_ncols=True, disable=quiet) as bar:
        for start in starts:
            part = conds[start : start + batch_size]
            seeds = numbers[start : start + len(part)]
            draw = partial(_draw, model, sampler, by_name(part), by_name(against[start : start + batch_size]))
            media = draw(
                seeds, [given[i % len(given)] for i in range(start, start + len(part))] if given else [], known
            )
            yield _go_on(draw, media, seeds, model.modality.time, extend) if extend else media
            bar.update(len(part))


def by_name(conds: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Conditions of each sample as one list of values for each name; None where a sample has none."""
    names = sorted({name for cond in conds for name in cond})
    return {name: [cond.get(name) for cond in conds] for name in names}


def _draw(
    model: Model,
    sampler: Sampler,
    cond: Mapping[str, Sequence[Any]],
    against: Mapping[str, Sequence[Any]],
    seeds: Sequence[int | Between],
    given: Sequence[Tensor],
    known: str | None = None,
) -> Tensor:
    """Media of one sample per seed, which complete the given ones."""
    modality = model.modality
    draw = partial(sampler, model.denoiser, modality.shape, cond, seeds, against=against, time=modality.time)
    if not given:
        return modality.decode(draw().cpu())
    placed = [modality.place(media, known) for media in given]
    x0, kept = torch.stack([x for x, _ in placed]), torch.stack([keep for _, keep in placed])
    if kept.flatten(1).all(1).any():
        raise ValueError(f"known={known or 'null'} keeps all of what is given; nothing is left to generate.")
    return modality.decode(draw(given=x0, known=kept, adapt=confining(modality, given, known, kept)).cpu())


def confining(
    modality: Modality, media: Sequence[Tensor], words: str | None, kept: Bool[Tensor, "b *parts"]
) -> Callable[[Denoise], Denoise] | None:
    """Makes the new elements of a denoiser keep out of what words name of given media; None where none can move.

    Levels per part tell a denoiser what is kept, and its prediction is moved. At one level for all it is not told: it
    predicts the mean of a law that reaches across the border, N(x0, s^2) with s^2 = sigma^2 / (1 + sigma^2) for unit
    Gaussian data; what is wanted is the mean of what lies outside.
    """
    moves = [modality.confine(one, words) for one in media] if words else []

    def adapt(denoise: Denoise) -> Denoise:
        def confined(x: Tensor, sigma: Tensor) -> Tensor:
            x0 = denoise(x, sigma)
            spread = sigma / (1 + sigma**2).sqrt() if sigma.ndim == 0 else 0
            moved = [
                one if move is None else _mean_outside(move, one, spread) for one, move in zip(x0, moves, strict=True)
            ]
            return torch.where(kept.to(x0.device), x0, torch.stack(moved))

        return confined

    return adapt if any(moves) else None


def _mean_outside(move: Callable[[Tensor], Tensor], x0: Tensor, spread: Tensor | float) -> Tensor:
    """The mean of what ``move`` leaves of a Gaussian around ``x0``; of the moved, where it leaves nothing.

    Of the Gaussian are taken the middles of 16 equally likely parts.
    """
    if not spread:
        return move(x0)
    places = torch.special.ndtri((torch.arange(16) + 0.5) / 16)
    draws = torch.stack([x0 + spread * place for place in places])
    moved = torch.stack([move(draw) for draw in draws])
    stay = moved == draws
    return torch.where(stay.any(0), (draws * stay).sum(0) / stay.sum(0).clamp(min=1), moved.mean(0))


def _go_on(
    draw: Callable[..., Tensor], media: Tensor, seeds: Sequence[int | Between], time: int | None, times: int
) -> Tensor:
    """Continue media from their last half, again and again; round r takes seeds r ``ROUND`` higher."""
    if time is None:
        raise ValueError("extend continues in time, which samples of this modality do not have; leave it out.")
    clip = media
    length = clip.shape[time]
    half = length // 2
    for round_ in range(1, times + 1):
        last = list(clip.narrow(time, length - half, half))
        clip = draw([seed + round_ * ROUND for seed in seeds], last)
        media = torch.cat([media, clip.narrow(time, half, length - half)], time)
    return media


def generate(model: Model, conds: Sequence[Mapping[str, Any]], folder: str | Path, **options: Any) -> list[Tensor]:
    """Write one file per entry of ``conds``, ``samples.jsonl`` and ``preview.png``; returns the batches of media.

    Arguments and errors are those of `produce`.
    """
    return list(produce(model, conds, folder, **options))


def produce(
    model: Model,
    conds: Sequence[Mapping[str, Any]],
    folder: str | Path,
    *,
    seed: int = 0,
    batch_size: int = 16,
    against: Sequence[Mapping[str, Any]] = (),
    toward: int | None = None,
    given: Sequence[Tensor] = (),
    paths: Sequence[Path] = (),
    known: str | None = None,
    extend: int = 0,
    resume: bool = False,
    processes: Processes | None = None,
) -> Iterator[Tensor]:
    """Write one file per entry of ``conds``, then ``samples.jsonl`` and ``preview.png``; yields each written batch.

    Several processes write what one does: the batches are the same whatever their number, and each process makes
    some of them. A batch of which nothing is missing is not made again.

    Args:
        model: what samples.
        conds: condition values of each sample.
        folder: for the files; one for all processes.
        seed: of the first sample; sample i has ``seed + i``.
        batch_size: samples at a time; it changes the last bits of a sample.
        against: conditions of each sample that guidance moves away from; none if empty.
        toward: a second seed; samples then lead from the noise of ``seed`` to its noise in equal steps.
        given: media that samples complete, used in turn.
        paths: the files of the given media, whose units the samples are written in.
        known: the parts of them to keep, in the modality's words (see `Modality.place`).
        extend: how often to continue each sample from its last half.
        resume: keep the samples that are done (see `mmdiff.outputs.Output`).
        processes: this one among those that share the work; None if it is alone.

    Raises:
        ValueError: for a condition that the model does not know.
        DataError: if the folder cannot be written.
    """
    check_at_least(1, count=len(conds), batch_size=batch_size)
    check_at_least(0, seed=seed)
    processes = processes or Alone()
    asked = made_by(model)
    entries = []
    for i, cond in enumerate(conds):
        entry = {"file": f"{i:05d}{model.modality.suffix}", "seed": seed + i, "cond": dict(cond)}
        if against and any(against[i].values()):
            entry["against"] = dict(against[i])
        if toward is not None:
            entry |= {"seed": seed, "toward": toward, "share": i / max(len(conds) - 1, 1)}
        if given or extend:
            entry |= {"given": str(paths[i % len(paths)]) if paths else None, "known": known, "extend": extend}
        entries.append(entry | asked)
    output = Output(make_folder(folder), model.modality, entries)
    if processes.global_rank == 0 and not resume:
        output.forget()
    processes.barrier()
    done = output.done()
    processes.barrier()
    missing = [i for i in range(0, len(conds), batch_size) if not all(done[i : i + batch_size])]
    starts = missing[processes.global_rank :: processes.world_size]
    drawn = batches(
        model,
        conds,
        seed=seed,
        batch_size=batch_size,
        against=against,
        toward=toward,
        given=given,
        known=known,
        extend=extend,
        starts=starts,
        quiet=processes.global_rank > 0,
    )
    for start, media in zip(starts, drawn, strict=True):
        for i, item in enumerate(media, start):
            if not done[i]:
                output.write(i, item, paths[i % len(paths)] if paths else None)
        yield media
    processes.barrier()
    if processes.global_rank == 0:
        output.finish()


def made_by(model: Model) -> dict[str, Any]:
    """For a record: the digest of weights and modality, and the sampling choices."""
    return {"model": fingerprint(model)} | {name: plain(model.config[name]) for name in CHOICES}


def make_folder(path: str | Path) -> Path:
    """Create a folder for output.

    Raises:
        DataError: if it cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(folder, f"cannot be written ({error.strerror}); choose another output=DIR") from error
    return folder


def plain(choice: Any) -> Any:
    """A sampling choice for a record: the name of its function or class, and its arguments."""
    if not isinstance(choice, DictConfig):
        return choice
    arguments = to_dict(choice)
    name = arguments.pop("_target_").rpartition(".")[2]
    return {"name": name} | {key: value for key, value in arguments.items() if key != "_partial_"}
