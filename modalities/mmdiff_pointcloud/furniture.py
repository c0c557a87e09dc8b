"""Furniture made of boxes and surfaces of revolution: a data set that needs no file and whose labels are exact.

x is to the right, y up and z to the front, in meters. A thing stands on y = 0, centered in x and z, its back to -z:

- a *chair* has 3, 4 or 6 legs and a seat; without a back it is what the captions call a stool;
- a *table* has 3, 4 or 6 legs and a top, wider than any chair; 3 legs stand under a round seat or top;
- a *lamp* has a round base, a thin pole and an open shade;
- a *shelf* has two sides that reach the floor, 3 boards (4 from a height of 1.2 m on), and a closed or an open rear;
- a *vase* is a turned surface on a round bottom, open at the top.

A surface is a list of patches, each a row of 11 numbers: ``origin``, ``u``, ``v`` (three each), ``r0`` and ``r1``. Its
points, for a and b in [0, 1], are

    origin + t u + b v + r (cos(2 pi b), 0, sin(2 pi b)),    r^2 = r0^2 + a (r1^2 - r0^2)

A parallelogram has r0 = r1 = 0 and t = a. A band of revolution about a vertical axis has v = 0, u = (0, height, 0) and
r = r0 + t (r1 - r0). Both have the area |u x v| + pi (r0 + r1) sqrt(height^2 + (r1 - r0)^2), and uniform a and b are
uniform on it, so that one formula draws the points of any thing at once. Parts are whole surfaces: where two touch,
both are sampled.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from mmdiff.captions import belongs, check_split
from mmdiff.errors import check_at_least
from mmdiff_pointcloud.captions import caption

KINDS = ("chair", "table", "lamp", "shelf", "vase")
LEGS = (3, 4, 6)
"""Numbers of legs of chairs and tables."""

ROUND = (3,)
"""Numbers of legs that stand in a circle under a round top; the others stand under a rectangle."""

# Where legs stand under a rectangle, in units of half its sides.
_LAYOUTS = {
    4: ((-1, -1), (1, -1), (-1, 1), (1, 1)),
    6: ((-1, -1), (0, -1), (1, -1), (-1, 1), (0, 1), (1, 1)),
}
_CORNERS = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
_FIRST, _SECOND = np.eye(3)[[0, 1, 2, 1, 2, 0]], np.eye(3)[[1, 2, 0, 2, 0, 1]]


class Part(NamedTuple):
    """A named surface, for instance ``leg 0``: its patches as rows of origin, u, v, r0, r1."""

    name: str
    patches: Float[np.ndarray, "k 11"]


class Furniture(Dataset):
    """``size`` clouds of ``points`` surface points; the shape of thing i is a function of ``(seed, i)`` alone.

    Args:
        size: how many.
        seed: another one for other things.
        points: of a cloud.
        split: of wordings and of combinations of kind, legs and back (see `mmdiff.captions`).
        complete: captions tell all that the other conditions do; otherwise some leave a part open.
    """

    def __init__(
        self,
        *,
        size: int = 8192,
        seed: int = 0,
        points: int = 1024,
        split: str | None = None,
        complete: bool = False,
    ):
        check_split(split)
        check_at_least(1, size=size, points=points)
        check_at_least(0, seed=seed)
        self.size, self.seed, self.points = size, seed, points
        self.split, self.complete = split, complete

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> tuple[Float[Tensor, "n 3"], dict[str, Any]]:
        """Cloud i and its conditions.

        ``kind`` is one of ``KINDS``, ``height`` and ``width`` are the extents in y and x in meters, ``text`` is a
        caption; ``legs`` is a number, None for a thing without legs; ``back`` is "yes" or "no" for a chair, else None.
        """
        rng, parts, cond = self._make(i)
        return torch.from_numpy(sample(parts, self.points, rng)), cond

    def parts(self, i: int) -> list[Part]:
        """The surfaces that cloud i is drawn from."""
        return self._make(i)[1]

    def _make(self, i: int) -> tuple[np.random.Generator, list[Part], dict[str, Any]]:
        rng = np.random.default_rng((self.seed, range(self.size)[i]))
        while True:
            kind = KINDS[rng.integers(len(KINDS))]
            parts, known = _MAKERS[kind](rng)
            if belongs(_combination(kind, **known), self.split):
                break
        low, high = bounds(parts)
        shift = np.append([-(low[0] + high[0]) / 2, 0, -(low[2] + high[2]) / 2], np.zeros(8))
        parts = [Part(name, patches + shift) for name, patches in parts]
        width, height, _ = (high - low).tolist()
        cond = {"kind": kind, "legs": None, "back": None, "height": height, "width": width} | known
        return rng, parts, cond | {"text": caption(rng, cond, split=self.split, complete=self.complete)}


def bounds(parts: Sequence[Part]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Least and greatest x, y, z of surfaces."""
    rows = np.concatenate([part.patches for part in parts])
    origin, u, v, radii = np.split(rows, [3, 6, 9], axis=1)
    corners = np.stack([origin, origin + u, origin + v, origin + u + v])
    radius = radii.max(axis=1, keepdims=True) * [1, 0, 1]
    return (corners - radius).min(axis=(0, 1)), (corners + radius).max(axis=(0, 1))


