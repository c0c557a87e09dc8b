"""Pictures of point clouds, drawn without a display: shaded spheres on a light ground, in torch alone.

The y axis points up. At azimuth 0 and elevation 0 the camera looks along -z, so that x runs to the right; a positive
azimuth moves it toward +x, a positive elevation upward. Angles are in degrees.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from mmdiff.errors import check_at_least

VIEWS = ((35.0, 20.0), (125.0, 20.0), (35.0, 70.0))  # azimuth and elevation: corner, other corner, from above
BACKGROUND = (0.97, 0.97, 0.975)
HEIGHTS = ((0.20, 0.33, 0.58), (0.30, 0.62, 0.62), (0.97, 0.68, 0.32))  # colors of low, middle and high points
LIGHT = (-0.45, 0.75, 0.55)  # direction to the light, seen from the camera
SUPERSAMPLING = 2
DISTANCE = 4.5  # of the camera, in radii of the cloud
ZOOM = 0.46  # radius of the cloud in the picture


def render(
    points: Float[Tensor, "n 3"],
    colors: UInt8[Tensor, "n 3"] | None = None,
    size: int = 160,
    azimuth: float = 35.0,
    elevation: float = 20.0,
    *,
    normals: Float[Tensor, "n 3"] | None = None,
) -> UInt8[Tensor, "3 h w"]:
    """A square picture of a cloud, which may have any scale and place; points that are not finite are left out.

    Args:
        points: the cloud.
        colors: of the points; by height if None.
        size: of the picture, in pixels.
        azimuth: of the camera.
        elevation: of the camera.
        normals: of the surface, of either sign, for its shading; each point is shaded as a sphere if None.
    """
    check_at_least(16, size=size)
    points = points.detach().cpu().float()
    finite = points.isfinite().all(1)
    points = points[finite]
    fine = size * SUPERSAMPLING
    picture = torch.tensor(BACKGROUND).expand(fine * fine, 3).clone()
    if len(points):
        points = _framed(points)
        shade = _height_colors(points) if colors is None else colors.cpu()[finite].float() / 255
        axes = _camera(azimuth, elevation)
        radius = SUPERSAMPLING * min(max(0.42 * size / math.sqrt(len(points)), 0.9), 0.03 * size)
        shadow = _ground_shadow(points, axes, size, 1.5 * radius / SUPERSAMPLING)
        shadow = F.interpolate(shadow.reshape(1, 1, size, size), scale_factor=SUPERSAMPLING, mode="bilinear")
        picture *= 1 - 0.25 * shadow.flatten()[:, None]
        facing = None if normals is None else F.normalize(normals.detach().cpu().float()[finite], dim=1) @ axes.T
        _draw(picture, points @ axes.T, shade, fine, radius, facing)
    picture = picture.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean((1, 3)).permute(2, 0, 1)
    return (picture.clamp(0, 1) * 255).round().byte()


def multiview(
    points: Float[Tensor, "n 3"], colors: UInt8[Tensor, "n 3"] | None = None, size: int = 160
) -> UInt8[Tensor, "3 h w"]:
    """Three views of a cloud side by side: from one corner, from the next, and from above."""
    return torch.cat([render(points, colors, size, *view) for view in VIEWS], dim=2)


def turntable(
    points: Float[Tensor, "n 3"],
    path: str | Path,
    frames: int = 24,
    *,
    colors: UInt8[Tensor, "n 3"] | None = None,
    size: int = 160,
    seconds: float = 3.0,
) -> None:
    """Write a gif in which the cloud turns once around its vertical axis, without end.

    Args:
        points: the cloud.
        path: of the file, ending in .gif.
        frames: in one turn.
        colors: of the points; by height if None.
        size: of the picture, in pixels.
        seconds: that one turn takes.
    """
    check_at_least(1, frames=frames)
    if Path(path).suffix.lower() != ".gif":
        raise ValueError(f"a turntable is written as .gif, got {Path(path).name}.")
    views = [render(points, colors, size, 360 * i / frames, VIEWS[0][1]) for i in range(frames)]
    first, *others = [Image.fromarray(view.permute(1, 2, 0).numpy()) for view in views]
    first.save(path, save_all=True, append_images=others, duration=1000 * seconds / frames, loop=0)


def _framed(points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Center and scale to a unit ball, the same from every side; up to 3 % of strays do not count, and end outside."""
    distance = (points - points.median(dim=0).values).norm(dim=1)
    body = points[distance <= 1.3 * distance.quantile(0.97)]
    center = (body.amin(0) + body.amax(0)) / 2
    radius = (body - center).norm(dim=1).max()
    return (points - center) / radius if radius > 0 else points - center


