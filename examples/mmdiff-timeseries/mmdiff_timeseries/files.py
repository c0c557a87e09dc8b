"""Files of series: csv and npz."""

import csv
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from mmdiff import DataError

ARRAY = "series"
"""Name of the array in a npz file, unless it holds one alone."""


def read(path: Path) -> Float32[np.ndarray, "n c"]:
    """Moments by channels; missing values are nan.

    Raises:
        DataError: if the file is missing, or holds no table of numbers.
    """
    try:
        table = _npz(path) if path.suffix.lower() == ".npz" else _csv(path)
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise DataError(path, f"is not a table of numbers ({error})") from error
    if table.ndim != 2 or not table.size or np.isnan(table).all():
        raise DataError(path, f"holds no values: a table must have rows and columns, its shape is {table.shape}")
    if np.isinf(table).any():
        raise DataError(path, "holds an infinite number; leave missing values empty")
    return table


def write(series: Float32[np.ndarray, "n c"], path: Path) -> None:
    """Write npz if the suffix says so, else csv with an empty cell for what is missing."""
    if path.suffix.lower() == ".npz":
        np.savez_compressed(path, **{ARRAY: series})
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow([f"channel_{i}" for i in range(series.shape[1])])
        lines.writerows([["" if np.isnan(value) else f"{value:.6g}" for value in row] for row in series.tolist()])


def _npz(path: Path) -> Float32[np.ndarray, "..."]:
    with np.load(path, allow_pickle=False) as arrays:
        name = arrays.files[0] if len(arrays.files) == 1 else ARRAY
        if name not in arrays.files:
            raise DataError(path, f"holds {', '.join(arrays.files) or 'no array'}; one must be named {ARRAY}")
        return arrays[name].astype(np.float32)


def _csv(path: Path) -> Float32[np.ndarray, "..."]:
    """Rows are moments; a first row without any number is a header; an empty cell, NA or nan is missing."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and not any(_is_value(cell) for cell in rows[0]):
        rows = rows[1:]
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise DataError(path, f"has rows of {widths[0]} and of {widths[-1]} cells")
    return np.array([[_value(cell) for cell in row] for row in rows], dtype=np.float32)


def _value(cell: str) -> float:
    return float("nan") if cell.strip() in ("", "NA") else float(cell)


def _is_value(cell: str) -> bool:
    try:
        return bool(cell.strip()) and not np.isnan(_value(cell))
    except ValueError:
        return False