def area(patches: Float[np.ndarray, "k 11"]) -> Float[np.ndarray, "k"]:
    """Area of each patch."""
    u, v, r0, r1 = patches[:, 3:6], patches[:, 6:9], patches[:, 9], patches[:, 10]
    square = (u * u).sum(1) * (v * v).sum(1) - (u * v).sum(1) ** 2
    return np.sqrt(square.clip(0)) + math.pi * (r0 + r1) * np.hypot(u[:, 1], r1 - r0)


def sample(parts: Sequence[Part], points: int, rng: np.random.Generator) -> Float[np.ndarray, "n 3"]:
    """Independent points, uniform on the union of the surfaces, as float32."""
    rows = np.concatenate([part.patches for part in parts])
    total = np.cumsum(area(rows))
    choice, a, b = rng.random((3, points))
    row = rows[np.searchsorted(total[:-1], choice * total[-1], side="right")]
    r0, r1 = row[:, 9], row[:, 10]
    r = np.sqrt(r0**2 + a * (r1**2 - r0**2))
    slope = r1 - r0
    t = np.divide(r - r0, slope, out=a, where=slope != 0)
    cloud = row[:, :3] + t[:, None] * row[:, 3:6] + b[:, None] * row[:, 6:9]
    cloud[:, 0] += r * np.cos(2 * np.pi * b)
    cloud[:, 2] += r * np.sin(2 * np.pi * b)
    return cloud.astype(np.float32)


def box(name: str, foot: Sequence[float], size: Sequence[float], lean: tuple[float, float] = (0.0, 0.0)) -> Part:
    """A box of ``size`` (x, y, z) whose bottom is centered at ``foot``; its top is moved by ``lean`` in x and z."""
    width, height, depth = size
    edges = np.array([[width, 0, 0], [lean[0], height, lean[1]], [0, 0, depth]])
    corner = np.array(foot) - [width / 2, 0, depth / 2]
    return Part(name, np.hstack([corner + _CORNERS @ edges, _FIRST @ edges, _SECOND @ edges, np.zeros((6, 2))]))


def turned(name: str, foot: Sequence[float], profile: Sequence[tuple[float, float]]) -> Part:
    """A surface of revolution about the vertical through ``foot``; ``profile`` lists height over it and radius."""
    y, r = np.array(profile, dtype=float).T
    patches = np.zeros((len(y) - 1, 11))
    patches[:, :3], patches[:, 4] = foot, np.diff(y)
    patches[:, 1] += y[:-1]
    patches[:, 9], patches[:, 10] = r[:-1], r[1:]
    return Part(name, patches)


def cylinder(name: str, foot: Sequence[float], height: float, radius: float) -> Part:
    """An upright cylinder with both its caps."""
    return turned(name, foot, [(0, 0), (0, radius), (height, radius), (height, 0)])


def _standing(rng: np.random.Generator, name: str, size: Sequence[float], thick: float, count: int) -> list[Part]:
    """A flat top on legs inside its outline; ``size`` (x, y, z) of the whole, ``thick`` of a leg."""
    width, height, depth = size
    splay = rng.uniform(0, 0.04) * rng.integers(2)
    plate, rounded = rng.uniform(0.025, 0.05), rng.random() < 0.4
    inset, length = thick / 2 + 0.01, height - plate
    if count in ROUND:
        angles = 2 * np.pi * np.arange(count) / count
        feet = (width / 2 - inset - 0.01) * np.stack([np.sin(angles), np.cos(angles)], axis=1)
        top = cylinder(name, (0, length, 0), plate, width / 2)
    else:
        feet = _LAYOUTS[count] * (np.array([width, depth]) / 2 - inset)
        top = box(name, (0, length, 0), (width, plate, depth))
    parts = [top]
    for k, (x, z) in enumerate(feet.tolist()):
        if rounded:
            parts.append(cylinder(f"leg {k}", (x, 0, z), length, thick / 2))
        else:
            lean = -splay / max(math.hypot(x, z), splay + 1e-9)
            parts.append(box(f"leg {k}", (x, 0, z), (thick, length, thick), (lean * x, lean * z)))
    return parts


