"""Shapes as a modality: meshes and clouds in files, sets of points on their surface."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Generator, Tensor
from torchmetrics import Metric

from mmdiff.errors import DataError, check_at_least
from mmdiff.modality import Modality
from mmdiff.regions import ends, region, span
from mmdiff_pointcloud import media as files
from mmdiff_pointcloud.clouds import Cloud
from mmdiff_pointcloud.metrics import cloud_metrics
from mmdiff_pointcloud.pictures import multiview, turntable
from mmdiff_pointcloud.surface import reconstruct

HALVES = {"left": (0, 1), "right": (0, -1), "lower": (1, 1), "upper": (1, -1), "back": (2, 1), "front": (2, -1)}
"""The coordinate that halves a cloud, and the sign that brings the kept half first."""


class PointCloud(Modality):
    """Clouds of points on a surface, perhaps with normals and colors.

    Media are points (n, c), float32: x, y (up), z, then the unit normal, then red, green and blue in [0, 1]. A model
    sees them with the points in the last dimension, in any order; coordinates are centered and divided by one scale.

    Args:
        points: of a cloud. Surfaces and larger clouds give as many; the missing points of smaller ones carry no loss.
        normals: whether points have normals; meshes do, other files may.
        colors: whether points have colors.
        normalize: ``shape`` moves each file into the box [-1, 1]; ``none`` keeps its units, for files that share them.
        up: axis of the files, ``x``, ``y`` or ``z``, that is turned to y.
        mesh: also write a closed surface through the points, as .glb (see `mmdiff_pointcloud.surface`).
        turntable: also write a .gif in which the cloud turns.
        center: of the coordinates of all data, learned by `fit`; 0 if not given.
        scale: standard deviation of the coordinates of all data, learned by `fit`; 1 if not given.
    """

    suffixes = files.SUFFIXES
    suffix = ".ply"
    ragged = -1

    def __init__(
        self,
        *,
        points: int = 1024,
        normals: bool = False,
        colors: bool = False,
        normalize: str = "shape",
        up: str = "y",
        mesh: bool = False,
        turntable: bool = False,
        center: Sequence[float] | None = None,
        scale: float | None = None,
    ):
        check_at_least(1, **{"modality.points": points})
        if normalize not in ("shape", "none"):
            raise ValueError(f"modality.normalize must be shape or none, got {normalize}.")
        if center is not None and len(center) != 3:
            raise ValueError(f"modality.center must have 3 coordinates, got {len(center)}.")
        if scale is not None and scale <= 0:
            raise ValueError(f"modality.scale must be positive, got {scale:g}.")
        self.normals, self.colors = normals, colors
        self.normalize = normalize
        self.up = up
        self.mesh = mesh
        self.turntable = turntable
        self.shape = (3 * (1 + normals + colors), points)
        # A unit normal has a variance of 1 / 3 in each coordinate, a color spread evenly one of 1 / 12.
        self.mean = torch.tensor([*(center or [0.0] * 3), *[0.0] * 3 * normals, *[0.5] * 3 * colors])
        self.std = torch.tensor([scale or 1.0] * 3 + [3**-0.5] * 3 * normals + [12**-0.5] * 3 * colors)

    def read(self, path: Path, generator: Generator | None = None) -> Float[Tensor, "n c"]:
        """Points of a file: others each time if a generator is given."""
        cloud = files.read(path, self.shape[1], generator, self.up)
        points = files.normalize(cloud.points)[0] if self.normalize == "shape" else cloud.points
        columns = [points]
        if self.normals:
            columns.append(_present(cloud.normals, path, "normals"))
        if self.colors:
            columns.append(_present(cloud.colors, path, "colors") / 255)
        return torch.cat(columns, 1)

    def write(self, media: Float[Tensor, "n c"], path: Path) -> None:
        """Write ply, xyz, npz or glb, by the suffix, and beside it what else is asked for."""
        cloud = self._cloud(media)
        files.write(cloud, path)
        if self.mesh:
            vertices, faces = reconstruct(cloud.points)
            files.write_mesh(vertices, faces, path.with_suffix(".glb"))
        if self.turntable:
            turntable(cloud.points, path.with_suffix(".gif"), colors=cloud.colors)

    def restore(self, media: Float[Tensor, "n c"], path: Path) -> Float[Tensor, "n c"]:
        """Media in the units of the file; the axis that is up stays y."""
        if self.normalize != "shape":
            return media
        _, center, scale = files.normalize(files.read(path, self.shape[1], None, self.up).points)
        return torch.cat([media[:, :3] * scale + center, media[:, 3:]], 1)

    def encode(self, media: Float[Tensor, "*b n c"]) -> Float[Tensor, "*b c m"]:
        """Standardized columns; missing points are zero."""
        x = ((media - self.mean.to(media)) / self.std.to(media)).transpose(-1, -2)
        return torch.nn.functional.pad(x, (0, self.shape[1] - x.shape[-1]))

    def decode(self, x: Float[Tensor, "*b c n"]) -> Float[Tensor, "*b n c"]:
        """The inverse of `encode`; normals get unit length, colors stay in [0, 1]."""
        media = x.transpose(-1, -2) * self.std.to(x) + self.mean.to(x)
        columns = list(media.split(3, -1))
        if self.normals:
            columns[1] = torch.nn.functional.normalize(columns[1], dim=-1)
        if self.colors:
            columns[-1] = columns[-1].clamp(0, 1)
        return torch.cat(columns, -1)

    def mask(self, media: Float[Tensor, "n c"]) -> Bool[Tensor, "c m"] | None:
        """The points that the media have."""
        if len(media) >= self.shape[1]:
            return None
        return (torch.arange(self.shape[1]) < len(media)).expand(self.shape)

    def place(
        self, media: Float[Tensor, "n c"], known: str | None = None
    ) -> tuple[Float[Tensor, "c m"], Bool[Tensor, "1 m"]]:
        """The cloud and the points of it to keep (see `part`); the points of a half, named alone, come first."""
        if known in HALVES:
            axis, sign = HALVES[known]
            media = media[(sign * media[:, axis]).argsort(stable=True)]
            known = str(len(media) // 2)
        return super().place(media, known)

    def part(self, word: str, media: Float[Tensor, "n c"]) -> Bool[Tensor, "1 m"]:
        """A half, by its name; as many of the first points as a number says; or ``x:FROM:TO``, ``y`` and ``z`` alike.

        Coordinates are those of the media; a box is three ranges joined by ``and``.
        """
        points, count = media[:, :3].new_full((self.shape[1], 3), torch.nan), len(media)
        points[:count] = media[:, :3]
        place = torch.arange(self.shape[1])
        if word in HALVES:
            axis, sign = HALVES[word]
            order = (sign * media[:, axis]).argsort(stable=True)
            return torch.isin(place, order[: count // 2])[None]
        if word.isdigit() and 0 < int(word) <= count:
            return (place < int(word))[None]
        return span(word, dict(zip("xyz", points.T[:, None], strict=True)), *HALVES, f"a number up to {count}")

    def confine(
        self, media: Float[Tensor, "n c"], known: str
    ) -> Callable[[Float[Tensor, "c m"]], Float[Tensor, "c m"]]:
        """New points in a half or a box that is kept are mirrored at the nearest of its faces that leads outside."""
        bounds = cache(partial(_bounds, media=media))
        faces: set[tuple[int, float]] = set()

        def holds(word: str, points: Float[Tensor, "3 m"]) -> Bool[Tensor, "m"]:
            if word.isdigit():
                return torch.zeros_like(points[0], dtype=torch.bool)
            axis, least, most = bounds(word)
            faces.update((axis, end) for end in (least, most) if math.isfinite(end))
            return (least <= points[axis]) & (points[axis] < most)

        def kept(points: Float[Tensor, "3 m"]) -> Bool[Tensor, "m"]:
            return region(known, lambda word: holds(word, points))

        def confined(x: Float[Tensor, "c m"]) -> Float[Tensor, "c m"]:
            mean, std = self.mean[:3, None].to(x), self.std[:3, None].to(x)
            points = x[:3] * std + mean
            inside, moved = kept(points), points
            nearest = torch.full_like(points[0], torch.inf)
            for axis, face in sorted(faces):
                mirrored = points.clone()
                mirrored[axis] = 2 * face - points[axis]
                way = (face - points[axis]).abs()
                leads = inside & ~kept(mirrored) & (way < nearest)
                moved, nearest = torch.where(leads, mirrored, moved), torch.where(leads, way, nearest)
            return torch.cat([torch.where(nearest.isfinite(), (moved - mean) / std, x[:3]), x[3:]])

        return confined

    def preview(self, media: Float[Tensor, "n c"]) -> UInt8[Tensor, "3 h w"]:
        """Three shaded views side by side."""
        cloud = self._cloud(media)
        return multiview(cloud.points, cloud.colors)

    def metrics(self) -> dict[str, Metric]:
        """Distances between sets of clouds, by their coordinates alone."""
        return cloud_metrics()

    def fit(self, media: Iterable[Tensor]) -> dict[str, Any]:
        """Center of all points, and one standard deviation for the three coordinates, which keeps angles."""
        points = torch.cat([cloud[:, :3] for cloud in media]).double()
        center = points.mean(0)
        scale = (points - center).square().mean().sqrt().clamp(min=1e-6)
        return {"center": [float(f"{c:.5g}") for c in center.tolist()], "scale": float(f"{scale.item():.5g}")}

    def _cloud(self, media: Float[Tensor, "n c"]) -> Cloud:
        colors = (media[:, -3:].clamp(0, 1) * 255).round().to(torch.uint8) if self.colors else None
        return Cloud(media[:, :3].contiguous(), media[:, 3:6].contiguous() if self.normals else None, colors)


def _bounds(word: str, media: Float[Tensor, "n c"]) -> tuple[int, float, float]:
    """Axis, least and most of the coordinates that a half, or a range, holds."""
    if word in HALVES:
        axis, sign = HALVES[word]
        order = media[:, axis].sort().values.tolist()
        face = order[len(media) // 2 if sign > 0 else len(media) - len(media) // 2]
        return (axis, -math.inf, face) if sign > 0 else (axis, face, math.inf)
    axis, least, most = ends(word, "xyz")
    return "xyz".index(axis), least, most


def _present(values: Tensor | None, path: Path, name: str) -> Tensor:
    if values is None:
        raise DataError(path, f"has no {name}; leave them out with modality.{name}=false")
    return values
