"""The films are a function of seed and index, their labels are true and their shapes move as the physics says."""

import itertools
import math

import numpy as np
import pytest
import torch

from mmdiff_video.captions import caption
from mmdiff_video.shapes import (
    COLORS,
    DIRECTIONS,
    KINDS,
    SPEEDS,
    Scene,
    Shapes,
    bounds,
    centers,
    draw_scene,
    render,
)


@pytest.fixture(scope="module")
def films():
    return list(Shapes(size=400, seed=5))


def scene(**changes) -> Scene:
    plain = Scene("circle", "red", "right", "fast", 4.5, np.array([16.0, 16.0]), np.array([2.0, 0.0]), np.zeros(3))
    return plain._replace(**changes)


def draw(kind: str, center: tuple[float, float] = (16.0, 16.0), radius: float = 4.5) -> np.ndarray:
    """Share of every pixel that is covered, from the red channel of a red shape on black."""
    return render(scene(kind=kind, radius=radius), np.array([center]), 32)[0, 0] / COLORS["red"][0]


def step_by_step(start, velocity, low, high, frames, substeps=2000):
    """A ball that turns round when it has run into a wall: an integration in small steps."""
    x, v, path = start, velocity, [start]
    for _ in range(frames - 1):
        for _ in range(substeps):
            x += v / substeps
            if (x > high and v > 0) or (x < low and v < 0):
                v = -v
        path.append(x)
    return path


