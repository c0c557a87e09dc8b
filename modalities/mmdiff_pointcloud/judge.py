"""A judge of generated furniture that needs no trained weights: it measures a cloud and says what it is.

x is to the right, y up and z to the front, in meters. The rules are geometry alone and share no code with the data set:

- a *vase* is a shell: at each height its points are at one distance from the axis, all around it;
- a *lamp* is nothing but a thin pole at mid-height, with a wide base below and a ring, the shade, above;
- a *shelf* has two sides over its whole height and between them three levels or more and nothing else;
- a *chair* and a *table* are a deck, the level with most points, on two or more separate columns, the legs. A table is
  wide and its deck is its top; a chair is narrower, and what rises above its seat is its back.

A cloud that fits none of them is of no kind. The rules leave room for points that are off by 0.01 m and for strays.
Shapes: ``b`` clouds of ``n`` points.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

FEWEST, MOST = 100, 1536
"""Points of a cloud that can be judged, and points that are looked at: of a larger cloud, evenly spaced ones."""

TABLE_WIDTH = 0.68
"""Meters. Wider is a table, narrower a chair."""

ASPECTS = ("kind", "legs", "back", "height", "width")


class Judgement(NamedTuple):
    """What a cloud is, by the names of the conditions; ``height`` and ``width`` are its extents in meters."""

    kind: str | None = None
    legs: int = 0
    back: str | None = None
    height: float = math.nan
    width: float = math.nan


def judge(cloud: Float[np.ndarray, "n 3"]) -> Judgement:
    """What a cloud is: no kind if it is none of the above, no legs and no back if its kind has none."""
    cloud = cloud[np.isfinite(cloud).all(1)].astype(np.float64)
    cloud = without_strays(cloud[np.linspace(0, len(cloud) - 1, min(MOST, len(cloud))).astype(int)])
    if len(cloud) < FEWEST:
        return Judgement()
    low, high = extent(cloud)
    width, height, depth = (high - low).tolist()
    sized = Judgement(height=height, width=width)
    if not (min(width, height) > 0.2 and max(width, height, depth) < 3):
        return sized
    cloud = cloud[((cloud > low - 0.1) & (cloud < high + 0.1)).all(1)]
    cloud = cloud - [(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2]
    if is_vase(cloud, height):
        return sized._replace(kind="vase")
    if is_lamp(cloud, height):
        return sized._replace(kind="lamp")
    if is_shelf(cloud, height, width):
        return sized._replace(kind="shelf")
    deck = densest_level(cloud[:, 1])
    legs, risen = count_legs(cloud, deck, width), np.mean(cloud[:, 1] > deck + 0.12) > 0.08
    if legs < 2 or (risen and width >= TABLE_WIDTH):
        return sized
    if width >= TABLE_WIDTH:
        return sized._replace(kind="table", legs=legs)
    return sized._replace(kind="chair", legs=legs, back="yes" if risen else "no")


def without_strays(cloud: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "m 3"]:
    """The points whose third neighbor is at most three times as far away as is usual in the cloud."""
    if len(cloud) < 4:
        return cloud
    tree = cKDTree(cloud, compact_nodes=False, balanced_tree=False)  # twice as fast to build
    third = tree.query(cloud, k=4)[0][:, 3]
    return cloud[third <= 3 * np.median(third)]


def extent(cloud: Float[np.ndarray, "n 3"]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Least and greatest coordinates, less 0.3 % of the points at each end."""
    skipped = int(0.003 * len(cloud))
    ordered = np.sort(cloud, axis=0)
    return ordered[skipped], ordered[-1 - skipped]


