"""The judge is right where the truth is known: on things made by trimesh, on the data set, and on damaged things."""

import math

import numpy as np
import pytest
import torch
import trimesh

from mmdiff_pointcloud.furniture import Furniture, Part, sample
from mmdiff_pointcloud.judge import (
    FurnitureAccuracy,
    count_legs,
    densest_level,
    extent,
    judge,
    surrounds,
    without_strays,
)

ASKED = ("kind", "legs", "back", "height", "width")


def collate(size: int, seed: int, points: int = 1024) -> tuple[torch.Tensor, dict[str, list]]:
    clouds, conds = zip(*Furniture(size=size, seed=seed, points=points), strict=True)
    return torch.stack(clouds), {key: [cond[key] for cond in conds] for key in ASKED}


def score(clouds: torch.Tensor, cond: dict[str, list]) -> dict[str, float]:
    metric = FurnitureAccuracy()
    metric.update(clouds, real=False, cond=cond)
    return {name: share.item() for name, share in metric.compute().items()}


def spoiled(clouds: torch.Tensor, noise: float, strays: float) -> torch.Tensor:
    """Clouds with normal errors of ``noise`` meters, and a share of points anywhere in a box that is a bit larger."""
    low, high = clouds.amin(1, keepdim=True) - 0.1, clouds.amax(1, keepdim=True) + 0.1
    anywhere = low + (high - low) * torch.rand(clouds.shape)
    return torch.where(torch.rand(*clouds.shape[:2], 1) < strays, anywhere, clouds + noise * torch.randn(clouds.shape))


def drawn(parts: list[Part], seed: int, points: int = 1024) -> np.ndarray:
    return sample(parts, points, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def held_out():
    return collate(300, seed=1)


@pytest.mark.parametrize("points", [512, 1024, 4096])
def test_clean_things(points):
    shares = score(*collate(300, seed=1, points=points))
    assert shares["kind"] >= 0.99
    assert shares["legs"] >= 0.98
    assert shares["back"] >= 0.99
    assert shares["height"] == shares["width"] == 1
    assert shares["all"] >= 0.98


@pytest.mark.parametrize(("points", "noise", "strays"), [(512, 0.01, 0.01), (1024, 0.01, 0.01), (8192, 0.01, 0.01)])
def test_noisy_things_with_strays(points, noise, strays):
    clouds, cond = collate(150, seed=2, points=points)
    shares = score(spoiled(clouds, noise, strays), cond)
    assert shares["kind"] >= 0.95
    assert shares["legs"] >= 0.95
    assert min(shares["back"], shares["height"], shares["width"]) >= 0.9


def test_shuffled_conditions_are_met_by_chance(held_out):
    clouds, cond = held_out
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1)).tolist()
    shares = score(clouds, {name: [values[i] for i in order] for name, values in cond.items()})
    assert abs(shares["kind"] - 0.2) < 0.07
    assert shares["legs"] < 0.2
    assert shares["all"] < 0.05


@pytest.mark.parametrize(("name", "chance"), [("legs", 1 / 3), ("back", 0.5)])
def test_legs_and_backs_shuffled_among_the_things_that_have_them(held_out, name, chance):
    clouds, cond = held_out
    have = [i for i, value in enumerate(cond[name]) if value is not None]
    order = torch.randperm(len(have), generator=torch.Generator().manual_seed(2)).tolist()
    share = score(clouds[have], {name: [cond[name][have[i]] for i in order]})[name]
    assert abs(share - chance) < 3.3 * math.sqrt(chance * (1 - chance) / len(have))


def test_a_missing_leg_is_noticed():
    furniture, seen = Furniture(size=120, seed=3), 0
    for i in range(len(furniture)):
        parts = furniture.parts(i)
        legs = [part for part in parts if part.name.startswith("leg")]
        if legs:
            seen += 1
            kept = [part for part in parts if part is not legs[i % len(legs)]]
            assert judge(drawn(parts, i)).legs == len(legs)
            assert judge(drawn(kept, i)).legs == len(legs) - 1
    assert seen > 30


