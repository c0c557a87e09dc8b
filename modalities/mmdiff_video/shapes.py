"""Moving shapes, drawn when asked for: a data set of short films that needs no file and whose labels are exact.

A circle, a cross or a triangle of equal areas moves at constant velocity over a plain dark background and is reflected
where its outline meets an edge of the picture. With span = high - low, the range of its center on one axis, the center
at frame t is the unbounded path start + velocity t folded at both ends,

    center(t) = low + span - |(start - low + velocity t) mod (2 span) - span|

which is exact wherever between two frames the walls are met. Pixels are one unit wide, x points right and y down, the
origin is the top left corner. Kind, color, direction, speed and a caption are the conditions; radius, start,
background and the deviation from the named direction are drawn for each film and are not told.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mmdiff.captions import belongs, check_split
from mmdiff.errors import check_at_least
from mmdiff_video.captions import caption

KINDS = ("circle", "cross", "triangle")
"""Upright, and as unlike as that at 16 pixels: a square differs from a circle of its area in a quarter as much."""

ARM = math.sqrt(math.pi / 20)
"""Half the width of a cross's arms, for the circle of radius 1 of the same area; they are three times as long."""

INRADIUS = math.sqrt(math.pi / math.sqrt(27))
"""Of the triangle with equal sides, likewise."""

COLORS = {
    "red": (235, 40, 40),
    "yellow": (235, 235, 40),
    "green": (40, 235, 40),
    "cyan": (40, 235, 235),
    "blue": (40, 40, 235),
    "magenta": (235, 40, 235),
}
DIRECTIONS = ("right", "up-right", "up", "up-left", "left", "down-left", "down", "down-right")
"""In steps of 45 degrees; up is towards the top of the picture."""

SPEEDS = {"slow": (0.48, 0.56), "fast": (0.75, 0.85)}
"""Range of the path length of a whole film, in sides of the picture."""

JITTER = 7.0
"""Degrees by which a movement may deviate from its name."""

RADIUS = (0.20, 0.23)
"""Range of the radius of the circle of the same area, in sides of the picture."""

BACKGROUND = (12, 40)
"""Range of each channel of the background; full scale is 255."""

FREE = 2
"""Steps from frame to frame before the first reflection at least, so that the first movement can be seen."""


class Scene(NamedTuple):
    """A film before it is drawn: its conditions by name, then pixels, pixels per frame and levels from 0 to 255."""

    kind: str
    color: str
    direction: str
    speed: str
    radius: float
    start: Float[np.ndarray, "2"]
    velocity: Float[np.ndarray, "2"]
    background: Float[np.ndarray, "3"]


class Shapes(Dataset):
    """``size`` films of ``frames`` square frames of ``resolution`` pixels; film i is a function of ``(seed, i)`` alone.

    Args:
        size: how many.
        seed: another one for other films.
        frames: of a film.
        resolution: side of a frame in pixels.
        split: of wordings and of combinations of all four (see `mmdiff.captions`).
        complete: captions tell all four; otherwise some leave a part open.

    Raises:
        ValueError: with fewer than 6 frames or 16 pixels, too few for two free steps and for three kinds.
    """

    def __init__(
        self,
        *,
        size: int = 16384,
        seed: int = 0,
        frames: int = 8,
        resolution: int = 32,
        split: str | None = None,
        complete: bool = False,
    ):
        check_split(split)
        check_at_least(1, size=size)
        check_at_least(0, seed=seed)
        check_at_least(6, frames=frames)
        check_at_least(16, resolution=resolution)
        self.size, self.seed, self.frames, self.resolution = size, seed, frames, resolution
        self.split, self.complete = split, complete

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> tuple[UInt8[Tensor, "3 t h w"], dict[str, str]]:
        """Film i and its conditions ``kind``, ``color``, ``direction``, ``speed`` and ``text``, a caption."""
        rng = np.random.default_rng((self.seed, range(self.size)[i]))
        scene = draw_scene(rng, self.frames, self.resolution, self.split)
        media = render(scene, centers(scene, self.frames, self.resolution), self.resolution)
        names = {name: getattr(scene, name) for name in ("kind", "color", "direction", "speed")}
        return torch.from_numpy(media), {
            **names,
            "text": caption(rng, **names, split=self.split, complete=self.complete),
        }


