"""Point clouds: what one holds, how much is read, and the files that are plain tables of numbers.

Coordinates are in the units of the file. A bad file is a ``DataError``.
"""

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Num, Shaped, UInt8
from numpy import ndarray
from torch import Tensor

from mmdiff import DataError
from mmdiff.errors import check_at_least

FEWEST = 16  # finite points that a cloud needs


class Cloud(NamedTuple):
    """Points of a surface, float32; unit normals (zero if unknown) and RGB colors where the file has them."""

    points: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"] | None = None
    colors: UInt8[Tensor, "n 3"] | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may hold at most: bytes (packed and unpacked), triangles and points."""

    size: int = 256 * 2**20
    faces: int = 20_000_000
    points: int = 50_000_000

    def __post_init__(self):
        check_at_least(1, size=self.size, faces=self.faces, points=self.points)


def cleaned(
    path: Path,
    points: Num[ndarray, "n 3"],
    normals: Num[ndarray, "n 3"] | None = None,
    colors: Num[ndarray, "n 3"] | None = None,
) -> Cloud:
    """A cloud of the finite points; normals get unit length, colors are integers 0 to 255 or floats 0 to 1."""
    points = points.astype(np.float32)
    finite = np.isfinite(points).all(1)
    if finite.sum() < FEWEST:
        raise DataError(path, f"holds {finite.sum()} finite points, at least {FEWEST} are needed")
    if normals is not None:
        normals = np.nan_to_num(normals[finite].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0).astype(np.float32)
    if colors is not None:
        colors = np.nan_to_num(colors[finite])
        top = 1 if colors.dtype.kind == "f" else 255
        if colors.min() < 0 or colors.max() > top:
            raise DataError(path, f"holds colors from {colors.min()} to {colors.max()}, not from 0 to {top}")
        colors = np.round(colors * (255 / top)).astype(np.uint8)
    fields = (points[finite], normals, colors)
    return Cloud(*(None if field is None else torch.from_numpy(field) for field in fields))


def from_table(path: Path, table: Num[ndarray, "n k"]) -> Cloud:
    """A cloud of rows x, y, z, ...

    Columns 4 to 6 are normals if each row of them has unit length within 5 %, or is zero; else colors if they are
    whole numbers from 0 to 255; else they are left out, like all columns after them.
    """
    points, more = table[:, :3], table[:, 3:6].astype(np.float64)
    if more.shape[1] == 3:
        known = more[np.isfinite(table[:, :3]).all(1)]
        lengths = np.linalg.norm(known, axis=1)
        if (lengths > 0).any() and ((abs(lengths - 1) < 0.05) | (lengths == 0)).all():
            return cleaned(path, points, normals=more)
        if len(known) and (known == known.round()).all() and known.min() >= 0 and known.max() <= 255:
            return cleaned(path, points, colors=np.nan_to_num(more).clip(0, 255).astype(np.uint8))
    return cleaned(path, points)


def read_xyz(path: Path, data: bytes, limits: Limits) -> Cloud:
    """Text, a point per line: 3 or 6 numbers (see `from_table`) between spaces or commas; # starts a comment."""
    if data.count(b"\n") > limits.points:
        raise DataError(path, f"has more lines than the {limits.points} points that are allowed")
    text = data.decode("utf-8-sig", errors="replace").replace(",", " ")
    try:
        table = np.loadtxt(io.StringIO(text), ndmin=2)
    except ValueError as error:
        raise DataError(path, f"is not a table of numbers ({error})") from error
    if table.shape[1] not in (3, 6):
        raise DataError(path, f"has {table.shape[1]} numbers per line, not 3 or 6")
    return from_table(path, table)


def read_npy(path: Path, data: bytes, limits: Limits) -> Cloud:
    """An array of at least 3 columns, see `from_table`."""
    return from_table(path, _array(path, "its array", data, limits))


def read_npz(path: Path, data: bytes, limits: Limits) -> Cloud:
    """The array ``points`` (or the only one, whatever its name), with ``normals`` and ``colors`` if it has them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        check_unpacked_size(path, archive, limits)
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        name = names[0] if len(names) == 1 else "points"
        if name not in names:
            raise DataError(path, f"holds no array named points, but {', '.join(names) or 'nothing'}")
        wanted = [name, *(name for name in ("normals", "colors") if name in names)]
        arrays = [_array(path, name, archive.read(f"{name}.npy"), limits) for name in wanted]
    if len(arrays) == 1:
        return from_table(path, arrays[0])
    for name, array in zip(wanted[1:], arrays[1:], strict=True):
        if array.shape != (len(arrays[0]), 3):
            raise DataError(path, f"holds {name} of shape {array.shape} for {len(arrays[0])} points")
    return cleaned(path, arrays[0][:, :3], **dict(zip(wanted[1:], arrays[1:], strict=True)))


def check_unpacked_size(path: Path, archive: zipfile.ZipFile, limits: Limits) -> None:
    """Raise ``DataError`` if an archive unpacks to more bytes than a file may have."""
    size = sum(info.file_size for info in archive.infolist())
    if size > limits.size:
        raise DataError(path, f"unpacks to {size} bytes, at most {limits.size} are allowed")


def _array(path: Path, name: str, data: bytes, limits: Limits) -> Num[ndarray, "n k"]:
    """The array of an npy file, after a look at its header."""
    stream = io.BytesIO(data)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in headers:
        raise DataError(path, f"{name} is in version {version} of the npy format, not 1 or 2")
    shape, _, dtype = headers[version](stream)
    if dtype.hasobject:
        raise DataError(path, f"{name} holds Python objects, which are never loaded: they can run code")
    if dtype.kind not in "fiu" or len(shape) != 2 or shape[1] < 3:
        raise DataError(path, f"{name} has shape {shape} and type {dtype}, not (points, 3 or more) and numbers")
    if shape[0] > limits.points:
        raise DataError(path, f"{name} has {shape[0]} points, at most {limits.points} are allowed")
    promised, held = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if promised > held:
        raise DataError(path, f"is cut off: the header of {name} promises {promised} bytes, {held} follow")
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def to_xyz(cloud: Cloud) -> bytes:
    """Lines of x y z, then the normal if there is one, else the color; nine digits, which float32 needs."""
    table, formats = [cloud.points.numpy()], ["%.9g"] * 3
    if cloud.normals is not None:
        table, formats = [*table, cloud.normals.numpy()], formats * 2
    elif cloud.colors is not None:
        table, formats = [*table, cloud.colors.numpy()], formats + ["%d"] * 3
    stream = io.BytesIO()
    np.savetxt(stream, np.hstack(table), fmt=" ".join(formats))
    return stream.getvalue()


def to_npz(cloud: Cloud) -> bytes:
    """Arrays ``points``, ``normals`` and ``colors``."""
    stream = io.BytesIO()
    np.savez(stream, **_present(cloud))
    return stream.getvalue()


def _present(cloud: Cloud) -> dict[str, Shaped[ndarray, "n 3"]]:
    """The fields that a cloud has."""
    return {name: field.numpy() for name, field in cloud._asdict().items() if field is not None}
