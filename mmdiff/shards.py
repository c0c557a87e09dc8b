"""Shards: many files in few tar archives, with an index, so that a data set of them is read like a folder.

An example is read by its number, from its shard and its place there. So shuffling, dividing an epoch among processes
and resuming are the sampler's business, as with any map-style data set, and nothing depends on the number of shards,
processes or workers.
"""

import json
import os
import secrets
import tarfile
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from torch import Tensor

from mmdiff.errors import DataError, check_at_least
from mmdiff.folder import Folder, scan
from mmdiff.modality import Modality

INDEX = "shards.jsonl"


def pack(root: str | os.PathLike[str], output: str | os.PathLike[str], *, size: int = 256 * 2**20) -> tuple[int, int]:
    """Pack the files of a folder as they are, with their conditions; returns the numbers of files and of shards.

    The index, ``shards.jsonl``, is written last. Each of its lines has a ``file_name``, its ``cond`` (see
    `mmdiff.folder.Folder`) and its ``place``: the shard, the byte at which the file begins and its length. A file that
    cannot be read is named in a warning and left out.

    Args:
        root: the folder.
        output: the folder for the shards.
        size: bytes of files in a shard, at most if it holds more than one.

    Raises:
        DataError: if there is nothing to pack, or the output has shards already.
    """
    root, output = Path(root), Path(output)
    check_at_least(1, size=size)
    if (output / INDEX).exists():
        raise DataError(output, "has shards already; choose another output=DIR")
    rows: list[dict[str, Any]] = []
    count = 0
    for count, group in enumerate(_groups(scan(root), size), 1):
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"{count - 1:05d}.tar"
        named = [(file.relative_to(root).as_posix(), file, cond) for file, cond in group]
        with tarfile.open(path, "w", dereference=True) as shard:
            for name, file, _ in named:
                shard.add(file, name)
        with tarfile.open(path) as shard:
            places = {member.name: (path.name, member.offset_data, member.size) for member in shard}
        rows += [{"file_name": name, "cond": cond, "place": places[name]} for name, _, cond in named]
    if not rows:
        raise DataError(root, "holds no file to pack")
    unfinished = output / f".{INDEX}"
    unfinished.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(output / INDEX)
    return len(rows), count


def _groups(files: Iterable[tuple[Path, dict[str, Any]]], size: int) -> Iterator[list[tuple[Path, dict[str, Any]]]]:
    group: list[tuple[Path, dict[str, Any]]] = []
    total = 0
    for file, cond in files:
        try:
            with file.open("rb"):
                length = file.stat().st_size
        except OSError as error:
            warnings.warn(f"skipped {file}: cannot be read ({error.strerror})", stacklevel=2)
            continue
        if group and total + length > size:
            yield group
            group, total = [], 0
        group.append((file, cond))
        total += length
    if group:
        yield group


class Shards(Folder):
    """The files of a folder that `pack` packed, examples and order as in `mmdiff.folder.Folder`.

    Shards may lie behind an address that fsspec knows (``https://...``, ``s3://...``): the index is read once, of a
    shard only the bytes of an example.

    Args:
        root: the folder of the shards, or its address.
        modality: reads the files, each from a temporary copy, which lives too shortly to reach a disk.

    Raises:
        DataError: also if a shard is missing or cut off.
    """

    def __init__(self, root: str | os.PathLike[str], modality: Modality):
        self.address = str(root).rstrip("/")
        super().__init__(root, modality)

    def _scan(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        self.places: list[tuple[str, int, int]] = []
        ends: dict[str, int] = {}
        for number, line in enumerate(self._fetch(INDEX).decode("utf-8").split("\n"), 1):
            if not line:
                continue
            try:
                row = json.loads(line)
                name, (shard, start, length), cond = row["file_name"], row["place"], row["cond"]
                ends[shard] = max(ends.get(shard, 0), start + length)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(self.root / INDEX, f"line {number} is not one of mmdiff shard") from error
            if Path(name).suffix.lower() in self.modality.suffixes:
                self.places.append((shard, start, length))
                yield self.root / shard / name, cond
        files, folder = url_to_fs(self.address)
        for shard, end in ends.items():
            there = _size(files, f"{folder}/{shard}")
            if there is not None and there < end:
                name = f"{self.address}/{shard}"
                raise DataError(name, f"is missing or cut off: {there} of at least {end} bytes; copy it again")

    def _read(self, index: int) -> Tensor:
        (shard, start, length), name = self.places[index], self.files[index]
        content = self._fetch(shard, start, start + length)
        copy = Path(_unique(os.getpid(), str(self.root)) + f"{index}{name.suffix}")
        try:
            copy.write_bytes(content)
            os.utime(copy, (0, 0))  # what a modality remembers of a file, by its name and time, holds the next time too
            return self.modality.read(copy, torch.default_generator)
        except DataError as error:
            raise DataError(name, error.reason) from error
        finally:
            copy.unlink(missing_ok=True)

    def _fetch(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        files, folder = url_to_fs(self.address)  # in each process its own, since connections do not survive a fork
        try:
            return files.cat_file(f"{folder}/{name}", start, end)
        except Exception as error:  # of what type is for each kind of storage to say
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{self.address}/{name}", f"cannot be read ({reason})") from error


def has_shards(root: str | os.PathLike[str]) -> bool:
    """Whether a folder or an address holds an index of shards.

    Raises:
        DataError: for an address that cannot be asked.
    """
    try:
        files, folder = url_to_fs(str(root).rstrip("/"))
        return _size(files, f"{folder}/{INDEX}") != 0
    except (ValueError, ImportError) as error:
        raise DataError(root, f"is an address of no known kind ({error})") from error


def _size(files: AbstractFileSystem, path: str) -> int | None:
    """Bytes of a file, 0 where there is none, None where a server does not say."""
    try:
        return cast(int | None, files.size(path))
    except (FileNotFoundError, NotADirectoryError):
        return 0


@lru_cache
def _unique(process: int, root: str) -> str:
    """What the names of files begin with that nobody else writes."""
    return f"{tempfile.gettempdir()}/mmdiff-{secrets.token_hex(8)}-"
