import pytest
import torch

from mmdiff.testing import check_modality
from mmdiff_video.modality import Video
from mmdiff_video.shapes import Shapes

SIZE = {"frames": 8, "height": 32, "width": 32, "fps": 8.0}


@pytest.fixture(scope="module")
def clips():
    return [Shapes(size=24, seed=3)[i][0] for i in range(24)]


@pytest.fixture(scope="module")
def video(clips):
    return Video(**SIZE, **Video(**SIZE).fit(clips))


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_conformance(suffix, clips, video, tmp_path):
    fitted = Video(**SIZE, suffix=suffix, mean=video.mean.flatten().tolist(), std=video.std.flatten().tolist())
    check_modality(fitted, clips, tmp_path)


def test_pixels_come_back_exactly(video):
    media = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    assert torch.equal(video.decode(video.encode(media)), media)


def test_fit_standardizes_every_color(clips, video):
    x = torch.stack([video.encode(clip) for clip in clips]).movedim(1, 0).flatten(1)
    torch.testing.assert_close(x.mean(1), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(x.std(1), torch.ones(3), rtol=0, atol=1e-3)


def test_missing_frames_carry_no_loss(video, clips):
    short = clips[0][:, :3]
    x, mask = video.encode(short), video.mask(short)
    assert x.shape == mask.shape == video.shape
    assert mask[:, :3].all()
    assert not mask[:, 3:].any()
    assert (x[:, 3:] == 0).all()
    assert video.mask(clips[0]) is None


KNOWN = {
    None: [0, 1, 2, 3, 4, 5, 6, 7],
    "first": [0],
    "first:3": [0, 1, 2],
    "last": [7],
    "last:2": [6, 7],
    "both": [0, 7],
    "every:4": [0, 4],
    "every:3": [0, 3, 6],
}


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_words_for_frames(known, video, clips):
    x, kept = video.place(clips[0], known)
    assert kept.shape == (1, 8, 1, 1)
    assert kept.flatten().nonzero().flatten().tolist() == KNOWN[known]
    assert torch.equal(x, video.encode(clips[0]))


@pytest.mark.parametrize("known", [known for known in KNOWN if known])
def test_the_kept_frames_alone_go_where_they_belong(known, video, clips):
    places = KNOWN[known]
    x, kept = video.place(clips[0][:, places], known)
    assert kept.flatten().nonzero().flatten().tolist() == places
    assert torch.equal(x[:, places], video.encode(clips[0])[:, places])


def test_a_shorter_film_is_kept_whole(video, clips):
    x, kept = video.place(clips[0][:, :5])
    assert kept.flatten().tolist() == [True] * 5 + [False] * 3
    assert torch.equal(x[:, :5], video.encode(clips[0])[:, :5])


def test_rectangles(video, clips):
    kept = video.place(clips[0], "rows:4:12 and columns::8")[1]
    assert kept.shape == (1, 8, 32, 32)
    rows, columns = kept[0, 3].nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 11, 0, 7)
    assert kept.sum() == 8 * 8 * 8
    both = video.place(clips[0], "frames:2:4 or not rows:4:12")[1]
    assert both[0, 2].all()
    assert both[0, 5, 0].all()
    assert not both[0, 5, 4:12].any()


def test_low_resolution(video, clips):
    x = video.encode(torch.stack(list(clips[:2])))
    seen = video.operator("coarse:4", clips[0])(x)
    assert seen.shape == (2, 3, 8, 8, 8)
    torch.testing.assert_close(seen[1, 2, 3, 4, 5], x[1, 2, 3, 16:20, 20:24].mean())
    with pytest.raises(ValueError, match="a size that divides 32 and 32 pixels"):
        video.operator("coarse:5", clips[0])
    masked = video.operator("every:2", clips[0])(x)
    assert torch.equal(masked[:, :, ::2], x[:, :, ::2])
    assert not masked[:, :, 1::2].any()


@pytest.mark.parametrize("known", ["middle", "first:0", "first:9", "both:2", "every:", "last:-1"])
def test_unknown_words(known, video, clips):
    with pytest.raises(ValueError, match=r"names no part; parts are first, first:K.*, columns:FROM:TO"):
        video.place(clips[0], known)


def test_frames_that_fit_no_word(video, clips):
    with pytest.raises(ValueError, match=r"known=both keeps 2 of 8 frames, but 3 are given: give 8 or 2"):
        video.place(clips[0][:, :3], "both")


def test_preview_is_a_contact_sheet(video, clips):
    assert video.preview(clips[0]).shape == (3, 32, 8 * 32)
    assert torch.equal(video.preview(clips[0])[:, :, :32], clips[0][:, 0])
    long = torch.cat([clips[0]] * 5, 1)
    assert video.preview(long).shape == (3, 32, 16 * 32)


def test_random_clips_come_from_everywhere(tmp_path):
    """A film that grows brighter: the brightness of a clip tells its place."""
    video = Video(**SIZE)
    film = torch.arange(0, 240, 3, dtype=torch.uint8)[None, :, None, None].expand(3, 80, 32, 32)
    video.write(film, tmp_path / "film.mp4")
    generator = torch.Generator().manual_seed(0)
    starts = torch.stack([video.read(tmp_path / "film.mp4", generator).float().mean() for _ in range(40)])
    assert starts.min() < 40
    assert starts.max() > 200
    first = video.read(tmp_path / "film.mp4")
    assert first.float().mean() < 20
    assert first.shape == video.shape


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"frames": 0}, r"modality\.frames must be a whole number of at least 1, got 0"),
        ({"fps": 0.0}, r"modality\.fps must be positive, got 0"),
        ({"suffix": ".avi"}, r"modality\.suffix must be \.mp4 or \.gif, got \.avi"),
        ({"mean": [0.0]}, r"modality\.mean has 1 values for 3 colors"),
        ({"std": [1.0, 0.0, 1.0]}, r"modality\.std must be positive, got 0"),
    ],
)
def test_mistakes(options, named):
    with pytest.raises(ValueError, match=named):
        Video(**options)
