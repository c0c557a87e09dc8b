"""Judges of generated video that need no trained weights.

``ShapeAccuracy`` asks whether a film shows the one moving shape that was asked for: it finds the object against the
background, names its kind by harmonic moments and its color by hue, and fits a path that walls may reflect.
``motion_statistics`` and ``untrained_conv3d`` describe any film by a vector, for a distance between two sets of films.
None of it shares code with the data sets or with the representations it judges.

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

SPEEDS = {"slow": (0.20, 0.62), "fast": (0.62, 1.2)}
"""Path length of a whole film, in widths of the picture; less than 0.20 is no movement."""

MOMENTS = {"circle": (0.0, 0.0), "square": (0.0, 1 / 60), "triangle": ((16 / 27) ** 0.75 / 10, 0.0)}
"""Sizes of the harmonic moments of orders 3 and 4 of each kind, at area 1."""

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


def harmonic_moments(coverage: Float[Tensor, "b t h w"], center: Float[Tensor, "b t 2"]) -> Float[Tensor, "b 2"]:
    """|sum of coverage (x + iy)^n| / sum of area^(1 + n/2), both over all frames, for n = 3 and 4; nan without area.

    A disk has none. The powers are harmonic functions: by their mean value property, a blur that is the same in all
    directions does not change the sums, and noise adds nothing to their expectation.
    """
    x, y = (torch.arange(size, device=coverage.device) for size in (coverage.shape[3], coverage.shape[2]))
    offset = center.nan_to_num()[:, :, None, None]
    z = torch.complex(*torch.broadcast_tensors(x - offset[..., 0], y[:, None] - offset[..., 1]))
    area = coverage.sum((2, 3)).clamp(min=0)
    third = coverage * z * z * z
    sums = torch.stack([third.sum((1, 2, 3)), (third * z).sum((1, 2, 3))], 1).abs()
    return sums / torch.stack([(area**2.5).sum(1), (area**3).sum(1)], 1)


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


def name_kinds(moments: Float[Tensor, "b 2"]) -> list[str | None]:
    """The kind whose moments are nearest, in units of the largest of each order; None at a distance above 0.5."""
    examples = torch.tensor(list(MOMENTS.values()), device=moments.device)
    distance = (moments[:, None] / examples.amax(0) - examples / examples.amax(0)).norm(dim=2)
    nearest = zip(*map(Tensor.tolist, distance.min(1)), strict=True)
    return [list(MOMENTS)[k] if near < 0.5 else None for near, k in nearest]


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
            "kind": name_kinds(harmonic_moments(coverage, center)),
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


def motion_statistics(media: UInt8[Tensor, "b 3 t h w"]) -> Float[Tensor, "b f"]:
    """18 numbers about change in time, most of them decimal logarithms of levels, full scale being 1.

    Mean change of a pixel over one, two and all frames (the last is the dynamic degree), its share of each color
    channel, its deviation from frame to frame; second and third differences in time; shares of pixels that change by
    0.02, 0.1 and 0.3; flicker, which is the deviation over time of the mean (and of the contrast) of a frame from a
    linear trend, relative to its level; gradient and Laplacian of the frames, with their deviation over time.

    Raises:
        ValueError: with less than 4 frames.
    """
    if (t := media.shape[2]) < 4:
        raise ValueError(f"motion_statistics needs at least 4 frames, got {t}.")
    color = media.float() / 255
    light = color.mean(1)
    first, channels = light.diff(dim=1).abs(), color.diff(dim=2).abs().mean((2, 3, 4))
    gradient = (light.diff(dim=3).abs().mean((2, 3)) + light.diff(dim=2).abs().mean((2, 3))) / 2
    roughness = (light[..., 1:-1, 1:-1] - F.avg_pool2d(light, 3, 1)).abs().mean((2, 3))
    levels = [first.mean((1, 2, 3)), (light[:, 2:] - light[:, :-2]).abs().mean((1, 2, 3))]
    levels += [(light[:, -1] - light[:, 0]).abs().mean((1, 2)), first.mean((2, 3)).std(1)]
    levels += [light.diff(n, dim=1).abs().mean((1, 2, 3)) for n in (2, 3)]
    levels += [flicker(light.mean((2, 3))), flicker(light.std((2, 3)))]
    levels += [gradient.mean(1), gradient.std(1), roughness.mean(1), roughness.std(1)]
    shares = [(first > threshold).float().mean((1, 2, 3)) for threshold in (0.02, 0.1, 0.3)]
    shares += list((channels / channels.sum(1, keepdim=True).clamp(min=1e-4)).T)
    return torch.cat([(torch.stack(levels, 1) + 1e-4).log10(), torch.stack(shares, 1)], 1)


def flicker(level: Float[Tensor, "b t"]) -> Float[Tensor, "b"]:
    """Root mean square deviation from a linear trend over time, relative to the mean."""
    time = torch.linspace(-1, 1, level.shape[1], device=level.device)
    mean = level.mean(1, keepdim=True)
    slope = (level * time).sum(1, keepdim=True) / time.square().sum()
    return (level - mean - slope * time).square().mean(1).sqrt() / mean[:, 0].clamp(min=1e-3)


def untrained_conv3d(media: UInt8[Tensor, "b 3 t h w"]) -> Float[Tensor, "b f"]:
    """Means and deviations of the channels of two layers of random 3-D convolutions, always the same ones; f = 96.

    The kernels of the first layer sum to zero over time, so they see nothing in a film at rest. Otherwise the colors
    of what is shown drown its motion.

    Raises:
        ValueError: with less than 3 frames.
    """
    if (t := media.shape[2]) < 3:
        raise ValueError(f"untrained_conv3d needs at least 3 frames, got {t}.")
    generator = torch.Generator().manual_seed(0)
    motion, texture = (
        torch.randn(n, m, 3, 3, 3, generator=generator) * math.sqrt(2 / (27 * m)) for n, m in ((16, 3), (32, 16))
    )
    motion = motion - motion.mean(2, keepdim=True)
    first = F.conv3d(media.float() / 127.5 - 1, motion.to(media.device), stride=(1, 2, 2), padding=(0, 1, 1)).relu()
    second = F.conv3d(first, texture.to(media.device), stride=(1, 2, 2), padding=1).relu()
    return torch.cat([part for layer in (first, second) for part in (layer.mean((2, 3, 4)), layer.std((2, 3, 4)))], 1)
