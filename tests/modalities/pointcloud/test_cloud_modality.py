import pytest
import torch
import trimesh

from mmdiff import DataError
from mmdiff.schedules import LogNormal
from mmdiff.testing import check_modality
from mmdiff_pointcloud import media as files
from mmdiff_pointcloud.furniture import Furniture
from mmdiff_pointcloud.levels import Sides
from mmdiff_pointcloud.modality import HALVES, PointCloud


@pytest.fixture(scope="module")
def clouds():
    return [Furniture(size=24, seed=3, points=512)[i][0] for i in range(24)]


@pytest.fixture(scope="module")
def fitted(clouds):
    plain = PointCloud(points=512, normalize="none")
    return PointCloud(points=512, normalize="none", **plain.fit(clouds))


def test_conformance(clouds, fitted, tmp_path):
    check_modality(fitted, clouds, tmp_path)


@pytest.fixture
def ball(tmp_path):
    """A ball of radius 2 around (10, 0, -3), as a mesh with colors."""
    mesh = trimesh.creation.icosphere(3, 2.0)
    mesh.apply_translation([10.0, 0.0, -3.0])
    mesh.visual.vertex_colors = [255, 0, 51, 255]
    mesh.export(tmp_path / "ball.ply")
    return tmp_path / "ball.ply"


def test_normals_and_colors(ball, tmp_path):
    shape = PointCloud(points=400, normals=True, colors=True)
    media = shape.read(ball)
    assert media.shape == (400, 9)
    assert shape.shape == (9, 400)
    points, normals, colors = media.split(3, 1)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(400), atol=0.02, rtol=0)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(400))
    assert (points * normals).sum(1).min() > 0.97
    torch.testing.assert_close(colors, torch.tensor([1.0, 0.0, 0.2]).expand(400, 3))
    check_modality(shape, [media, media.flip(0)], tmp_path)
    back = shape.decode(shape.encode(media))
    torch.testing.assert_close(back, media)
    wild = shape.decode(10 * torch.randn(2, 9, 400))
    torch.testing.assert_close(wild[..., 3:6].norm(dim=-1), torch.ones(2, 400))
    assert wild[..., 6:].min() >= 0
    assert wild[..., 6:].max() <= 1


def test_what_a_file_does_not_have(tmp_path):
    files.write(files.Cloud(torch.randn(40, 3)), tmp_path / "bare.xyz")
    for name in ("normals", "colors"):
        with pytest.raises(DataError, match=rf"bare\.xyz: has no {name}; leave them out with modality\.{name}=false"):
            PointCloud(points=32, **{name: True}).read(tmp_path / "bare.xyz")


def test_normalization_can_be_undone(ball):
    shape = PointCloud(points=300)
    media = shape.read(ball)
    assert media.abs().max() <= 1
    there = shape.restore(media, ball)
    torch.testing.assert_close(there, files.read(ball, 300).points, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        (there - torch.tensor([10.0, 0.0, -3.0])).norm(dim=1), torch.full((300,), 2.0), atol=0.03, rtol=0
    )
    plain = PointCloud(points=300, normalize="none")
    assert torch.equal(plain.restore(media, ball), media)
    torch.testing.assert_close(plain.read(ball), files.read(ball, 300).points)


def test_other_points_each_time(ball):
    shape = PointCloud(points=100)
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(shape.read(ball, generator), shape.read(ball, generator))
    assert torch.equal(shape.read(ball), shape.read(ball))


def test_one_scale_keeps_angles(clouds, fitted):
    x = torch.cat([fitted.encode(cloud) for cloud in clouds], 1)
    torch.testing.assert_close(x.mean(1), torch.zeros(3), rtol=0, atol=1e-3)
    assert x.square().mean().sqrt().item() == pytest.approx(1, abs=1e-3)
    ratio = x.std(1) / torch.cat(clouds).std(0)
    torch.testing.assert_close(ratio, ratio[:1].expand(3))


def test_missing_points_carry_no_loss(clouds, fitted):
    part = clouds[0][:200]
    mask = fitted.mask(part)
    assert mask.shape == fitted.encode(part).shape == fitted.shape
    assert mask[:, :200].all()
    assert not mask[:, 200:].any()
    assert fitted.mask(clouds[0]) is None
    x, kept = fitted.place(part)
    assert kept.shape == (1, 512)
    assert torch.equal(kept[0], torch.arange(512) < 200)
    torch.testing.assert_close(x[:, :200], fitted.encode(clouds[0])[:, :200])


@pytest.mark.parametrize("half", HALVES)
def test_halves(half, clouds, fitted):
    x, kept = fitted.place(clouds[0], half)
    axis, sign = HALVES[half]
    assert kept.sum() == 256
    inside, outside = sign * x[axis, kept[0]], sign * x[axis, ~kept[0]]
    assert inside.max() <= outside.min()
    points = fitted.decode(x)
    torch.testing.assert_close(points.sort(0).values, clouds[0].sort(0).values)


def test_a_number_of_points_and_unknown_words(clouds, fitted):
    x, kept = fitted.place(clouds[0], "100")
    assert torch.equal(kept[0], torch.arange(512) < 100)
    assert torch.equal(x, fitted.encode(clouds[0]))
    for word in ("top", "0", "513", "-1"):
        with pytest.raises(
            ValueError, match=rf"'{word}' names no part; parts are left, .*a number up to 512, x:FROM:TO"
        ):
            fitted.place(clouds[0], word)