def test_a_missing_back_a_sawn_leg_and_a_missing_board_are_noticed():
    furniture, seen = Furniture(size=100, seed=4), set()
    for i in range(len(furniture)):
        parts = furniture.parts(i)
        names = [part.name for part in parts]
        if "back" in names or "rail" in names:
            seat = [part for part in parts if part.name.split()[0] in ("seat", "leg")]
            assert judge(drawn(seat, i)).back == "no"
        if "leg 0" in names:
            cloud, leg = drawn(parts, i, 2048), parts[names.index("leg 0")].patches
            middle = leg[:, :3].mean(0)
            near = (np.abs(cloud - middle)[:, [0, 2]].max(1) < 0.08) & (cloud[:, 1] < 0.5 * cloud[:, 1].max())
            short = len([name for name in names if name.startswith("leg")]) - 1
            if parts[0].name == "top":
                assert judge(cloud[~near]).legs in (0, short)
        if "board 0" in names:
            few = [part for part in parts if not part.name.startswith("board") or part.name in ("board 0", "board 1")]
            assert judge(drawn(few, i)).kind is None
        seen |= set(names)
    assert {"back", "rail", "leg 0", "board 0"} <= seen


def mesh_of(*boxes: tuple[tuple, tuple]) -> trimesh.Trimesh:
    """Boxes of a size (x, y, z) about a center."""
    return trimesh.util.concatenate(
        [trimesh.creation.box(size, trimesh.transformations.translation_matrix(center)) for size, center in boxes]
    )


