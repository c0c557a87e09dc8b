"""Pictures show the cloud from where they say, the near before the far."""

import pytest
import torch
from PIL import Image

from mmdiff_pointcloud.pictures import VIEWS, multiview, render, turntable

RED, GREEN, BLUE = torch.tensor([[230, 20, 20], [20, 230, 20], [20, 20, 230]], dtype=torch.uint8)


def ball(center: tuple[float, float, float], n: int = 200, radius: float = 0.25) -> torch.Tensor:
    return torch.tensor(center) + radius * torch.nn.functional.normalize(torch.randn(n, 3), dim=1)


def two_balls(axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A red ball at +1 and a blue one at -1 along an axis."""
    center = [0.0, 0.0, 0.0]
    center[axis] = 1.0
    points = torch.cat([ball(tuple(center)), ball(tuple(-c for c in center))])
    return points, torch.cat([RED.expand(200, 3), BLUE.expand(200, 3)])


def where(picture: torch.Tensor, color: torch.Tensor) -> torch.Tensor:
    """Rows and columns of the pixels whose strongest channel is that of a color, clearly."""
    strong = color.argmax()
    others = picture[[i for i in range(3) if i != strong]].amax(0).float()
    return (picture[strong].float() > 1.6 * others).nonzero().float()


def ink(picture: torch.Tensor) -> torch.Tensor:
    """Pixels with color in them: of the cloud rather than of ground or shadow."""
    return picture.float().std(0) > 8


@pytest.mark.parametrize("n", [1, 2, 50, 3000])
@pytest.mark.parametrize("size", [16, 65, 160])
def test_a_picture_is_square_and_shows_something(n, size):
    picture = render(torch.randn(n, 3), size=size)
    assert picture.shape == (3, size, size)
    assert picture.dtype == torch.uint8
    assert ink(picture).any()
    assert (picture[:, 0, 0] > 230).all(), "the ground is light"


@pytest.mark.parametrize(
    ("axis", "azimuth", "elevation", "direction"),
    [
        (0, 0.0, 0.0, (0, 1)),
        (0, 180.0, 0.0, (0, -1)),
        (1, 0.0, 0.0, (-1, 0)),
        (1, 77.0, 0.0, (-1, 0)),
        (2, 90.0, 0.0, (0, -1)),
        (2, -90.0, 0.0, (0, 1)),
        (2, 0.0, 90.0, (1, 0)),
        (2, 0.0, -90.0, (-1, 0)),
    ],
)
def test_axes_point_where_they_should(axis, azimuth, elevation, direction):
    """(rows, columns) from the blue ball to the red one."""
    picture = render(*two_balls(axis), azimuth=azimuth, elevation=elevation)
    step = where(picture, RED).mean(0) - where(picture, BLUE).mean(0)
    expected = torch.tensor(direction)
    assert step @ expected.float() > 40
    assert abs(step[expected == 0].item()) < 8


@pytest.mark.parametrize(
    ("axis", "azimuth", "elevation"), [(0, 90.0, 0.0), (2, 0.0, 0.0), (2, 360.0, 0.0), (1, 20.0, 90.0)]
)
def test_the_near_hides_the_far(axis, azimuth, elevation):
    points, colors = two_balls(axis)
    points = torch.cat([points, ball((0.0, 0.0, 0.0), 4000, 0.24)])
    colors = torch.cat([colors, GREEN.expand(4000, 3)])
    near = render(points, colors, azimuth=azimuth, elevation=elevation)
    far = render(points, colors, azimuth=azimuth + 180, elevation=-elevation)
    assert len(where(near, RED)) > 100
    assert len(where(near, BLUE)) < 10 < len(where(far, BLUE))
    assert len(where(far, RED)) < 10


def test_the_order_of_points_does_not_matter():
    points, order = torch.randn(500, 3), torch.randperm(500)
    colors = torch.randint(0, 256, (500, 3), dtype=torch.uint8)
    assert torch.equal(render(points[order], colors[order]), render(points, colors))


def test_place_and_scale_do_not_matter():
    points = torch.randn(300, 3)
    moved = render(1000 * points + torch.tensor([300.0, -4000.0, 7.0]))
    assert (moved.float() - render(points).float()).abs().mean() < 0.5


def test_strays_and_broken_points_do_not_spoil_the_picture():
    body = ball((0.0, 0.0, 0.0), 1000)
    expected = ink(render(body))
    strays = torch.cat([body, 5 * torch.randn(10, 3)])
    assert (ink(render(strays)) != expected).float().mean() < 0.04
    broken = body.clone()
    broken[::100] = torch.tensor([float("nan"), float("inf"), 0.0])
    kept = broken.isfinite().all(1)
    assert torch.equal(render(broken), render(body[kept]))
    assert torch.equal(render(broken, normals=torch.ones(1000, 3)), render(body[kept], normals=torch.ones(990, 3)))


@pytest.mark.parametrize("points", [torch.zeros(0, 3), torch.full((4, 3), float("nan"))], ids=["none", "nan"])
def test_nothing_is_an_empty_picture(points):
    picture = render(points)
    assert (picture == picture[:, :1, :1]).all()


def test_normals_tell_what_faces_the_light():
    """A wall seen from the front, once with normals to the light, once across; the sign does not matter."""
    wall = torch.cat([torch.rand(3000, 2), torch.zeros(3000, 1)], 1)
    gray = torch.full((3000, 3), 128, dtype=torch.uint8)

    def brightness(normal: tuple[float, float, float]) -> float:
        normals = torch.tensor(normal).expand(3000, 3)
        return render(wall, gray, azimuth=0.0, elevation=0.0, normals=normals)[:, 60:100, 60:100].float().mean().item()

    lit = brightness((-0.45, 0.75, 0.55))
    assert lit > brightness((0.75, 0.45, 0.0)) + 20
    assert brightness((0.45, -0.75, -0.55)) == pytest.approx(lit, abs=0.5)


def test_height_is_told_by_color():
    picture = render(ball((0.0, 0.0, 0.0), 8000), elevation=0.0).float()
    high, low = (picture[:, rows, 70:90].mean((1, 2)) for rows in (slice(10, 20), slice(140, 150)))
    assert high[0] > high[2] + 30, "high points are warm"
    assert low[2] > low[0] + 20, "low points are cold"


def test_colors_are_those_given():
    picture = render(ball((0.0, 0.0, 0.0), 3000), GREEN.expand(3000, 3))
    assert len(where(picture, GREEN)) > 2000
    assert len(where(picture, RED)) == len(where(picture, BLUE)) == 0


def test_multiview_is_three_views_side_by_side():
    points = torch.randn(200, 3)
    picture = multiview(points, size=48)
    assert picture.shape == (3, 48, 144)
    for i, (azimuth, elevation) in enumerate(VIEWS):
        expected = render(points, size=48, azimuth=azimuth, elevation=elevation)
        assert torch.equal(picture[..., 48 * i : 48 * (i + 1)], expected)


@pytest.mark.parametrize("frames", [1, 5])
def test_turntable_turns_for_ever(tmp_path, frames):
    points, colors = two_balls(0)
    turntable(points, tmp_path / "cloud.gif", frames, colors=colors, size=64, seconds=0.1 * frames)
    with Image.open(tmp_path / "cloud.gif") as gif:
        assert gif.size == (64, 64)
        assert getattr(gif, "n_frames", 1) == frames
        if frames == 1:
            return
        assert gif.info["loop"] == 0
        assert gif.info["duration"] == 100
        sides = []
        for frame in range(frames):
            gif.seek(frame)
            picture = (
                torch.tensor(list(gif.convert("RGB").tobytes()), dtype=torch.uint8).reshape(64, 64, 3).movedim(2, 0)
            )
            sides.append(where(picture, RED)[:, 1].mean().item())
        # At 0, 72, 144, 216 and 288 degrees the red ball is right, right and near, left and near, left and far, right
        # and far; the near is larger, so further from the middle.
        assert sides[0] > sides[1] > sides[4] > 32 > sides[3] > sides[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: turntable(p, "cloud.mp4"), r"\.gif.*cloud\.mp4"),
        (lambda p: turntable(p, "cloud.gif", 0), "frames.*at least 1, got 0"),
        (lambda p: render(p, size=8), "size.*at least 16, got 8"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(5, 3))


def test_the_cloud_is_left_as_it_is():
    points = torch.randn(50, 3, requires_grad=True)
    kept = points.detach().clone()
    render(points)
    assert torch.equal(points, kept)