def surrounds(cloud: Float[np.ndarray, "n 3"]) -> bool:
    """Whether nine tenths of the sectors about the axis x = z = 0, at most 24, hold a quarter of their share."""
    sectors = min(24, 1 + len(cloud) // 10)
    count = np.histogram(np.arctan2(cloud[:, 2], cloud[:, 0]), sectors, (-np.pi, np.pi))[0]
    return bool(np.mean(count > len(cloud) / sectors / 4) >= 0.9)


def is_vase(cloud: Float[np.ndarray, "n 3"], height: float) -> bool:
    """Whether most of 18 slices are rings, thin in proportion to their radius, that go all the way around."""
    radius = np.hypot(cloud[:, 0], cloud[:, 2])
    level = (20 * cloud[:, 1] / height).astype(int).clip(0, 20)
    count = np.bincount(level, minlength=21).clip(1)
    middle = np.bincount(level, radius, 21) / count
    spread = np.bincount(level, np.abs(radius - middle[level]), 21) / count
    ring = (count >= 5) & (middle > 0.04) & (spread < 0.2 * middle)
    rings = cloud[ring[level] & (level >= 2)]
    return bool(ring[2:].sum() >= 0.75 * 18) and len(rings) > 0.5 * len(cloud) and surrounds(rings)


def is_lamp(cloud: Float[np.ndarray, "n 3"], height: float) -> bool:
    """Whether there is but a pole at mid-height, with something wide at the foot and a ring at the top."""
    level = cloud[:, 1] / height
    middle, low, high = (level > 0.25) & (level < 0.6), level < 0.1, (level > 0.77) & (level < 0.95)
    if min(middle.sum(), low.sum(), high.sum()) < 8:
        return False
    cloud = cloud - np.median(cloud[middle], axis=0) * [1, 0, 1]
    radius = np.hypot(cloud[:, 0], cloud[:, 2])
    pole, foot = np.mean(radius[middle] < 0.06) > 0.8, np.quantile(radius[low], 0.8) > 0.06
    shade = np.mean(radius[high] > 0.04) > 0.75 and surrounds(cloud[high])
    return bool(pole and foot and shade)


def is_shelf(cloud: Float[np.ndarray, "n 3"], height: float, width: float) -> bool:
    """Whether both ends in x are occupied at all heights and between them, off the rear, are three levels or more."""
    x, y, z = cloud.T
    for side in (x < -width / 2 + 0.07, x > width / 2 - 0.07):
        if np.histogram(y[side], 6, (0, height))[0].min() < 0.05 * side.sum() or side.mean() < 0.05:
            return False
    inner = y[(np.abs(x) < width / 2 - 0.09) & (z > np.quantile(z, 0.02) + 0.06)]
    if len(inner) < 0.1 * len(cloud):
        return False
    bins = np.arange(-0.2, height + 0.2, 0.01)
    density = ndimage.gaussian_filter1d(np.histogram(inner, bins)[0].astype(float), 1.5)
    dense = ndimage.label(density > 0.2 * density.max())[0]
    held = np.bincount(dense[np.searchsorted(bins, inner) - 1])[1:] / len(inner)
    return bool(np.sum(held > 0.08) >= 3 and held.sum() > 0.8 and np.mean(dense > 0) < 0.5)


def densest_level(y: Float[np.ndarray, "n"]) -> float:
    """Middle of the 6 cm of height that hold most points."""
    ordered = np.sort(y)
    last = np.searchsorted(ordered, ordered + 0.06, side="right")
    first = np.argmax(last - np.arange(len(y)))
    return float(np.median(ordered[first : last[first]]))


def count_legs(cloud: Float[np.ndarray, "n 3"], deck: float, width: float) -> int:
    """Number of separate thin columns below the height ``deck``; 0 if more than a fifth of the points are elsewhere.

    Columns are the connected regions where the density of the points in x and z exceeds a fifth of its maximum. The
    density is smoothed in proportion to ``width``, as the legs of a wide thing are far apart and hold few points.
    """
    part = cloud[(cloud[:, 1] > 0.1 * deck) & (cloud[:, 1] < 0.85 * deck)]
    if len(part) < 12:
        return 0
    cell = ((part[:, [0, 2]] - part[:, [0, 2]].min(0)) / 0.0125).astype(int) + 4
    count = np.zeros(cell.max(0) + 5)
    np.add.at(count, tuple(cell.T), 1.0)
    density = ndimage.gaussian_filter(count, min(max(4.8 * width, 2.0), 4.0), mode="constant")
    region = ndimage.label(density > 0.2 * density.max())[0][tuple(cell.T)]
    columns = [part[region == k] for k in range(1, region.max() + 1)]
    legs = [column for column in columns if len(column) > len(part) / 40 and is_leg(column, deck)]
    return len(legs) if sum(map(len, legs)) > 0.8 * len(part) else 0


def is_leg(column: Float[np.ndarray, "n 3"], deck: float) -> bool:
    """Whether a column is thin and goes most of the way from 0.1 to 0.85 of the height ``deck``."""
    across = np.ptp(column[:, [0, 2]], axis=0).max()
    return bool(across < 0.2 and column[:, 1].min() < 0.35 * deck and column[:, 1].max() > 0.55 * deck)


class FurnitureAccuracy(Metric):
    """Shares of generated clouds that have what was asked for: the kind, the legs, the back, the height, the width.

    The judge needs no examples, so real clouds are not looked at. A condition that is ``None`` or missing is not
    counted, and a share of nothing is nan.

    Args:
        tolerance: by how much a right height or width may be off, relative to the asked one.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, tolerance: float = 0.1):
        super().__init__()
        if not tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {tolerance}.")
        self.tolerance = tolerance
        self.add_state("right", default=[], dist_reduce_fx="cat")

    def update(self, media: Float[Tensor, "b n 3"], *, real: bool, cond: dict[str, list]) -> None:
        """Add clouds with their conditions: ``kind``, ``back`` (names), ``legs``, ``height``, ``width`` (numbers)."""
        if real:
            return
        asked = zip(*(cond.get(name, [None] * len(media)) for name in ASPECTS), strict=True)
        clouds = media.detach().float().cpu().numpy()
        rows = [list(map(self._right, ASPECTS, judge(c), values)) for c, values in zip(clouds, asked, strict=True)]
        self.right.append(torch.tensor(rows, device=media.device))

    def _right(self, name: str, found: str | float | None, asked: str | float | None) -> float:
        """1 if right, 0 if wrong, nan if nothing was asked."""
        if asked is None:
            return math.nan
        if name in ("kind", "back"):
            return float(found == asked)
        margin = 0.0 if name == "legs" else self.tolerance * float(asked)
        return float(abs(found - float(asked)) <= margin)

    def compute(self) -> dict[str, Tensor]:
        """Shares ``kind``, ``legs``, ``back``, ``height``, ``width`` and ``all``, of clouds right in all asked."""
        if not len(self.right):
            return {name: torch.tensor(math.nan, device=self.device) for name in (*ASPECTS, "all")}
        right = dim_zero_cat(self.right)
        asked = ~right.isnan().all(1)
        shares = dict(zip(ASPECTS, right.nanmean(0), strict=True))
        return shares | {"all": (right.nan_to_num(1.0) == 1).all(1)[asked].float().mean()}
