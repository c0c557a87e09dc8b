"""Data: a folder of files of any modality, and the loaders that turn examples into batches.

A data set is any map-style data set whose items are pairs (media, cond): media as its modality reads them, cond a
dictionary of raw values by name.
"""

import csv
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from mmdiff.errors import DataError, check_at_least
from mmdiff.modality import Modality
from mmdiff.types import Batch, Example, MediaSet

METADATA = ("metadata.jsonl", "metadata.csv")


class Folder(Dataset):
    """The files below a folder, with conditions from folder names and a metadata file.

    A file's condition ``label`` is the path of its folder relative to the root, and ``text`` what a file of the same
    name that ends in .txt beside it says. A ``metadata.jsonl`` or ``metadata.csv`` in the root whose rows have a
    ``file_name`` adds (or replaces) conditions by column, among them .npy files by their path in the root; where it
    exists, only the files that it names are used. A file that cannot be read is named in one warning and another one
    takes its place.

    Args:
        root: the folder.
        modality: reads the files.

    Raises:
        DataError: if the folder is missing or holds no file of the modality, or later if none can be read.
    """

    def __init__(self, root: str | os.PathLike[str], modality: Modality):
        self.root = Path(root)
        self.modality = modality
        if not self.root.is_dir():
            raise DataError(root, "is not a folder; data.root must name one")
        self.conditions: list[dict[str, Any]] = []
        self.files: list[Path] = []
        for path, cond in self._scan():
            self.files.append(path)
            self.conditions.append(cond)
        if not self.files:
            raise DataError(root, f"holds no file that ends in {', '.join(modality.suffixes)}")
        # Shared memory, so that a file found bad by one worker is neither read nor named again by another.
        self.bad = torch.zeros(len(self.files), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        for i in chain(range(index, len(self)), range(index)):
            if self.bad[i]:
                continue
            try:
                return self.modality.read(self.files[i], torch.default_generator), self.conditions[i]
            except DataError as error:
                self.bad[i] = True
                warnings.warn(f"skipped {error}", stacklevel=2)
        raise DataError(self.root, f"none of its {len(self)} files can be read")

    def _scan(self) -> Iterable[tuple[Path, dict[str, Any]]]:
        metadata = next((self.root / name for name in METADATA if (self.root / name).is_file()), None)
        if metadata:
            for row in _rows(metadata):
                path = self.root / row.pop("file_name")
                row |= {name: str(self.root / v) for name, v in row.items() if str(v).endswith(".npy")}
                yield path, self._told(path) | row
            return
        for path in sorted(self.root.rglob("*")):
            if path.suffix.lower() in self.modality.suffixes and path.is_file():
                yield path, self._told(path)

    def _told(self, path: Path) -> dict[str, Any]:
        label = path.parent.relative_to(self.root).as_posix()
        told = {} if label == "." else {"label": label}
        caption = path.with_suffix(".txt")
        if ".txt" not in self.modality.suffixes and caption.is_file():
            try:
                told["text"] = caption.read_text(encoding="utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(caption, f"is not a text in UTF-8 ({error.reason})") from error
        return told


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metadata file; in csv, columns whose every value is a number become numbers, empty cells None."""
    with path.open(newline="", encoding="utf-8") as lines:
        try:
            rows = (
                [json.loads(line) for line in lines if line.strip()]
                if path.suffix == ".jsonl"
                else list(csv.DictReader(lines))
            )
        except ValueError as error:
            raise DataError(path, f"is not valid {path.suffix[1:]}: {error}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.get("file_name") or not isinstance(row["file_name"], str):
            raise DataError(path, f"row {number} has no file_name")
        if None in row:
            raise DataError(path, f"row {number} has more cells than the header has columns")
    if path.suffix == ".csv":
        for column in set(rows[0]) - {"file_name"} if rows else ():
            values = [row[column] or None for row in rows]
            numeric = all(v is None or _is_number(v) for v in values)
            for row, value in zip(rows, values, strict=True):
                row[column] = float(value) if numeric and value is not None else value
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Encoded(Dataset):
    """Examples in model space, encoded from a data set of media.

    Args:
        media: the data set of (media, cond).
        modality: encodes them.
        cache: keep every encoded example in memory, for data sets without random crops that fit there.
    """

    def __init__(self, media: MediaSet, modality: Modality, cache: bool = False):
        self.media = media
        self.modality = modality
        self.cache: dict[int, Example] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.media)

    def __getitem__(self, index: int) -> Example:
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        media, cond = self.media[index]
        example = Example(self.modality.encode(media), cond, self.modality.mask(media))
        if example.x.shape != self.modality.shape:
            raise ValueError(
                f"example {index} has shape {tuple(example.x.shape)} in model space, "
                f"its modality says {self.modality.shape}."
            )
        if self.cache is not None:
            self.cache[index] = example
        return example


def collate(examples: Sequence[Example]) -> Batch:
    """A batch; conditions that an example lacks are None, masks that it lacks are all true."""
    x = torch.stack([e.x for e in examples])
    names = sorted({name for e in examples for name in e.cond})
    cond = {name: [e.cond.get(name) for e in examples] for name in names}
    if all(e.mask is None for e in examples):
        return Batch(x, cond)
    masks = [torch.ones(e.x.shape, dtype=torch.bool) if e.mask is None else e.mask for e in examples]
    return Batch(x, cond, torch.stack(masks))


class DataModule(L.LightningDataModule):
    """Loaders over one data set, of which a fixed part is held out for validation and evaluation.

    Args:
        dataset: of (media, cond).
        modality: encodes the media.
        batch_size: examples per process.
        held_out: examples held out; a fraction if below 1. At least one where the data set has two.
        num_workers: worker processes of each loader.
        cache: keep encoded examples in memory (see `Encoded`).
    """

    def __init__(
        self,
        dataset: MediaSet,
        modality: Modality,
        *,
        batch_size: int = 32,
        held_out: float = 0.05,
        num_workers: int = 0,
        cache: bool = False,
    ):
        super().__init__()
        check_at_least(1, **{"data.batch_size": batch_size})
        self.dataset = dataset
        self.modality = modality
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.cache = cache
        count = len(dataset)
        held = min(max(round(held_out * count if held_out < 1 else held_out), 1), count // 2)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        self.train: MediaSet = Subset(dataset, order[held:])  # type: ignore[arg-type]
        self.held_out: MediaSet = Subset(dataset, order[:held])  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches; the last, smaller one is left out unless it is the only one."""
        return self._loader(self.train, shuffle=True, drop_last=len(self.train) >= self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Batches of the held-out examples, in order."""
        return self._loader(self.held_out)

    def _loader(self, media: MediaSet, **options: Any) -> DataLoader:
        return DataLoader(
            Encoded(media, self.modality, self.cache),
            batch_size=self.batch_size,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **options,
        )

    @cached_property
    def conditions(self) -> dict[str, list[Any]]:
        """Known values of every condition: of all examples if the data set lists them, else of the first 1024."""
        listed = getattr(self.dataset, "conditions", None)
        if listed is None:
            listed = [self.dataset[i][1] for i in range(min(len(self.dataset), 1024))]
        names = sorted({name for cond in listed for name in cond})
        return {name: [c[name] for c in listed if c.get(name) is not None] for name in names}

    def media(self, count: int) -> Iterable[Tensor]:
        """Media of up to ``count`` training examples."""
        return (self.train[i][0] for i in range(min(count, len(self.train))))


def folder(root: str | os.PathLike[str], modality: Modality, **options: Any) -> DataModule:
    """Loaders over a `Folder`; ``options`` are those of `DataModule`."""
    return DataModule(Folder(root, modality), modality, **options)
