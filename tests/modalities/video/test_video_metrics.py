"""The judge is right where the truth is known: on films made here, on real ones, and on films that were damaged."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmdiff.metrics.kernel import KernelDistance
from mmdiff_video.judge import KINDS, ShapeAccuracy, bouncing_path, centroids, find_object, name_kinds, silhouettes
from mmdiff_video.metrics import flicker, motion_statistics, untrained_conv3d
from mmdiff_video.shapes import Shapes

FACTORS = ("kind", "color", "direction", "speed")


def collate(size: int, seed: int, **options) -> tuple[torch.Tensor, dict[str, list]]:
    media, conds = zip(*Shapes(size=size, seed=seed, **options), strict=True)
    return torch.stack(media), {name: [cond[name] for cond in conds] for name in FACTORS}


@pytest.fixture(scope="module")
def clean():
    return collate(256, seed=1, frames=6, resolution=16)


@pytest.fixture(scope="module")
def few(clean):
    return clean[0][:96], {name: values[:96] for name, values in clean[1].items()}


def score(media: torch.Tensor, cond: dict[str, list]) -> dict[str, float]:
    metric = ShapeAccuracy()
    metric.update(media, real=False, cond=cond)
    return {name: value.item() for name, value in metric.compute().items()}


def to_bytes(levels: torch.Tensor) -> torch.Tensor:
    return levels.round().clamp(0, 255).byte()


def noisy(media: torch.Tensor, std: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return to_bytes(media + std * torch.randn(media.shape, generator=generator))


def blurred(media: torch.Tensor) -> torch.Tensor:
    """By a binomial filter of 3 by 3 pixels, the edges repeated."""
    row = torch.tensor([0.25, 0.5, 0.25])
    padded = F.pad(media.float(), (1, 1, 1, 1, 0, 0), mode="replicate")
    kernel = row.outer(row).expand(3, 1, 1, 3, 3)
    return to_bytes(F.conv3d(padded, kernel, groups=3))


def shuffled(media: torch.Tensor) -> torch.Tensor:
    """Every film with its frames in an order of its own."""
    order = torch.rand(media.shape[0], media.shape[2], generator=torch.Generator().manual_seed(0)).argsort(1)
    return media.take_along_dim(order[:, None, :, None, None], 2)


def frozen(media: torch.Tensor) -> torch.Tensor:
    return media[:, :, :1].expand_as(media).clone()


def flickering(media: torch.Tensor, share: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return to_bytes(media * (1 + share * torch.randn(len(media), 1, media.shape[2], 1, 1, generator=generator)))


def shaking(media: torch.Tensor) -> torch.Tensor:
    """Every frame moved by at most a pixel in each direction."""
    b, _, t, h, w = media.shape
    padded = F.pad(media.float(), (1, 1, 1, 1, 0, 0), mode="replicate").byte()
    shift = torch.randint(0, 3, (b, t, 2), generator=torch.Generator().manual_seed(0)).tolist()
    films = [
        torch.stack([padded[i, :, k, y : y + h, x : x + w] for k, (y, x) in enumerate(shift[i])], 1) for i in range(b)
    ]
    return torch.stack(films)


def polygon(corners: torch.Tensor, size: int = 32) -> torch.Tensor:
    """Share of each pixel inside a convex polygon of corners (x, y), by 16 by 16 points in each."""
    fine = (torch.arange(16 * size) + 0.5) / 16 - 0.5
    points = torch.stack(torch.meshgrid(fine, fine, indexing="xy"), 2)
    edges = corners.roll(-1, 0) - corners
    offset = points[:, :, None] - corners
    cross = edges[:, 0] * offset[..., 1] - edges[:, 1] * offset[..., 0]
    return F.avg_pool2d((cross > 0).all(2).float()[None], 16)[0]


def regular(sides: int, area: float, center: tuple[float, float], turn: float = 0.0) -> torch.Tensor:
    """Corners of a regular polygon; 24 sides make a circle."""
    angle = torch.arange(sides) * 2 * math.pi / sides + turn
    radius = math.sqrt(2 * area / (sides * math.sin(2 * math.pi / sides)))
    return torch.stack([angle.cos(), angle.sin()], 1) * radius + torch.tensor(center)


def bars(area: float, center: tuple[float, float]) -> torch.Tensor:
    """Share of each pixel that two rectangles cover, which cross in the middle and are three times as long as wide."""
    corners = torch.tensor([[-1.5, -0.5], [1.5, -0.5], [1.5, 0.5], [-1.5, 0.5]]) * math.sqrt(area / 5)
    standing = corners.flip(1).flip(0)
    return torch.maximum(*(polygon(each + torch.tensor(center)) for each in (corners, standing)))


def drawn(kind: str, center: tuple[float, float]) -> torch.Tensor:
    """Share of each pixel that a shape of 60 pixels covers."""
    if kind == "cross":
        return bars(60.0, center)
    sides = {"circle": 24, "triangle": 3}[kind]
    return polygon(regular(sides, 60.0, center, math.pi / 2 + math.pi / sides))


def film(path: list[tuple[float, float]], kind: str = "circle", color: tuple[int, ...] = (240, 30, 30)) -> torch.Tensor:
    """A shape at each place of a path, on dark gray."""
    cover = torch.stack([drawn(kind, place) for place in path])
    levels = 20 + cover * (torch.tensor(color)[:, None, None, None] - 20)
    return to_bytes(levels)[None]


RIGHT = [(8.0 + 2 * k, 15.5) for k in range(8)]


@pytest.mark.parametrize("kind", KINDS)
def test_silhouettes_cover_what_was_drawn_here(kind):
    for center in ((14.0, 16.0), (15.3, 15.9)):
        cover = drawn(kind, center)
        silhouette = silhouettes(torch.tensor([[center]]), torch.tensor([[60.0]]), *cover.shape, fine=32)
        assert silhouette.sum((1, 2, 3, 4)).tolist() == pytest.approx([60.0] * 3, rel=0.01)
        assert (silhouette[KINDS.index(kind), 0, 0] - cover).abs().mean() < 0.002


def test_what_is_no_shape_has_no_kind():
    """A bar three times as long as wide, and noise."""
    bar = torch.tensor([[8.0, 12.0], [22.0, 12.0], [22.0, 16.7], [8.0, 16.7]])
    noise = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for cover in (polygon(bar)[None, None], noise * (noise > 0.9)):
        assert name_kinds(cover, centroids(cover)) == [None]
    for kind in KINDS:
        cover = drawn(kind, (15.0, 16.0))[None, None]
        assert name_kinds(cover, centroids(cover)) == [kind]


def test_centers_and_coverage_of_films_made_here():
    path = [(9.0 + 1.7 * k, 21.3 - 1.1 * k) for k in range(8)]
    found = find_object(film(path, color=(30, 240, 240)))
    assert centroids(found.coverage)[0].tolist() == [pytest.approx(place, abs=0.05) for place in path]
    assert found.coverage.sum((2, 3))[0].tolist() == pytest.approx([60.0] * 8, rel=0.03)
    assert found.color[0].tolist() == pytest.approx([30 / 255, 240 / 255, 240 / 255], abs=0.02)
    assert found.alone.all()


def test_an_empty_frame_has_no_center_and_no_object():
    media = film(RIGHT)
    media[:, :, 3] = 20
    found = find_object(media)
    assert found.alone[0].tolist() == [True] * 3 + [False] + [True] * 4
    center = centroids(found.coverage)
    assert center[0, 3].isnan().all()
    assert bouncing_path(center).velocity[0].tolist() == pytest.approx([2, 0], abs=0.02)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("frames", "bounces"), [(8, False), (8, True), (16, True)])
def test_paths_made_here(frames, bounces, noise):
    """By unfolding: a wall at a random place between the second and the last but one frame of each axis."""
    rng = np.random.default_rng(0)
    speed = rng.uniform(1, 3, (200, 1, 2)) * rng.choice([-1, 1], (200, 1, 2))
    time = np.arange(frames)[None, :, None]
    meeting = rng.uniform(1.5, frames - 1.5, (200, 1, 2)) if bounces else np.inf
    track = 16 + speed * np.minimum(time, 2 * meeting - time)
    path = bouncing_path(torch.tensor(track + rng.normal(0, noise + 1e-9, track.shape)).float())
    np.testing.assert_allclose(path.velocity, speed[:, 0], atol=0.02 + 3 * noise)
    assert path.residual.median() < 0.02 + 1.5 * noise


def test_one_frame_out_of_place_does_not_turn_the_path():
    center = torch.tensor([[1.0 + 2 * k, 20.0 - k] for k in range(8)])[None]
    center[0, 4] += torch.tensor([6.0, 5.0])
    path = bouncing_path(center)
    assert path.velocity[0].tolist() == pytest.approx([2, -1], abs=0.05)
    assert path.residual.item() == pytest.approx(math.hypot(6, 5) / 8, rel=0.05)


def test_two_places_are_no_path():
    center = torch.full((1, 8, 2), math.nan)
    center[0, :2] = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    assert bouncing_path(center).velocity.isnan().all()
    assert bouncing_path(center).residual.isnan().all()


@pytest.mark.parametrize(
    ("frames", "resolution", "noise"), [(6, 16, 0), (6, 16, 10), (6, 16, 30), (8, 32, 0), (8, 32, 20)]
)
def test_real_films_are_right(frames, resolution, noise):
    media, cond = collate(256, seed=2, frames=frames, resolution=resolution)
    shares = score(noisy(blurred(media), noise) if noise else media, cond)
    assert all(shares[name] >= (0.97 if noise else 0.99) for name in (*FACTORS, "one", "kind_and_color"))
    assert shares["path"] < (0.12 if noise else 0.03)


def test_shuffled_conditions_score_like_chance(clean):
    order = np.random.default_rng(0).permutation(len(clean[0]))
    shares = score(clean[0], {name: [values[i] for i in order] for name, values in clean[1].items()})
    for name, chance in (("kind", 1 / 3), ("color", 1 / 6), ("direction", 1 / 8), ("speed", 1 / 2)):
        assert shares[name] == pytest.approx(chance, abs=0.1)
    assert shares["kind_and_color"] < 0.12
    assert shares["one"] == 1


def test_shuffled_frames_leave_the_path(few):
    shares = score(shuffled(few[0]), few[1])
    assert shares["path"] > 1
    assert shares["direction"] < 0.45
    assert shares["speed"] < 0.75
    assert shares["kind_and_color"] == shares["one"] == 1


@pytest.mark.parametrize(
    ("wrong", "right"), [("left", "right"), ("right", "left"), ("up", "down"), ("down-left", "up-right")]
)
def test_time_reversed_is_the_opposite_direction(wrong, right):
    x, y = (("left" in wrong) - ("right" in wrong), ("up" in wrong) - ("down" in wrong))
    media = film([(15.5 + x * (2 * k - 7), 15.5 + y * (2 * k - 7)) for k in range(8)])
    assert score(media, {"direction": [wrong]})["direction"] == 0
    assert score(media, {"direction": [right]})["direction"] == 1
    assert score(media.flip(2), {"direction": [wrong]})["direction"] == 1
    assert score(media.flip(2), {"direction": [right]})["direction"] == 0


def test_reversed_real_films_that_meet_no_wall(clean):
    """A film that meets one head-on looks the same from its end."""
    straight = [i for i in range(256) if clean[1]["speed"][i] == "slow"]
    center = centroids(find_object(clean[0][straight]).coverage)
    steps = center.diff(dim=1)
    straight = [i for i, s in zip(straight, (steps - steps[:, :1]).abs().amax((1, 2)) < 0.3, strict=True) if s]
    assert len(straight) > 10
    cond = {name: [values[i] for i in straight] for name, values in clean[1].items()}
    shares = score(clean[0][straight].flip(2), cond)
    assert shares["direction"] == 0
    assert shares["speed"] == shares["kind_and_color"] == 1


def test_frozen_films_have_no_direction_and_no_speed(few):
    shares = score(frozen(few[0]), few[1])
    assert shares["direction"] == shares["speed"] == 0
    assert shares["path"] < 1e-6
    assert shares["kind_and_color"] == shares["one"] == 1


def test_two_objects_are_not_one():
    path = [(6.0 + k, 8.0) for k in range(8)]
    media = torch.maximum(film(path), film([(30 - x, 24.0) for x, _ in path], color=(30, 240, 30)))
    assert score(media, {})["one"] == 0
    assert score(film(path), {})["one"] == 1
    media[:, :, :7] = film(path)[:, :, :7]
    assert score(media, {})["one"] == 0


def test_two_films_in_one(few):
    assert score(torch.maximum(few[0], few[0].roll(1, 0)), few[1])["one"] < 0.4


def test_recolored_films_fail_the_color_alone(few):
    shares = score(few[0].roll(1, 1), few[1])
    assert shares["color"] == shares["kind_and_color"] == 0
    assert shares["kind"] == 1
    assert min(shares["direction"], shares["speed"]) >= 0.98


def test_mirrored_films_fail_the_direction(few):
    media, cond = few
    mirrored = score(media.flip(4), cond)
    upright = np.mean([name in ("up", "down") for name in cond["direction"]])
    assert mirrored["direction"] == pytest.approx(upright, abs=0.02)
    assert mirrored["kind"] == 1
    assert mirrored["speed"] >= 0.98


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", ["triangle", "cross", "circle", "hexagon"])
def test_kinds_of_films_made_here(kind, wrong):
    assert score(film(RIGHT, kind), {"kind": [wrong]})["kind"] == (wrong == kind)


@pytest.mark.parametrize(("angle", "right"), [(17, 1.0), (23, 0.0), (-17, 1.0), (-23, 0.0)])
def test_the_tolerance_of_the_direction(angle, right):
    turn = math.radians(angle)
    media = film([(8 + 2 * k * math.cos(turn), 15.5 - 2 * k * math.sin(turn)) for k in range(8)])
    assert score(media, {"direction": ["right"]})["direction"] == right


def test_gray_has_no_color_and_nothing_is_nothing():
    assert score(film(RIGHT, color=(200, 200, 200)), {"color": ["red"]})["color"] == 0
    plain = torch.tensor([40, 12, 12], dtype=torch.uint8)[:, None, None, None].expand(1, 3, 8, 32, 32)
    nothing = score(plain, {"kind": ["circle"], "color": ["red"], "direction": ["right"], "speed": ["slow"]})
    assert all(nothing[name] == 0 for name in (*FACTORS, "one", "kind_and_color"))
    assert math.isnan(nothing["path"])
    static = torch.randint(0, 256, (8, 3, 8, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert score(static, {})["one"] == 0


def test_conditions_that_are_none_are_not_counted(few):
    media, cond = few[0][:4], {name: values[:4] for name, values in few[1].items()}
    kinds = [cond["kind"][0], "hexagon", None, cond["kind"][3]]
    shares = score(media, {"kind": kinds, "color": [cond["color"][0], cond["color"][1], None, None]})
    assert shares["kind"] == pytest.approx(2 / 3)
    assert shares["color"] == 1
    assert shares["kind_and_color"] == 0.5
    assert math.isnan(shares["direction"])
    assert shares["one"] == 1


def test_updates_add_up_and_reset_forgets(few):
    media, cond = few
    metric = ShapeAccuracy()
    for i in range(5):
        metric.update(media[i : i + 1], real=False, cond={"color": [cond["color"][i]], "kind": ["hexagon"]})
        metric.update(media[i : i + 1], real=True, cond={"color": ["hexagon"], "kind": [cond["kind"][i]]})
    assert metric.compute()["color"] == 1
    assert metric.compute()["kind"] == 0
    metric.reset()
    metric.update(media[:2], real=True, cond=cond)
    assert all(value.isnan() for value in metric.compute().values())


CORRUPTIONS = {
    "noise": lambda media: noisy(media, 0.05 * 255),
    "blur": blurred,
    "shuffled": shuffled,
    "frozen": frozen,
    "flicker": flickering,
    "jitter": shaking,
}


@pytest.fixture(scope="module")
def distances():
    """From 120 real films to 120 others, as they are and corrupted, by both kinds of features."""
    real, others = collate(240, seed=11)[0].split(120)
    films = {"none": others} | {name: corrupt(others) for name, corrupt in CORRUPTIONS.items()}
    found = {}
    for features in (motion_statistics, untrained_conv3d):
        reference = KernelDistance(features)
        reference.update(real, real=True)
        for name, media in films.items():
            metric = reference.clone()
            metric.update(media, real=False)
            found[features.__name__, name] = metric.compute()[""].item()
    return found


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_motion_statistics_notice_every_corruption(distances, corruption):
    assert abs(distances["motion_statistics", "none"]) < 15
    assert distances["motion_statistics", corruption] > 50


@pytest.mark.parametrize("corruption", ["noise", "blur", "shuffled", "frozen"])
def test_random_convolutions_notice_these(distances, corruption):
    assert abs(distances["untrained_conv3d", "none"]) < 15
    assert distances["untrained_conv3d", corruption] > 40


def test_motion_statistics_of_one_film_do_not_depend_on_the_others():
    media = collate(3, seed=0)[0]
    for features in (motion_statistics, untrained_conv3d):
        together = features(media)
        assert together.isfinite().all()
        alone = torch.cat([features(one[None]) for one in media])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_motion_statistics_of_known_films():
    steady = torch.full((1, 3, 8, 16, 16), 100, dtype=torch.uint8)
    still = motion_statistics(steady)[0]
    assert still[:12].tolist() == pytest.approx([-4] * 12, abs=0.01)
    assert still[12:].tolist() == [0] * 6
    rising = steady + 2 * torch.arange(8, dtype=torch.uint8)[:, None, None]
    levels = 10 ** motion_statistics(rising)[0, :12] - 1e-4
    assert levels[:3].tolist() == pytest.approx([2 / 255, 4 / 255, 14 / 255], rel=1e-2)
    assert levels[3:].abs().max() < 1e-4


def test_too_few_frames_are_named():
    with pytest.raises(ValueError, match="at least 3 frames, got 2"):
        bouncing_path(torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="at least 4 frames, got 3"):
        motion_statistics(torch.zeros(1, 3, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least 3 frames, got 2"):
        untrained_conv3d(torch.zeros(1, 3, 2, 8, 8, dtype=torch.uint8))


def test_flicker_is_the_deviation_from_a_trend():
    level = 5 + torch.arange(100.0) + torch.tensor([1.0, -1.0]).repeat(50)
    assert flicker(level[None]).item() == pytest.approx(1 / level.mean().item(), rel=1e-3)
    assert flicker(10 * level[None]).item() == pytest.approx(flicker(level[None]).item())


def test_random_convolutions_neither_read_nor_change_the_random_state():
    media = collate(4, seed=0)[0]
    state = torch.get_rng_state()
    first = untrained_conv3d(media)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(untrained_conv3d(media), first)


def test_random_convolutions_see_nothing_at_rest_and_tell_forward_from_backward():
    media = collate(4, seed=0)[0]
    assert untrained_conv3d(frozen(media)).abs().max() < 1e-5
    assert (untrained_conv3d(media) - untrained_conv3d(media.flip(2))).abs().max() > 1e-3
