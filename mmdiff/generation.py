"""Generation to files: from a model and what is asked of it to a folder a person can look into."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor
from tqdm import tqdm

from mmdiff.checkpoint import Model, build_sampler, to_dict
from mmdiff.errors import DataError, check_at_least
from mmdiff.pictures import describe, save_grid

PICTURED = 64  # samples in the preview
CHOICES = ("schedule", "solver", "guidance", "steps")


def override(config: DictConfig, given: DictConfig) -> None:
    """Put the sampling choices of a command over those of a checkpoint.

    A group chosen anew replaces the checkpoint's; single values given without a choice are set in it.

    Raises:
        ValueError: for a value that the checkpoint's choice does not take.
    """
    with open_dict(config):
        for name in CHOICES:
            value = given.get(name)
            if isinstance(value, DictConfig) and "_target_" not in value:
                surplus = set(value) - set(config[name])
                if surplus:
                    chosen = config[name]["_target_"].rpartition(".")[2]
                    raise ValueError(f"{name}.{min(surplus)} is not an option of {chosen}; choose another {name}=NAME.")
                config[name] = OmegaConf.merge(config[name], value)
            elif value is not None:
                config[name] = value


def spread(cond: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Conditions of each sample: a list of values is used in turn, a single one by all."""
    check_at_least(1, count=count)
    lists = {name: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else [v] for name, v in cond.items()}
    empty = [name for name, values in lists.items() if not values]
    if empty:
        raise ValueError(f"cond.{empty[0]} is an empty list; give a value or leave the name out.")
    return [{name: values[i % len(values)] for name, values in lists.items()} for i in range(count)]


def batches(model: Model, conds: Sequence[Mapping[str, Any]], *, seed: int, batch_size: int) -> Iterator[Tensor]:
    """Media of one sample per entry of ``conds``, in batches; sample i has seed ``seed + i``."""
    check_at_least(1, count=len(conds), batch_size=batch_size)
    check_at_least(0, seed=seed)
    sampler = build_sampler(model.config)
    names = sorted({name for cond in conds for name in cond})
    with tqdm(total=len(conds), unit="sample", dynamic_ncols=True) as bar:
        for start in range(0, len(conds), batch_size):
            part = conds[start : start + batch_size]
            seeds = range(seed + start, seed + start + len(part))
            cond = {name: [c.get(name) for c in part] for name in names}
            yield model.modality.decode(sampler(model.denoiser, model.modality.shape, cond, seeds).cpu())
            bar.update(len(part))


def generate(
    model: Model, conds: Sequence[Mapping[str, Any]], folder: str | Path, *, seed: int = 0, batch_size: int = 16
) -> list[Tensor]:
    """Write one file per entry of ``conds``, ``samples.jsonl`` and ``preview.png``; returns the batches of media.

    Raises:
        ValueError: for a condition that the model does not know.
        DataError: if the folder cannot be written.
    """
    folder = make_folder(folder)
    made: list[Tensor] = []
    pictures: list[Tensor] = []
    index = 0
    chosen = {name: plain(model.config[name]) for name in CHOICES}
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as record:
        for media in batches(model, conds, seed=seed, batch_size=batch_size):
            made.append(media)
            for item in media:
                path = folder / f"{index:05d}{model.modality.suffix}"
                model.modality.write(item, path)
                if index < PICTURED:
                    pictures.append(model.modality.preview(item))
                entry = {"file": path.name, "seed": seed + index, "cond": dict(conds[index])}
                record.write(json.dumps(entry | chosen, ensure_ascii=False) + "\n")
                index += 1
    save_grid(pictures, [describe(cond) for cond in conds[:PICTURED]], folder / "preview.png")
    return made


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
