"""A folder of files of any modality, with what is said about them."""

import csv
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmdiff.errors import DataError
from mmdiff.modality import Modality

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
            state = torch.get_rng_state()
            try:
                return self._read(i), self.conditions[i]
            except DataError as error:
                # The next file is cropped the same whether or not this one is known to be bad.
                torch.set_rng_state(state)
                self.bad[i] = True
                warnings.warn(f"skipped {error}", stacklevel=2)
        raise DataError(self.root, f"none of its {len(self)} files can be read")

    def _scan(self) -> Iterable[tuple[Path, dict[str, Any]]]:
        return scan(self.root, self.modality.suffixes)

    def _read(self, index: int) -> Tensor:
        return self.modality.read(self.files[index], torch.default_generator)


def scan(root: Path, suffixes: Sequence[str] | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Files below a folder with their conditions, as `Folder` says; of all kinds where no suffixes are given.

    Raises:
        DataError: if the folder is missing, or its metadata or a caption are not valid.
    """
    if not root.is_dir():
        raise DataError(root, "is not a folder; data.root must name one")
    metadata = next((root / name for name in METADATA if (root / name).is_file()), None)
    if metadata:
        for row in _rows(metadata):
            path = root / row.pop("file_name")
            row |= {name: str(root / v) for name, v in row.items() if str(v).endswith(".npy")}
            yield path, _told(path, root, suffixes) | row
        return
    for path in sorted(root.rglob("*")):
        if (suffixes is None or path.suffix.lower() in suffixes) and path.is_file():
            yield path, _told(path, root, suffixes)


def _told(path: Path, root: Path, suffixes: Sequence[str] | None) -> dict[str, Any]:
    label = path.parent.relative_to(root).as_posix()
    told = {} if label == "." else {"label": label}
    caption = path.with_suffix(".txt")
    if ".txt" not in (suffixes or ()) and caption != path and caption.is_file():
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
