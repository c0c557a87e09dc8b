"""A judge of moving shapes that needs no trained weights and shares no code with the data set.

``ShapeAccuracy`` asks whether a film shows the one moving shape that was asked for: it finds the object against the
background, names its kind by the nearest silhouette and its color by hue, and fits a path that walls may reflect.

Shapes: ``b`` films, ``t`` frames, ``h`` by ``w`` pixels, ``f`` features; x points right, y down, both in pixels.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

COLORS = ("red", "yellow", "green", "cyan", "blue", "magenta")
"""Hues in steps of 60 degrees."""

DIRECTIONS = ("right", "up-right", "up", "up-left", "left", "down-left", "down", "down-right")
"""In steps of 45 degrees, counterclockwise."""

SPEEDS = {"slow": (0.20, 0.65), "fast": (0.65, 1.2)}
"""Path length of a whole film, in widths of the picture; less than 0.20 is no movement."""

KINDS = ("circle", "cross", "triangle")
"""Upright: a triangle of equal sides stands on one of them, a cross has two bars three times as long as wide."""

UNLIKE = 0.2
"""Squared difference from a silhouette, as a share of its area, from which on an object is of no kind."""

CONTRAST = 0.15
"""Distance in color from the background below which nothing is an object; from black, red has distance 1."""


class Sighting(NamedTuple):
    """The object of each film: its share of every pixel, its color from 0 to 1 (or nan), frames where it is alone."""

    coverage: Float[Tensor, "b t h w"]
    color: Float[Tensor, "b 3"]
    alone: Bool[Tensor, "b t"]


class Path(NamedTuple):
    """Velocity (x, y) at the first frame in pixels per frame, and mean distance from the path in pixels."""

    velocity: Float[Tensor, "b 2"]
    residual: Float[Tensor, "b"]


def find_object(media: UInt8[Tensor, "b 3 t h w"]) -> Sighting:
    """The largest object of every frame; the background of a film is the median of its pixels.

    Pixels that differ from the background by 0.4 of the film's contrast, after a 3 by 3 blur against noise, are
    candidates, and the object is the component of them around the densest place. Its coverage is the least-squares
    share of the object's color in the raw pixels of the component and two pixels around it, which noise leaves
    unbiased. It is alone if it covers less than a quarter of the frame, and the other candidates less than a fifth of
    its usual area.
    """
    pixels = media.float() / 255
    background = pixels.flatten(2).median(2).values
    difference = pixels - background[:, :, None, None, None]
    blurred = F.avg_pool3d(difference, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    contrast = blurred.square().sum(1).sqrt()
    highest = contrast.flatten(1).kthvalue(round(0.98 * contrast[0].numel()), 1).values[:, None, None, None]
    candidates = (contrast > 0.4 * highest) & (highest > CONTRAST)
    body = component(candidates)
    area = body.sum((2, 3))
    others = (candidates & ~body).sum((2, 3))
    core = (body & (contrast > 0.7 * highest))[:, None]
    color = (difference * core).sum((2, 3, 4)) / core.sum((2, 3, 4))
    share = torch.einsum("bcthw,bc->bthw", difference, color / color.square().sum(1, keepdim=True).clamp(min=1e-6))
    coverage = share.where(dilate(dilate(body)), 0.0)
    usual = area.median(1, keepdim=True).values
    alone = (area > 0) & (area < math.prod(media.shape[3:]) / 4) & (others < 0.2 * usual)
    return Sighting(coverage, background + color, alone)


def component(candidates: Bool[Tensor, "b t h w"]) -> Bool[Tensor, "b t h w"]:
    """The connected component, in each frame, of the candidate with most others within an eighth of the width."""
    reach = candidates.shape[-1] // 8
    rows = F.avg_pool2d(candidates.float(), (1, 2 * reach + 1), 1, (0, reach))
    density = F.avg_pool2d(rows, (2 * reach + 1, 1), 1, (reach, 0)) * candidates
    densest = density.flatten(2).argmax(2, keepdim=True)
    seed = torch.zeros_like(candidates).flatten(2).scatter_(2, densest, True)
    body = seed.view_as(candidates) & candidates
    while not torch.equal(grown := dilate(body) & candidates, body):
        body = grown
    return body


def dilate(mask: Bool[Tensor, "b t h w"]) -> Bool[Tensor, "b t h w"]:
    """The mask and the eight neighbors of all its pixels; on a CPU 20 times as fast as max_pool2d."""
    wide = mask.clone()
    wide[..., 1:] |= mask[..., :-1]
    wide[..., :-1] |= mask[..., 1:]
    high = wide.clone()
    high[..., 1:, :] |= wide[..., :-1, :]
    high[..., :-1, :] |= wide[..., 1:, :]
    return high


def centroids(coverage: Float[Tensor, "b t h w"]) -> Float[Tensor, "b t 2"]:
    """(x, y) of the center of mass of every frame, counted from the first pixel's center; nan in an empty frame."""
    columns, rows = coverage.sum(2), coverage.sum(3)
    x, y = (line @ torch.arange(line.shape[2], dtype=line.dtype, device=line.device) for line in (columns, rows))
    mass = coverage.sum((2, 3))
    return (torch.stack([x, y]) / mass).where(mass > 0, math.nan).permute(1, 2, 0)


