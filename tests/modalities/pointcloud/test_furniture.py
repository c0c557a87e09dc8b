"""The things are a function of seed and index, their points lie evenly on their surfaces and their labels are true."""

import math
import re

import numpy as np
import pytest
import torch
import trimesh
from scipy import stats

from mmdiff_pointcloud.furniture import KINDS, LEGS, Furniture, Part, area, bounds, box, cylinder, sample, turned

THINGS = 300


@pytest.fixture(scope="module")
def things():
    return list(Furniture(size=THINGS, seed=5))


@pytest.fixture(scope="module")
def conds():
    """Of more things, so that each kind is called by each word of size."""
    return [cond for _, cond in Furniture(size=4 * THINGS, seed=5, points=1)]


@pytest.fixture(scope="module")
def surfaces():
    furniture = Furniture(size=THINGS, seed=5)
    return [furniture.parts(i) for i in range(THINGS)]


def count(parts: list[Part], name: str) -> int:
    return sum(part.name.split()[0] == name for part in parts)


def test_a_thing_depends_on_seed_and_index_alone(things):
    again, longer, other = Furniture(size=THINGS, seed=5), Furniture(size=900, seed=5), Furniture(size=THINGS, seed=6)
    for i in (0, 7, THINGS - 1):
        cloud, cond = things[i]
        assert torch.equal(cloud, again[i][0])
        assert torch.equal(cloud, longer[i][0])
        assert cond == longer[i][1]
        assert not torch.equal(cloud, other[i][0])
    assert torch.equal(things[-1][0], again[-1][0])


@pytest.mark.parametrize("points", [1, 512, 4096])
def test_the_number_of_points_changes_no_shape(things, points):
    furniture = Furniture(size=THINGS, seed=5, points=points)
    for i in range(20):
        cloud, cond = furniture[i]
        assert cloud.shape == (points, 3)
        assert cond == things[i][1]


def test_types(things):
    assert len({cloud.numpy().tobytes() for cloud, _ in things}) == THINGS
    for cloud, cond in things:
        assert cloud.dtype == torch.float32
        assert cloud.shape == (1024, 3)
        assert cloud.isfinite().all()
        assert type(cond["height"]) is type(cond["width"]) is float
        assert type(cond["legs"]) is (int if cond["kind"] in ("chair", "table") else type(None))
        assert cond["back"] in ({"yes", "no"} if cond["kind"] == "chair" else {None})


@pytest.mark.parametrize(("name", "values"), [("kind", KINDS), ("legs", LEGS), ("back", ("yes", "no"))])
def test_every_label_occurs_about_equally_often(things, name, values):
    found = [cond[name] for _, cond in things if cond[name] is not None]
    assert set(found) == set(values)
    assert stats.chisquare([found.count(value) for value in values]).pvalue > 1e-3


def test_labels_are_those_of_the_parts(things, surfaces):
    for (_, cond), parts in zip(things, surfaces, strict=True):
        assert count(parts, "leg") == (cond["legs"] or 0)
        assert (count(parts, "back") + count(parts, "rail") > 0) == (cond["back"] == "yes")


def test_things_stand_on_the_floor_centered_and_as_large_as_they_say(things, surfaces):
    for (cloud, cond), parts in zip(things, surfaces, strict=True):
        low, high = bounds(parts)
        np.testing.assert_allclose([low[0] + high[0], low[1], low[2] + high[2]], 0, atol=1e-12)
        np.testing.assert_allclose(high - low, [cond["width"], cond["height"], high[2] - low[2]])
        assert (cloud.numpy() >= low - 1e-6).all()
        assert (cloud.numpy() <= high + 1e-6).all()
        assert np.ptp(cloud.numpy(), axis=0) == pytest.approx(high - low, rel=0.1)
        assert (high - low)[:2].min() > 0.3
        assert (high - low).max() < 2


