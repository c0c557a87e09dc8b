"""PLY files of points, which trimesh reads without their normals (G. Turk, "The PLY Polygon File Format", 1994)."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Num
from numpy import ndarray

from mmdiff import DataError
from mmdiff_pointcloud.clouds import Cloud, Limits, cleaned

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_POINT, _NORMAL, _COLOR = ("x", "y", "z"), ("nx", "ny", "nz"), ("red", "green", "blue")
_LONGEST_HEADER = 2**16


class Header(NamedTuple):
    """What a PLY file promises.

    Attributes:
        encoding: one of ascii, binary_little_endian and binary_big_endian.
        start: of the data, in bytes.
        elements: count and properties of each kind of element, in the order of the file; the type of a list is None.
    """

    encoding: str
    start: int
    elements: dict[str, tuple[int, dict[str, str | None]]]

    def count(self, element: str) -> int:
        """How many elements of a kind there are."""
        return self.elements.get(element, (0, {}))[0]


def read_header(path: Path, data: bytes, limits: Limits) -> Header:
    """The header, once its promises fit the limits and the length of the file."""
    end = data.find(b"end_header", 0, _LONGEST_HEADER)
    start = data.find(b"\n", end) + 1
    if data[:3] != b"ply" or end < 0 or start == 0:
        raise DataError(path, "has no PLY header")
    encoding, elements = "", {}
    for line in data[:end].decode("latin-1").splitlines():
        match line.split():
            case ["format", name, _] if name in _ORDERS:
                encoding = name
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) < 19:
                elements[name] = (int(count), {})
            case ["property", "list", _, _, name] if elements:
                next(reversed(elements.values()))[1][name] = None
            case ["property", kind, name] if elements and kind in _TYPES:
                next(reversed(elements.values()))[1][name] = _TYPES[kind]
            case ["format" | "element" | "property", *_]:
                raise DataError(path, f"has a PLY header with the line {line[:80]!r}, which has no meaning")
    if not encoding:
        raise DataError(path, "has a PLY header without a format")
    header = Header(encoding, start, elements)
    for element, most in (("vertex", limits.points), ("face", limits.faces)):
        if header.count(element) > most:
            raise DataError(path, f"promises {header.count(element)} of {element}, at most {most} are allowed")
    # A value takes a byte at least; in text a separator follows it.
    least = sum(count * len(kinds) for count, kinds in elements.values()) * (2 if encoding == "ascii" else 1)
    if least > len(data) - start + 1:
        raise DataError(path, f"is cut off: its header promises {least} bytes or more, {len(data) - start} follow")
    return header


def read_points(path: Path, data: bytes, header: Header) -> Cloud:
    """The vertices, with normals ``nx ny nz`` and colors ``red green blue`` where they have them."""
    name, (count, kinds) = next(iter(header.elements.items()), ("", (0, {})))
    if name != "vertex" or None in kinds.values() or not kinds.keys() >= set(_POINT):
        raise DataError(path, "does not begin with vertices of x, y and z, free of lists")
    if header.encoding == "ascii":
        columns = _text_columns(path, data[header.start :], count, kinds)
    else:
        columns = np.dtype([(name, _ORDERS[header.encoding] + kind) for name, kind in kinds.items()])
        if count * columns.itemsize > len(data) - header.start:
            raise DataError(path, f"is cut off: its header promises {count} points of {columns.itemsize} bytes")
        columns = np.frombuffer(data, columns, count, header.start)
    groups = [names if kinds.keys() >= set(names) else None for names in (_POINT, _NORMAL, _COLOR)]
    return cleaned(path, *(names and np.stack([columns[name] for name in names], 1) for names in groups))


def _text_columns(path: Path, text: bytes, count: int, kinds: dict[str, str | None]) -> dict[str, Num[ndarray, " n"]]:
    """The first ``count`` lines of text as columns of the given types."""
    try:
        table = np.loadtxt(io.BytesIO(text), comments=None, max_rows=count, ndmin=2)
    except ValueError as error:
        raise DataError(path, f"is not a table of numbers ({error})") from error
    if table.shape != (count, len(kinds)):
        raise DataError(path, f"is cut off: its header promises {(count, len(kinds))} numbers, it has {table.shape}")
    return {name: column.astype(kind) for (name, kind), column in zip(kinds.items(), table.T, strict=True)}


def to_ply(cloud: Cloud) -> bytes:
    """Binary, little endian: floats x y z, nx ny nz and bytes red green blue."""
    fields = [(cloud.points, _POINT, "float"), (cloud.normals, _NORMAL, "float"), (cloud.colors, _COLOR, "uchar")]
    present = [(values.numpy(), names, kind) for values, names, kind in fields if values is not None]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud.points)}"]
    lines += [f"property {kind} {name}" for _, names, kind in present for name in names]
    dtype = np.dtype([(name, "<" + _TYPES[kind]) for _, names, kind in present for name in names])
    table = np.empty(len(cloud.points), dtype)
    for values, names, _ in present:
        for name, column in zip(names, values.T, strict=True):
            table[name] = column
    return "\n".join([*lines, "end_header\n"]).encode() + table.tobytes()