def silhouettes(
    center: Float[Tensor, "b t 2"], area: Float[Tensor, "b 1"], height: int, width: int, fine: int = 4
) -> Float[Tensor, "3 b t h w"]:
    """Share of each pixel that each of ``KINDS`` covers, by ``fine`` x ``fine`` points in it.

    Args:
        center: of mass, (x, y) from the first pixel's center.
        area: in pixels.
        height: of a frame.
        width: of a frame.
        fine: points along a side of a pixel.
    """
    offset = (torch.arange(fine, device=center.device) + 0.5) / fine - 0.5
    x, y = (
        (torch.arange(size, device=center.device)[:, None] + offset).flatten() - place[..., None]
        for size, place in zip((width, height), center.unbind(2), strict=True)
    )
    x, y, area = x[:, :, None], y[..., None], area[..., None, None]
    bar = (area / 5).sqrt() / 2
    below_apex = y + 2 / 3 * (math.sqrt(3) * area).sqrt()
    inside = torch.stack(
        [
            x.square() + y.square() < area / math.pi,
            (torch.minimum(x.abs(), y.abs()) < bar) & (torch.maximum(x.abs(), y.abs()) < 3 * bar),
            (below_apex < (math.sqrt(3) * area).sqrt()) & (x.abs() < below_apex / math.sqrt(3)),
        ]
    )
    return F.avg_pool2d(inside.float().flatten(0, 2), fine).unflatten(0, inside.shape[:3])


def bouncing_path(center: Float[Tensor, "b t 2"], rounds: int = 10) -> Path:
    """The path nearest to the centers whose velocity is constant but for at most one reflection on each axis.

    Reflected after frame k, x(t) = p + v t up to there and q - v t from there on, where the lines meet between the
    frames k and k + 1. Every k and the plain line are fitted, for the least sum of absolute residuals, by rounds of
    reweighted least squares; a reflection is believed if it spares 0.05 pixels per frame. Frames whose center is nan
    do not count, and a film with less than three others has a path of nan.

    Raises:
        ValueError: with less than 3 frames.
    """
    if center.shape[1] < 3:
        raise ValueError(f"A path needs at least 3 frames, got {center.shape[1]}.")
    track = center.double().transpose(1, 2)[:, :, None]
    track, seen = track.nan_to_num(), ~track.isnan()
    time = torch.arange(track.shape[3], dtype=track.dtype, device=track.device)
    turn = time[1:]
    before = (time <= turn[:, None]).double()
    design = torch.stack([before, 1 - before, (2 * before - 1) * time], 2)
    ridge = 1e-9 * torch.eye(3, dtype=track.dtype, device=track.device)
    error = torch.ones_like(track)
    for _ in range(rounds):
        weight = (seen / error.clamp(min=0.02)).expand(-1, -1, len(turn), -1)
        normal = torch.einsum("bxkt,kti,ktj->bxkij", weight, design, design) + ridge
        line = torch.linalg.solve(normal, torch.einsum("bxkt,kti->bxki", weight * track, design))
        error = (torch.einsum("bxki,kti->bxkt", line, design) - track).abs() * seen
    meeting = (line[..., 1] - line[..., 0]) / (2 * line[..., 2])
    plain = turn == time[-1]
    cost = error.sum(3) + 0.05 * len(time) * ~plain
    best = cost.where(plain | ((meeting - turn - 0.5).abs() < 0.75), math.inf).argmin(2, keepdim=True)
    velocity = line[..., 2].gather(2, best)[..., 0]
    distance = error.take_along_dim(best[..., None], 2).norm(dim=1)[:, 0]
    count = seen[:, 0, 0].sum(1)
    residual = distance.sum(1) / count.clamp(min=1)
    return Path(velocity.where(count[:, None] > 2, math.nan).float(), residual.where(count > 2, math.nan).float())