def _camera(azimuth: float, elevation: float) -> Float[Tensor, "3 3"]:
    """Rows: unit vectors to the right of the picture, to its top, and toward the camera."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return torch.tensor(
        [
            [math.cos(a), 0.0, -math.sin(a)],
            [-math.sin(a) * math.sin(e), math.cos(e), -math.cos(a) * math.sin(e)],
            [math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)],
        ]
    )


def _height_colors(points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    low, high = points[:, 1].quantile(torch.tensor([0.005, 0.995]))
    height = 2 * ((points[:, 1:] - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)[:, :1]
    below, middle, above = torch.tensor(HEIGHTS)
    return torch.lerp(torch.lerp(below, middle, height.clamp(max=1)), above, (height - 1).clamp(min=0))


def _project(seen: Float[Tensor, "n 3"], size: int) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Row and column of the pixel of each point, given in the axes of the camera."""
    zoom = ZOOM * size * DISTANCE / (DISTANCE - seen[:, 2]).clamp(min=0.1)
    place = torch.stack([size / 2 - seen[:, 1] * zoom, size / 2 + seen[:, 0] * zoom])
    row, column = place.clamp(-size, 2 * size).floor().long()
    return row, column


def _disc(radius: float) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"], Float[Tensor, "k 3"]]:
    """Pixels of a sphere around its center, rows and columns, and the sphere's normal at each."""
    reach = math.ceil(radius)
    y, x = torch.meshgrid(*[torch.arange(-reach, reach + 1)] * 2, indexing="ij")
    inside = x**2 + y**2 <= radius**2
    x, y = x[inside], y[inside]
    toward = (radius**2 - x**2 - y**2).sqrt()
    return y, x, torch.stack([x / radius, -y / radius, toward / radius], 1)


def _stamp(
    row: Int[Tensor, "n"], column: Int[Tensor, "n"], down: Int[Tensor, "k"], right: Int[Tensor, "k"], size: int
) -> Int[Tensor, "n k"]:
    """Flat pixel of each part of a disc around each point; ``size**2`` outside of the picture."""
    rows, columns = row[:, None] + down, column[:, None] + right
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    return torch.where(inside, rows * size + columns, size**2)


def _blur(image: Float[Tensor, "p"], reach: int) -> Float[Tensor, "p"]:
    """Mean over the square of ``2 reach + 1`` pixels around each pixel of a square image, by running sums."""
    size = math.isqrt(len(image))
    padded = F.pad(image.double().reshape(1, size, size), [reach + 1, reach] * 2, mode="replicate")[0]
    for _ in range(2):
        sums = padded.cumsum(0)
        padded = ((sums[2 * reach + 1 :] - sums[: -2 * reach - 1]) / (2 * reach + 1)).T
    return padded.float().flatten()


def _ground_shadow(
    points: Float[Tensor, "n 3"], axes: Float[Tensor, "3 3"], size: int, radius: float
) -> Float[Tensor, "p"]:
    """How much each pixel of the ground under the cloud lies in its shadow, light falling straight down."""
    ground = points.clone()
    ground[:, 1] = points[points.norm(dim=1) < 1.001, 1].min()
    down, right, _ = _disc(radius)
    shadow = torch.zeros(size**2 + 1)
    shadow[_stamp(*_project(ground @ axes.T, size), down, right, size).flatten()] = 1
    return _blur(_blur(shadow[:-1], size // 24), size // 24)


def _draw(
    picture: Float[Tensor, "p 3"],
    seen: Float[Tensor, "n 3"],
    colors: Float[Tensor, "n 3"],
    size: int,
    radius: float,
    facing: Float[Tensor, "n 3"] | None,
) -> None:
    """Draw spheres with a depth buffer, shaded by light, by distance and by how deep they lie among the others."""
    down, right, normal = _disc(radius)
    pixel = _stamp(*_project(seen, size), down, right, size)
    depth = seen[:, 2:] + normal[:, 2] * radius / (ZOOM * size)
    # One whole number per part of a disc, depth first and its index second: the largest of a pixel is what one sees.
    index = torch.arange(pixel.numel())
    key = ((depth.flatten().clamp(-4, 4) + 4) * 2**24).long() * 2**32 + index
    top = torch.full((size**2 + 1,), -1).scatter_reduce_(0, pixel.flatten(), key, "amax")[:-1]
    covered = (top >= 0).nonzero()[:, 0]
    winner = top[covered] % 2**32
    point, part = winner // len(down), winner % len(down)

    buffer = torch.full((size**2,), -1.0)
    buffer[covered] = depth.flatten()[winner].clamp(-1, 1)
    hidden = (_blur(buffer, size // 32)[covered] - buffer[covered]).clamp(0, 0.5)

    light = F.normalize(torch.tensor(LIGHT), dim=0)
    lit = (normal @ light).clamp(min=0)[part] if facing is None else (facing @ light).abs()[point]
    bright = (0.72 + 0.38 * lit) * (1 - 0.9 * hidden)
    haze = 0.3 * (0.5 - 0.5 * buffer[covered])[:, None]
    picture[covered] = torch.lerp(colors[point] * bright[:, None], torch.tensor(BACKGROUND), haze)