def draw_scene(rng: np.random.Generator, frames: int, resolution: int, split: str | None = None) -> Scene:
    """A scene of a split, whose start is uniform over the places with ``FREE`` free steps ahead."""
    kind, color, direction, speed = _combination(rng, split)
    radius = resolution * rng.uniform(*RADIUS)
    angle = math.radians(45 * DIRECTIONS.index(direction) + rng.uniform(-JITTER, JITTER))
    step = resolution * rng.uniform(*SPEEDS[speed]) / (frames - 1)
    velocity = step * np.array([math.cos(angle), -math.sin(angle)])
    low, high = bounds(kind, radius, resolution)
    start = rng.uniform(low - FREE * velocity.clip(max=0), high - FREE * velocity.clip(min=0))
    return Scene(kind, color, direction, speed, radius, start, velocity, rng.uniform(*BACKGROUND, 3))


def _combination(rng: np.random.Generator, split: str | None) -> tuple[str, ...]:
    factors = (KINDS, tuple(COLORS), DIRECTIONS, tuple(SPEEDS))
    while True:
        chosen = [int(rng.integers(len(names))) for names in factors]
        if belongs(int(np.ravel_multi_index(chosen, [len(names) for names in factors])), split):
            return tuple(names[i] for names, i in zip(factors, chosen, strict=True))


def bounds(kind: str, radius: float, resolution: int) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Lowest and highest (x, y) of a center whose shape lies within the picture."""
    side = math.sqrt(3) * INRADIUS
    left, right, above, below = {
        "circle": (1.0, 1.0, 1.0, 1.0),
        "cross": (3 * ARM,) * 4,
        "triangle": (side, side, 2 * INRADIUS, INRADIUS),
    }[kind]
    return radius * np.array([left, above]), resolution - radius * np.array([right, below])


def centers(scene: Scene, frames: int, resolution: int) -> Float[np.ndarray, "t 2"]:
    """(x, y) of the center in every frame."""
    low, high = bounds(scene.kind, scene.radius, resolution)
    free = scene.start - low + scene.velocity * np.arange(frames)[:, None]
    return high - np.abs(free % (2 * (high - low)) - (high - low))


def render(scene: Scene, path: Float[np.ndarray, "t 2"], resolution: int) -> UInt8[np.ndarray, "3 t h w"]:
    """The film of a scene; a pixel is covered by half minus the distance of its center from the outline."""
    pixels = np.arange(resolution, dtype=np.float32) + 0.5
    x = pixels - path[:, 0, None, None].astype(np.float32)
    y = pixels[:, None] - path[:, 1, None, None].astype(np.float32)
    coverage = (0.5 - outside(scene.kind, x / scene.radius, y / scene.radius) * scene.radius).clip(0, 1)
    background = scene.background.astype(np.float32)[:, None, None, None]
    color = np.float32(COLORS[scene.color])[:, None, None, None]
    return (background + (color - background) * coverage + np.float32(0.5)).astype(np.uint8)


def outside(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance of points from the outline of a shape of area pi around 0, negative inside; from the edges' lines."""
    if kind == "circle":
        return np.sqrt(x * x + y * y) - 1
    if kind == "cross":
        x, y = abs(x), abs(y)
        return np.minimum(np.maximum(x - ARM, y - 3 * ARM), np.maximum(x - 3 * ARM, y - ARM))
    return np.maximum(y, (math.sqrt(3) * abs(x) - y) / 2) - INRADIUS