def name_kinds(coverage: Float[Tensor, "b t h w"], center: Float[Tensor, "b t 2"]) -> list[str | None]:
    """The kind whose silhouette, of the film's median area, is nearest to the coverage; None if all are `UNLIKE` it."""
    area = coverage.sum((2, 3)).median(1, keepdim=True).values.clamp(min=1)
    difference = coverage - silhouettes(center.nan_to_num(), area, *coverage.shape[2:])
    nearest = (difference.square().mean(2).sum((2, 3)) / area[:, 0]).min(0)
    return [KINDS[k] if unlike < UNLIKE else None for unlike, k in zip(*map(Tensor.tolist, nearest), strict=True)]


def name_colors(color: Float[Tensor, "b 3"]) -> list[str | None]:
    """The color whose hue is nearest; None if the lowest channel is above four fifths of the highest."""
    red, green, blue = color.T
    sixths = torch.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue).rad2deg() / 60
    colorful = color.amin(1) < 0.8 * color.amax(1)
    return [COLORS[round(s) % 6] if c else None for s, c in zip(sixths.tolist(), colorful.tolist(), strict=True)]


def name_directions(travel: Float[Tensor, "b 2"], degrees: float) -> list[str | None]:
    """The direction that differs by at most ``degrees`` from a displacement (x, y); None for one that is too short."""
    eighths = torch.atan2(-travel[:, 1], travel[:, 0]).rad2deg() / 45
    clear = ((eighths - eighths.round()).abs() * 45 <= degrees) & (travel.norm(dim=1) >= SPEEDS["slow"][0])
    return [DIRECTIONS[round(e) % 8] if c else None for e, c in zip(eighths.tolist(), clear.tolist(), strict=True)]


def name_speeds(travel: Float[Tensor, "b 2"]) -> list[str | None]:
    """The word for a displacement (x, y) over a whole film, in widths of the picture; None if there is none."""
    return [
        next((name for name, (low, high) in SPEEDS.items() if low <= length < high), None)
        for length in travel.norm(dim=1).tolist()
    ]


def verdicts(asked: list[str | None], found: list[str | None]) -> list[float]:
    """1 where the answer is right, 0 where it is wrong or missing, nan where nothing was asked."""
    return [math.nan if a is None else float(a == f) for a, f in zip(asked, found, strict=True)]


class ShapeAccuracy(Metric):
    """Shares of generated films that show the kind, color, direction and speed that were asked for.

    Also ``one``, the share with exactly one object in every frame, and ``path``, the median over films of the mean
    distance of the object from a straight path with reflections, in pixels. A condition that is ``None`` or missing
    is not counted, and a share of nothing is nan. Real films are not looked at.

    Args:
        degrees: how far off a right direction of the first movement may be, at most 22.5.
    """

    is_differentiable = False
    full_state_update = False
    NAMES = ("kind", "color", "direction", "speed", "one", "path")

    def __init__(self, degrees: float = 20.0):
        super().__init__()
        self.degrees = degrees
        self.add_state("films", default=[], dist_reduce_fx="cat")

    def update(self, media: UInt8[Tensor, "b 3 t h w"], *, real: bool, cond: dict[str, list]) -> None:
        """Add films with the names of their ``kind``, ``color``, ``direction`` and ``speed``."""
        if real:
            return
        coverage, color, alone = find_object(media)
        center = centroids(coverage)
        velocity, residual = bouncing_path(center)
        travel = velocity * (media.shape[2] - 1) / media.shape[4]
        found = {
            "kind": name_kinds(coverage, center),
            "color": name_colors(color),
            "direction": name_directions(travel, self.degrees),
            "speed": name_speeds(travel),
        }
        right = [verdicts(cond.get(name, [None] * len(media)), answers) for name, answers in found.items()]
        named = torch.tensor(right, dtype=torch.float32, device=media.device)
        self.films.append(torch.cat([named, alone.all(1)[None].float(), residual[None]]).T)

    def compute(self) -> dict[str, Tensor]:
        """Shares ``kind``, ``color``, ``direction``, ``speed``, ``one`` and ``kind_and_color``, and ``path``."""
        films = dim_zero_cat(self.films) if len(self.films) else torch.full((1, 6), math.nan, device=self.device)
        columns = dict(zip(self.NAMES, films.T, strict=True))
        columns["kind_and_color"] = columns["kind"] * columns["color"]
        path = columns.pop("path").nanmedian()
        return {name: column.nanmean() for name, column in columns.items()} | {"path": path}