def test_legs_stand_under_what_they_carry(surfaces):
    for parts in surfaces:
        legs = [part for part in parts if part.name.startswith("leg")]
        if legs:
            (low, high), (top_low, top_high) = bounds(legs), bounds(parts[:1])
            assert high[1] == pytest.approx(top_low[1])
            assert (low[[0, 2]] >= top_low[[0, 2]]).all()
            assert (high[[0, 2]] <= top_high[[0, 2]]).all()
            feet = np.array([leg.patches[:, :3].mean(0)[[0, 2]] for leg in legs])
            apart = np.linalg.norm(feet[:, None] - feet, axis=2) + np.eye(len(legs))
            assert apart.min() > 0.12


def test_every_leg_can_be_seen(things, surfaces):
    share = [
        area(part.patches).sum() / sum(area(other.patches).sum() for other in parts)
        for parts in surfaces
        for part in parts
        if part.name.startswith("leg")
    ]
    assert 1024 * min(share) > 16


def test_a_chair_is_narrower_than_any_table(things):
    width = {kind: [cond["width"] for _, cond in things if cond["kind"] == kind] for kind in ("chair", "table")}
    assert max(width["chair"]) + 0.15 < min(width["table"])


def test_areas_are_those_of_trimesh():
    size, radius = (0.5, 0.7, 0.3), 0.2
    assert area(box("", (1, 2, 3), size).patches).sum() == pytest.approx(trimesh.creation.box(size).area)
    mesh = trimesh.creation.cylinder(radius, 0.7, sections=2000)
    assert area(cylinder("", (1, 2, 3), 0.7, radius).patches).sum() == pytest.approx(mesh.area, rel=1e-4)
    outline = [(0, 0), (0, 0.3), (0.2, 0.5), (0.6, 0.1), (0.6, 0)]
    mesh = trimesh.creation.revolve([(r, y) for y, r in outline], sections=2000)
    assert area(turned("", (0, 0, 0), outline).patches).sum() == pytest.approx(mesh.area, rel=1e-4)


def test_a_leaning_box_is_the_mesh_of_its_corners():
    leaning = box("", (0.1, 0.2, 0.3), (0.5, 0.7, 0.3), (0.1, -0.2))
    corners = [(x, y, z) for x in (-0.15, 0.35) for y in (0.2, 0.9) for z in (0.15, 0.45)]
    hull = trimesh.convex.convex_hull([(x + 0.1 * (y > 0.5), y, z - 0.2 * (y > 0.5)) for x, y, z in corners])
    assert area(leaning.patches).sum() == pytest.approx(hull.area)
    np.testing.assert_allclose(bounds([leaning]), hull.bounds)
    cloud = sample([leaning], 200, np.random.default_rng(0))
    outside = np.einsum("fx,nfx->nf", hull.face_normals, cloud[:, None] - hull.triangles[:, 0])
    np.testing.assert_allclose(outside.max(1), 0, atol=1e-6)


def test_points_lie_on_turned_surfaces():
    outline = [(0, 0), (0, 0.3), (0.2, 0.5), (0.6, 0.1)]
    x, y, z = sample([turned("", (1, 2, 3), outline)], 5000, np.random.default_rng(0)).T.astype(float)
    radius, wall = np.hypot(x - 1, z - 3), y > 2 + 1e-6
    np.testing.assert_allclose(radius[wall], np.interp(y[wall] - 2, *zip(*outline[1:], strict=True)), atol=1e-6)
    assert radius[~wall].max() <= 0.3 + 1e-6
    expected = 0.09 / (0.09 + 0.8 * math.hypot(0.2, 0.2) + 0.6 * math.hypot(0.4, 0.4))
    assert stats.binomtest(int((~wall).sum()), len(y), expected).pvalue > 1e-3


@pytest.mark.parametrize(
    ("start", "end", "height"), [(0.0, 0.4, 0.0), (0.3, 0.3, 0.5), (0.1, 0.5, 0.3), (0.5, 0.1, 0.2)]
)
def test_points_are_uniform_on_bands(start, end, height):
    x, y, z = sample([turned("", (0, 0, 0), [(0, start), (height, end)])], 5000, np.random.default_rng(1)).T
    around = (np.arctan2(z, x) / (2 * np.pi)) % 1
    assert stats.kstest(around, "uniform").pvalue > 1e-3
    along = y / height if start == end else (x**2 + z**2 - start**2) / (end**2 - start**2)
    assert stats.kstest(along, "uniform").pvalue > 1e-3
    assert abs(stats.spearmanr(along, around).statistic) < 0.05