def inside(kind: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Whether points, with y down and the center at 0, lie in a shape of area pi radius^2 that stands upright."""
    area = math.pi * radius**2
    if kind == "circle":
        return x**2 + y**2 < radius**2
    if kind == "cross":
        width = math.sqrt(area / 5)
        lying = (abs(x) < 1.5 * width) & (abs(y) < 0.5 * width)
        return lying | ((abs(x) < 0.5 * width) & (abs(y) < 1.5 * width))
    height = math.sqrt(math.sqrt(3) * area)
    from_apex = y + 2 / 3 * height
    return (from_apex < height) & (abs(x) < from_apex / math.sqrt(3))


def test_a_film_depends_on_seed_and_index_alone(films):
    again, longer, other = Shapes(size=400, seed=5), Shapes(size=900, seed=5), Shapes(size=400, seed=6)
    for i in (0, 7, 399):
        media, cond = films[i]
        assert torch.equal(media, again[i][0])
        assert torch.equal(media, longer[i][0])
        assert cond == longer[i][1]
        assert not torch.equal(media, other[i][0])
    assert torch.equal(films[-1][0], again[-1][0])


def test_films_of_a_set_differ(films):
    assert len({media.numpy().tobytes() for media, _ in films}) == len(films)


@pytest.mark.parametrize(("frames", "resolution"), [(8, 32), (16, 64), (6, 16)])
def test_types_and_shape(frames, resolution):
    media, cond = Shapes(frames=frames, resolution=resolution)[3]
    assert media.dtype == torch.uint8
    assert media.shape == (3, frames, resolution, resolution)
    assert set(cond) == {"kind", "color", "direction", "speed", "text"}
    assert all(type(value) is str for value in cond.values())


@pytest.mark.parametrize(
    ("name", "values"), [("kind", KINDS), ("color", COLORS), ("direction", DIRECTIONS), ("speed", SPEEDS)]
)
def test_every_value_occurs_about_equally_often(films, name, values):
    expected = len(films) / len(values)
    counts = [sum(cond[name] == value for _, cond in films) for value in values]
    assert sum(counts) == len(films)
    assert max(abs(count - expected) for count in counts) < 4 * math.sqrt(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_is_the_share_of_each_pixel_that_it_covers(kind):
    """Against 16 by 16 points in each pixel; a corner of a triangle is worst."""
    fine = (np.arange(32 * 16) + 0.5) / 16
    points = inside(kind, fine - 15.7, fine[:, None] - 16.4, 4.5)
    expected = points.reshape(32, 16, 32, 16).mean((1, 3))
    drawn = draw(kind, (15.7, 16.4))
    assert abs(drawn - expected).max() < 0.25
    assert abs(drawn - expected).mean() < 0.003


@pytest.mark.parametrize("radius", [4.2, 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_areas_are_equal_and_the_center_is_the_center_of_mass(kind, radius):
    covered = draw(kind, (14.3, 17.8), radius)
    assert covered.sum() == pytest.approx(math.pi * radius**2, rel=0.02)
    grid = np.arange(32) + 0.5
    mean = (covered.sum(0) @ grid / covered.sum(), covered.sum(1) @ grid / covered.sum())
    assert mean == pytest.approx((14.3, 17.8), abs=0.05)


def test_triangles_point_upwards():
    rows = draw("triangle").sum(1)
    assert np.flatnonzero(rows)[0] < 16 - 1.4 * 4.5
    assert rows.argmax() > 16


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_ends_of_its_range_a_shape_touches_the_edges_and_is_whole(kind):
    low, high = bounds(kind, 4.5, 32)
    for center in itertools.product((low[0], high[0]), (low[1], high[1])):
        assert draw(kind, center).sum() == pytest.approx(math.pi * 4.5**2, rel=0.03)
    inner = draw(kind, tuple(low)), draw(kind, tuple(high))
    assert all(line.max() > 0.1 for line in (inner[0][0], inner[0][:, 0], inner[1][-1], inner[1][:, -1]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("velocity", [(3.4, 0.7), (-2.5, -2.5), (0.1, 5.0), (-9.0, 4.0), (0.0, 0.0)])
def test_walls_reflect_as_in_a_simulation_in_small_steps(kind, velocity):
    low, high = bounds(kind, 4.5, 32)
    path = centers(scene(kind=kind, start=np.array([13.0, 18.0]), velocity=np.array(velocity)), 12, 32)
    for axis, start in enumerate((13.0, 18.0)):
        slow = step_by_step(start, velocity[axis], low[axis], high[axis], 12)
        np.testing.assert_allclose(path[:, axis], slow, atol=0.06)


@pytest.mark.parametrize(("frames", "resolution"), [(8, 32), (16, 64), (6, 16)])
def test_scenes_keep_what_their_names_promise(frames, resolution):
    reflected = 0
    for i in range(500):
        drawn = draw_scene(np.random.default_rng(i), frames, resolution)
        path = centers(drawn, frames, resolution)
        steps = np.diff(path, axis=0)
        np.testing.assert_allclose(steps[:2], [drawn.velocity] * 2, atol=1e-9)
        angle = math.degrees(math.atan2(-steps[0, 1], steps[0, 0]))
        assert abs((angle - 45 * DIRECTIONS.index(drawn.direction) + 180) % 360 - 180) <= 7
        length = np.linalg.norm(drawn.velocity) * (frames - 1) / resolution
        assert (0.48 <= length <= 0.56) if drawn.speed == "slow" else (0.75 <= length <= 0.85)
        low, high = bounds(drawn.kind, drawn.radius, resolution)
        assert ((path >= low - 1e-9) & (path <= high + 1e-9)).all()
        turns = (np.diff(np.sign(np.round(steps, 9)), axis=0) != 0).any()
        reflected += turns
    assert 0.2 * 500 < reflected < 0.97 * 500


def test_up_is_towards_the_top():
    i = next(i for i in range(100) if Shapes()[i][1]["direction"] == "up")
    media = Shapes()[i][0].float()
    rows = (media - media.amin((2, 3), keepdim=True)).mean((0, 3))
    height = (rows * torch.arange(32)).sum(1) / rows.sum(1)
    assert height[1] < height[0] - 0.3


def test_starts_fill_the_range_that_leaves_two_free_steps():
    starts = []
    for i in range(2000):
        drawn = draw_scene(np.random.default_rng(i), 8, 32)
        low, high = bounds(drawn.kind, drawn.radius, 32)
        low, high = low - 2 * drawn.velocity.clip(max=0), high - 2 * drawn.velocity.clip(min=0)
        starts.append((drawn.start - low) / (high - low))
    for share in np.stack(starts).T:
        assert abs(np.sort(share) - (np.arange(2000) + 0.5) / 2000).max() < 0.04


def test_colors_are_exact_on_a_dark_plain_background(films):
    backgrounds = set()
    for media, cond in films[:60]:
        assert (media == torch.tensor(COLORS[cond["color"]])[:, None, None, None]).all(0).any((1, 2)).all()
        background = media.flatten(1).median(1).values
        assert background.max() <= 40
        assert ((media == background[:, None, None, None]).all(0).float().mean() > 0.78).item()
        backgrounds.add(tuple(background.tolist()))
    assert len(backgrounds) > 50


def test_captions_say_all_four_in_varied_words():
    rng = np.random.default_rng(0)
    words = {"up": ("up", "upper"), "down": ("down", "lower"), "left": ("left",), "right": ("right",)}
    speeds = {"slow": ("slowly", "at low speed"), "fast": ("fast", "quickly", "at high speed")}
    for direction, speed in itertools.product(DIRECTIONS, SPEEDS):
        said = {caption(rng, kind="cross", color="cyan", direction=direction, speed=speed) for _ in range(40)}
        assert len(said) > 10
        for words_said in said:
            assert "cross" in words_said
            assert "cyan" in words_said
            assert any(word in words_said for word in speeds[speed])
            for part in direction.split("-"):
                assert any(word in words_said for word in words[part])


def test_index_out_of_range():
    with pytest.raises(IndexError):
        Shapes(size=10)[10]
    assert len(Shapes(size=10)) == len(list(Shapes(size=10))) == 10


@pytest.mark.parametrize("wrong", [{"size": 0}, {"seed": -1}, {"frames": 3}, {"resolution": 8}])
def test_impossible_settings_are_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be a whole number of at least"):
        Shapes(**wrong)