def _chair(rng: np.random.Generator) -> tuple[list[Part], dict[str, Any]]:
    back, count = rng.random() < 0.5, LEGS[rng.integers(len(LEGS))]
    width, seat = rng.uniform(0.46, 0.58), rng.uniform(0.40, 0.50 if back else 0.75)
    depth = width if count in ROUND else width * rng.uniform(0.9, 1.1)
    parts = _standing(rng, "seat", (width, seat, depth), rng.uniform(0.04, 0.05), count)
    if back:
        rise, thick = rng.uniform(0.3, 0.55), rng.uniform(0.02, 0.035)
        span, z = (0.7 * width, -0.34 * width) if count in ROUND else (width, (thick - depth) / 2)
        parts += _back(rng, (0, seat, z), (span, rise, thick))
    return parts, {"legs": count, "back": "yes" if back else "no"}


def _back(rng: np.random.Generator, foot: Sequence[float], size: Sequence[float]) -> list[Part]:
    """The back of a chair, upright or leaning backward: a panel, or 3 to 5 slats under a rail."""
    (_, y, z), (span, rise, thick) = foot, size
    slope = -rng.uniform(0, 0.12) / rise
    if rng.random() < 0.5:
        return [box("back", foot, size, (0.0, slope * rise))]
    rail = rng.uniform(0.06, 0.1)
    below, places = rise - rail, np.linspace(-1, 1, rng.integers(3, 6)) * (span - 0.04) / 2
    slats = [
        box(f"slat {k}", (x, y, z), (0.04, below, thick), (0.0, slope * below)) for k, x in enumerate(places.tolist())
    ]
    return [*slats, box("rail", (0, y + below, z + slope * below), (span, rail, thick), (0.0, slope * rail))]


def _table(rng: np.random.Generator) -> tuple[list[Part], dict[str, Any]]:
    count, height = LEGS[rng.integers(len(LEGS))], rng.uniform(0.4, 0.8)
    width = rng.uniform(0.8, 1.0 if count in ROUND else 1.2)
    size = (width, height, width if count in ROUND else rng.uniform(0.6, 0.8))
    return _standing(rng, "top", size, rng.uniform(0.07, 0.09), count), {"legs": count}


def _lamp(rng: np.random.Generator) -> tuple[list[Part], dict[str, Any]]:
    height, widest, base = rng.uniform(0.6, 1.7), rng.uniform(0.15, 0.25), rng.uniform(0.1, 0.15)
    shade, plate = min(height * rng.uniform(0.25, 0.35), 0.4), rng.uniform(0.015, 0.03)
    outline = [(0, widest), (shade, widest * rng.uniform(0.4, 1.0))]
    return [
        cylinder("base", (0, 0, 0), plate, base),
        cylinder("pole", (0, plate, 0), height - plate - shade / 2, rng.uniform(0.01, 0.018)),
        turned("shade", (0, height - shade, 0), outline),
    ], {}


def _shelf(rng: np.random.Generator) -> tuple[list[Part], dict[str, Any]]:
    width, height, depth = rng.uniform(0.6, 0.9), rng.uniform(0.9, 1.5), rng.uniform(0.25, 0.4)
    count, thick = 3 if height < 1.2 else 4, rng.uniform(0.018, 0.03)
    parts = [box(f"side {s}", (s * (width - thick) / 2, 0, 0), (thick, height, depth)) for s in (-1, 1)]
    levels = np.linspace(0, height - thick, count).tolist()
    parts += [box(f"board {k}", (0, y, 0), (width - 2 * thick, thick, depth)) for k, y in enumerate(levels)]
    if rng.random() < 0.5:
        parts.append(box("rear", (0, 0, -depth / 2), (width, height, 0.005)))
    return parts, {}


def _vase(rng: np.random.Generator) -> tuple[list[Part], dict[str, Any]]:
    height, belly = rng.uniform(0.4, 0.9), rng.uniform(0.15, 0.25)
    radii = belly * np.array([rng.uniform(0.5, 0.8), 1.0, rng.uniform(0.35, 0.8), rng.uniform(0.5, 0.9)])
    y = np.array([0, rng.uniform(0.3, 0.5), rng.uniform(0.7, 0.85), 1.0])
    fine = np.linspace(0, 1, 17)
    knot = np.searchsorted(y, fine[1:-1], side="right") - 1
    part = (1 - np.cos(np.pi * (fine[1:-1] - y[knot]) / (y[knot + 1] - y[knot]))) / 2
    curve = [radii[0], *(radii[knot] + part * (radii[knot + 1] - radii[knot])), radii[3]]
    outline = [(0, 0), *zip((height * fine).tolist(), curve, strict=True)]
    return [turned("body", (0, 0, 0), outline)], {}


def _combination(kind: str, legs: int = LEGS[-1], back: str | None = None) -> int:
    """An even number for each kind, number of legs, and back or none: of a tenth, two have legs, and none is a kind."""
    kinds = ["chair", "stool", "table", "lamp", "shelf", "vase"]
    return 2 * (len(LEGS) * kinds.index("stool" if back == "no" else kind) + LEGS.index(legs))


_MAKERS = {"chair": _chair, "table": _table, "lamp": _lamp, "shelf": _shelf, "vase": _vase}