def test_points_are_uniform_on_the_faces_of_a_leaning_box():
    leaning = box("", (0.25, 0, 0.15), (0.5, 0.7, 0.3), (0.1, -0.2))
    cloud = sample([leaning], 20000, np.random.default_rng(2)).astype(float)
    edges = np.array([[0.5, 0, 0], [0.1, 0.7, -0.2], [0, 0, 0.3]])
    inside = np.linalg.solve(edges.T, cloud.T).T
    faces, observed, expected = [(axis, end) for axis in range(3) for end in (0, 1)], [], []
    for axis, end in faces:
        others = [k for k in range(3) if k != axis]
        on_face = inside[np.abs(inside[:, axis] - end) < 1e-5][:, others]
        observed.append(len(on_face))
        expected.append(np.linalg.norm(np.cross(*edges[others])))
        quarters = np.histogram2d(*on_face.T, bins=4, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(quarters.ravel()).pvalue > 1e-3
    assert sum(observed) == pytest.approx(len(cloud), abs=10)
    assert stats.chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue > 1e-3


def test_parts_get_points_in_proportion_to_their_area(surfaces):
    parts = next(parts for parts in surfaces if count(parts, "leg") == 3 and count(parts, "back"))
    moved = [Part(part.name, part.patches + np.r_[10 * k, np.zeros(10)]) for k, part in enumerate(parts)]
    cloud = sample(moved, 20000, np.random.default_rng(3))
    share = np.array([area(part.patches).sum() for part in parts])
    observed = np.bincount(np.rint(cloud[:, 0] / 10).astype(int))
    assert stats.chisquare(observed, 20000 * share / share.sum()).pvalue > 1e-3


def test_captions_tell_the_truth(things):
    numbers = {"three": 3, "four": 4, "six": 6}
    nouns = {"shelf": "shelf|shelves|bookcase", "chair": "chair|seat|stool"}
    for _, cond in things:
        caption, kind = cond["text"], cond["kind"]
        assert re.search(nouns.get(kind, kind), caption)
        assert all(cond["legs"] == number for word, number in numbers.items() if word in caption)
        assert bool(re.search("stool|backless|without a back", caption)) == (cond["back"] == "no")
        for value, side in re.findall(r"(\d+) cm (high|wide)", caption):
            assert int(value) == round(100 * cond["height" if side == "high" else "width"])


@pytest.mark.parametrize(("words", "name"), [(("low", "tall"), "height"), (("narrow", "wide"), "width")])
@pytest.mark.parametrize("kind", KINDS)
def test_size_words_divide_the_things_of_a_kind(conds, kind, words, name):
    conds = [cond for cond in conds if cond["kind"] == kind]
    if kind == "chair":  # whether a stool is tall is another question than whether a chair is
        conds = [cond for cond in conds if cond["back"] == "no"]
    less, more = ([c[name] for c in conds if re.search(rf"(?<!cm )\b{word} ", c["text"])] for word in words)
    assert max(less) < min(more)


def test_captions_vary(things):
    captions = [cond["text"] for _, cond in things]
    assert len(set(captions)) > THINGS / 3
    for word in ("-legged", " legs", "cm high", "cm wide", "tall", "narrow", "stool", "bookcase"):
        assert any(word in caption for caption in captions)


def test_index_out_of_range():
    with pytest.raises(IndexError):
        Furniture(size=10)[10]
    assert len(Furniture(size=10)) == len(list(Furniture(size=10))) == 10


@pytest.mark.parametrize("wrong", [{"size": 0}, {"points": 0}, {"seed": -1}])
def test_impossible_settings_are_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be a whole number of at least"):
        Furniture(**wrong)