def upright(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh with what was z turned to y."""
    return mesh.apply_transform(trimesh.transformations.rotation_matrix(-math.pi / 2, [1, 0, 0]))


def legs_at(places: list[tuple[float, float]], height: float, thick: float) -> list[tuple[tuple, tuple]]:
    return [((thick, height, thick), (x, height / 2, z)) for x, z in places]


CORNERS = [(-1, -1), (1, -1), (-1, 1), (1, 1)]
MADE = {
    "table": (
        lambda: mesh_of(
            ((1.2, 0.04, 0.8), (0, 0.72, 0)), *legs_at([(0.5 * x, 0.3 * z) for x, z in CORNERS], 0.7, 0.06)
        ),
        ("table", 4, None, 0.74, 1.2),
    ),
    "chair": (
        lambda: mesh_of(
            ((0.45, 0.04, 0.45), (0, 0.44, 0)),
            ((0.45, 0.4, 0.03), (0, 0.66, -0.21)),
            *legs_at([(0.19 * x, 0.19 * z) for x, z in [*CORNERS, (0, 0)]], 0.42, 0.04),
        ),
        ("chair", 5, "yes", 0.86, 0.45),
    ),
    "stool": (
        lambda: mesh_of(
            ((0.45, 0.04, 0.45), (0, 0.64, 0)), *legs_at([(-0.18, -0.18), (0.18, -0.18), (0, 0.18)], 0.62, 0.04)
        ),
        ("chair", 3, "no", 0.66, 0.45),
    ),
    "shelf": (
        lambda: mesh_of(
            *[((0.02, 1.5, 0.3), (x, 0.75, 0)) for x in (-0.49, 0.49)],
            *[((0.96, 0.02, 0.3), (0, y, 0)) for y in (0.01, 0.5, 1.0, 1.49)],
        ),
        ("shelf", 0, None, 1.5, 1.0),
    ),
    "vase": (
        lambda: upright(trimesh.creation.revolve([(0, 0), (0.1, 0), (0.2, 0.3), (0.1, 0.6), (0.15, 0.8)])),
        ("vase", 0, None, 0.8, 0.4),
    ),
    "lamp": (
        lambda: upright(
            trimesh.creation.revolve([(0, 0), (0.15, 0), (0.15, 0.02), (0.012, 0.02), (0.012, 1.1)])
            + trimesh.creation.revolve([(0.2, 1.0), (0.15, 1.3)])
        ),
        ("lamp", 0, None, 1.3, 0.4),
    ),
}


@pytest.mark.parametrize("points", [512, 2048])
@pytest.mark.parametrize("name", MADE)
def test_things_made_by_trimesh(name, points):
    make, (kind, legs, back, height, width) = MADE[name]
    cloud = trimesh.sample.sample_surface(make(), points, seed=0)[0]
    found = judge(cloud + np.array([3.0, -1.0, 0.5]))
    assert (found.kind, found.legs, found.back) == (kind, legs, back)
    assert found.height == pytest.approx(height, rel=0.03)
    assert found.width == pytest.approx(width, rel=0.08)


@pytest.mark.parametrize("name", MADE)
def test_upside_down_on_the_side_or_in_thick_noise_nothing_is_what_it_was(name):
    make, (kind, *_) = MADE[name]
    cloud = trimesh.sample.sample_surface(make(), 1024, seed=0)[0]
    assert judge(cloud + np.random.default_rng(0).normal(scale=0.1, size=cloud.shape)).kind is None
    assert judge(cloud[:, [1, 0, 2]]).kind != kind
    if name not in ("shelf", "vase"):
        assert judge(cloud * [1, -1, 1]).kind is None


def test_half_a_shade_or_a_back_on_a_table_is_noticed():
    lamp = trimesh.sample.sample_surface(MADE["lamp"][0](), 1024, seed=0)[0]
    assert judge(lamp[(lamp[:, 1] < 0.95) | (lamp[:, 0] < 0.02)]).kind is None
    bench = trimesh.util.concatenate([MADE["table"][0](), mesh_of(((1.2, 0.4, 0.03), (0, 0.94, -0.38)))])
    assert judge(trimesh.sample.sample_surface(bench, 1024, seed=0)[0]).kind is None


GENERATOR = np.random.default_rng(0)
NOTHING = {
    "gaussian": GENERATOR.normal(size=(1024, 3)) * 0.3,
    "long gaussian": GENERATOR.normal(size=(1024, 3)) * [0.15, 0.5, 0.15],
    "full box": GENERATOR.uniform(-0.5, 0.5, (1024, 3)),
    "full cylinder": GENERATOR.normal(size=(1024, 3)) * [0.01, 0.3, 0.01],
    "floor": GENERATOR.uniform(size=(1024, 3)) * [1, 0.001, 1],
    "line": np.linspace(0, 1, 1024)[:, None] * [0.0, 1.0, 0.0],
    "one place": np.ones((1024, 3)),
    "huge": GENERATOR.normal(size=(1024, 3)) * 1e30,
    "nan": np.full((1024, 3), math.nan),
    "few": GENERATOR.normal(size=(3, 3)),
    "far apart": np.repeat(GENERATOR.normal(size=(4, 3)) * 1e6, 256, 0) + GENERATOR.normal(size=(1024, 3)),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_is_no_furniture_is_of_no_kind(name):
    found = judge(NOTHING[name])
    assert (found.kind, found.legs, found.back) == (None, 0, None)


def test_strays_far_away_cost_nothing(held_out):
    clouds = held_out[0][:40].clone()
    clouds[:, :2] = torch.tensor([[50.0, 1e7, -3.0], [math.inf, 0.0, math.nan]])
    assert [judge(cloud.numpy()).kind for cloud in clouds] == held_out[1]["kind"][:40]


def test_neighbors_far_away_cost_nothing():
    clouds, cond = collate(20, seed=1, points=1536)
    clouds[:, :4] = torch.tensor([1e4, 0.2, 1e4])
    assert [judge(cloud.numpy()).legs for cloud in clouds] == [legs or 0 for legs in cond["legs"]]


def test_the_order_of_the_points_does_not_matter(held_out):
    order = torch.randperm(1024)
    for cloud in held_out[0][:20]:
        assert judge(cloud.numpy()) == judge(cloud[order].numpy())


@pytest.mark.parametrize(("count", "radius"), [(2, 0.2), (3, 0.15), (6, 0.16), (8, 0.3)])
def test_columns_on_a_circle(count, radius):
    angle = 2 * np.pi * np.arange(count) / count
    x, z = radius * np.cos(angle).repeat(100), radius * np.sin(angle).repeat(100)
    rng = np.random.default_rng(0)
    columns = np.stack([x, rng.uniform(0, 0.4, len(x)), z], 1) + rng.normal(scale=0.01, size=(len(x), 3))
    assert count_legs(columns, 0.45, 2 * radius) == count
    walls = np.stack([np.full(400, 0.3), rng.uniform(0, 0.4, 400), rng.uniform(-1, 1, 400)], 1)
    assert count_legs(np.concatenate([columns, walls]), 0.45, 2 * radius) == 0


def test_levels_extents_directions_and_strays():
    rng = np.random.default_rng(0)
    assert densest_level(np.concatenate([rng.uniform(0, 2, 300), rng.normal(0.7, 0.01, 200)])) == pytest.approx(
        0.7, abs=0.01
    )
    low, high = extent(rng.uniform(size=(10000, 3)) * [1, 2, 3])
    np.testing.assert_allclose(low, [0.003, 0.006, 0.009], rtol=0.5)
    np.testing.assert_allclose(high, [0.997, 1.994, 2.991], rtol=0.005)
    ring = rng.normal(size=(500, 3))
    assert surrounds(ring)
    assert not surrounds(ring[ring[:, 0] > -0.5])
    square = rng.uniform(size=(1000, 3)) * [1, 0, 1]
    mixed = np.concatenate([square, [[0.5, 0.5, 0.5], [2, 0, 2]]])
    kept = without_strays(mixed)
    assert len(kept) > 990
    assert kept[:, 1].max() == 0


def test_what_is_not_asked_is_not_counted(held_out):
    clouds, cond = held_out
    shares = score(clouds[:10], {"kind": cond["kind"][:10]})
    assert shares["kind"] == shares["all"] == 1
    assert all(math.isnan(shares[name]) for name in ASKED[1:])
    shares = score(clouds[:2], {"kind": [None, "sofa"], "width": [None, None]})
    assert shares["kind"] == shares["all"] == 0
    metric = FurnitureAccuracy()
    metric.update(clouds[:2], real=True, cond={"kind": ["lamp", "vase"]})
    assert all(math.isnan(share) for share in metric.compute().values())


@pytest.mark.parametrize(("factor", "right"), [(0.88, 0), (0.92, 1), (1.08, 1), (1.12, 0)])
def test_sizes_may_be_off_by_a_tenth(factor, right):
    cloud = torch.from_numpy(trimesh.sample.sample_surface(MADE["shelf"][0](), 2048, seed=0)[0]).float()
    asked = {"height": [1.5 / factor], "width": [1.0 / factor]}
    shares = score(cloud[None], asked)
    assert shares["height"] == shares["width"] == shares["all"] == right
    metric = FurnitureAccuracy(tolerance=0.2)
    metric.update(cloud[None], real=False, cond=asked)
    assert metric.compute()["all"] == 1


def test_all_counts_things_that_are_right_in_everything(held_out):
    clouds, cond = held_out
    wrong = {name: list(values[:20]) for name, values in cond.items()}
    wrong["height"][0] = wrong["width"][0] = 9.0
    wrong["kind"][1] = "sofa"
    assert score(clouds[:20], wrong)["all"] == pytest.approx(18 / 20)


def test_conditions_may_be_words(held_out):
    clouds, cond = held_out
    words = {name: [None if value is None else str(value) for value in values[:20]] for name, values in cond.items()}
    assert score(clouds[:20], words)["all"] == 1


def test_batches_add_up_and_real_things_do_not_count(held_out):
    clouds, cond = held_out
    metric = FurnitureAccuracy()
    for i in (0, 1):
        part = {name: values[i:30:2] for name, values in cond.items()}
        metric.update(clouds[i:30:2], real=False, cond=part)
        metric.update(torch.zeros(2, 1024, 3), real=True, cond={"kind": ["lamp", "vase"]})
    whole = score(clouds[:30], {name: values[:30] for name, values in cond.items()})
    assert {name: share.item() for name, share in metric.compute().items()} == pytest.approx(whole)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan])
def test_impossible_tolerance(tolerance):
    with pytest.raises(ValueError, match="tolerance must be positive, got"):
        FurnitureAccuracy(tolerance)