def test_boxes(clouds, fitted):
    points, middle = clouds[0][:, :3], clouds[0][:, :3].median(0).values.tolist()
    x, kept = fitted.place(clouds[0], f"x:{middle[0]}: and y::{middle[1]} and not z:0:0.1")
    inside = (points[:, 0] >= middle[0]) & (points[:, 1] < middle[1]) & ~((points[:, 2] >= 0) & (points[:, 2] < 0.1))
    assert torch.equal(kept[0], inside)
    assert 0 < inside.sum() < 512
    assert torch.equal(x, fitted.encode(clouds[0]))
    part = fitted.place(clouds[0][:200], "not x:0:")[1]
    assert torch.equal(part[0, :200], ~(points[:200, 0] >= 0))
    assert not part[0, 200:].any()


def test_new_points_keep_out_of_what_is_kept(clouds, fitted):
    """Mirrored at the nearest face that leads outside, by hand; points outside stay bitwise."""
    media = torch.tensor([[-0.5, 0.2, 0.1], [0.3, 0.1, 0.0], [-0.1, -0.4, 0.2], [0.5, 0.6, 0.7]])
    cloud = PointCloud(points=4, normalize="none", center=[0.1, 0.0, 0.0], scale=0.5)

    def confined(known):
        return cloud.decode(cloud.confine(media, known)(cloud.encode(media)))

    def moved(**places):
        there = media.clone()
        for name, (axis, coordinate) in places.items():
            there[int(name[1:]), axis] = coordinate
        return there

    torch.testing.assert_close(confined("x::0"), moved(p0=(0, 0.5), p2=(0, 0.1)))
    torch.testing.assert_close(confined("not x::0"), moved(p1=(0, -0.3), p3=(0, -0.5)))
    torch.testing.assert_close(confined("x::0 and y:0:"), moved(p0=(1, -0.2)))
    torch.testing.assert_close(confined("x:-0.6: and x::-0.2"), moved(p0=(0, -0.7)))
    torch.testing.assert_close(confined("x::0 or y:0.5:"), moved(p0=(0, 0.5), p2=(0, 0.1), p3=(1, 0.4)))
    torch.testing.assert_close(confined("2"), media)
    x = fitted.encode(clouds[0])
    outside = clouds[0][:, 1] >= 0.2
    assert torch.equal(fitted.confine(clouds[0], "y::0.2")(x)[:, outside], x[:, outside])


@pytest.mark.parametrize("half", HALVES)
def test_new_points_keep_out_of_a_half(half, clouds, fitted):
    x, kept = fitted.place(clouds[0], half)
    media = fitted.decode(x)
    axis, sign = HALVES[half]
    confined = fitted.confine(media, half)
    new = confined(torch.randn(3, 512))
    assert (sign * new[axis] >= (sign * x[axis, kept[0]]).max() - 1e-4).all()
    torch.testing.assert_close(confined(x)[:, ~kept[0]], x[:, ~kept[0]])


def test_a_surface_and_a_turntable_beside_the_cloud(clouds, tmp_path):
    shape = PointCloud(points=512, normalize="none", mesh=True, turntable=True)
    shape.write(clouds[0], tmp_path / "thing.ply")
    mesh = trimesh.load(tmp_path / "thing.glb", force="mesh")
    assert mesh.is_watertight
    spread = torch.tensor(mesh.bounds) - torch.stack([clouds[0].amin(0), clouds[0].amax(0)])
    assert spread.abs().max() < 0.1
    assert (tmp_path / "thing.gif").read_bytes().startswith(b"GIF89a")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"points": 0}, r"modality\.points must be a whole number of at least 1, got 0"),
        ({"normalize": "box"}, r"modality\.normalize must be shape or none, got box"),
        ({"center": [0.0]}, r"modality\.center must have 3 coordinates, got 1"),
        ({"scale": 0.0}, r"modality\.scale must be positive, got 0"),
    ],
)
def test_mistakes(options, named):
    with pytest.raises(ValueError, match=named):
        PointCloud(**options)


# Levels of which a side is given


def test_a_side_is_given_in_a_share_of_the_batches():
    sigma = torch.ones(2)
    drawn = [Sides(given=0.4)(sigma, torch.randn(2, 3, 10), LogNormal()) for _ in range(400)]
    with_side = [levels for levels in drawn if levels.ndim == 3]
    assert len(with_side) / 400 == pytest.approx(0.4, abs=0.12)
    assert all(torch.equal(levels, sigma) for levels in drawn if levels.ndim == 1)
    assert all((levels == 0).any(2).all() for levels in with_side)


def test_the_given_side_is_behind_a_plane():
    x0 = torch.randn(600, 3, 50)
    sigma = LogNormal().draw(600).float()
    levels = Sides(given=1.0, least=0.2)(sigma, x0, LogNormal())
    assert levels.shape == (600, 1, 50)
    kept = levels[:, 0] == 0
    assert ((levels[:, 0] == sigma[:, None]) | kept).all()
    share = kept.float().mean(1)
    assert share.min() >= 0.18
    assert share.max() <= 0.82
    # a plane parts the given from the others: a linear rule learned from the labels makes no mistake
    for points, given in zip(x0[:5], kept[:5], strict=True):
        gap = points[:, given].mean(1) - points[:, ~given].mean(1)
        side = gap @ points
        assert ((side > side.median()) == given).float().mean() > 0.6


@pytest.mark.parametrize("options", [{"given": 1.5}, {"given": -0.1}, {"least": 0.0}, {"least": 0.7}])
def test_mistakes_in_levels(options):
    with pytest.raises(ValueError, match=r"levels\."):
        Sides(**options)
