"""Films and pictures made by other programs, read in clips and when something is wrong with them, and written ones."""

import contextlib
import os
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mmdiff import DataError
from mmdiff_video import media

FRAMES, RATE, HEIGHT, WIDTH = 120, 30, 48, 80
FFMPEG = "ffmpeg -nostdin -loglevel error -y -threads 1 "
RAW = FFMPEG.replace("-nostdin ", "") + f"-f rawvideo -pix_fmt rgb24 -s {WIDTH}x{HEIGHT} -r {RATE} -i - "
X264 = "-c:v libx264 -pix_fmt yuv420p -crf 16 -preset faster "
FILMS = {
    "gop250.mp4": X264 + "-g 250 -bf 3 -x264-params scenecut=0:b-pyramid=normal {}",
    "gop12.mp4": X264 + "-g 12 -x264-params scenecut=0 -movflags +faststart {}",
    "gop3.mp4": X264 + "-g 3 -bf 2 -b_strategy 0 {}",
    "intra.mov": X264 + "-g 1 {}",
    "open.mkv": X264 + "-g 10 -bf 3 -x264-params open-gop=1:scenecut=0 {}",
    "hevc.mp4": "-c:v libx265 -preset superfast -x265-params log-level=none:keyint=20:bframes=3 -pix_fmt yuv420p {}",
    "asp.m4v": "-c:v mpeg4 -q:v 2 -g 15 -bf 2 -f mp4 {}",
    "asp.avi": "-c:v mpeg4 -q:v 2 -g 15 -bf 2 {}",
    "mjpeg.avi": "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p {}",
    "vp8.webm": "-c:v libvpx -b:v 1M -g 30 -auto-alt-ref 1 -lag-in-frames 12 -cpu-used 5 {}",
    "vp9.webm": "-c:v libvpx-vp9 -crf 20 -g 30 -auto-alt-ref 1 -lag-in-frames 12 -cpu-used 8 {}",
    "palette.gif": "-vf split[a][b],[a]palettegen[p],[b][p]paletteuse=dither=none {}",
}


def film(frames: int = FRAMES) -> np.ndarray:
    """Pictures (t, h, w, 3) that show their own number: ten black or white blocks, the highest bit first."""
    bits = np.arange(frames)[:, None] >> np.arange(9, -1, -1) & 1
    blocks = bits.reshape(frames, 2, 5).repeat(HEIGHT // 2, 1).repeat(WIDTH // 5, 2)
    return (230 * blocks[..., None].repeat(3, -1) + 12).astype(np.uint8)


def numbers(clip: torch.Tensor) -> list[int]:
    """The numbers of pictures (3, t, h, w)."""
    blocks = clip.float().mean(0)
    blocks = torch.nn.functional.adaptive_avg_pool2d(blocks, (2, 5)).flatten(1) > 127
    return (blocks.long() << torch.arange(9, -1, -1)).sum(1).tolist()


def run(command: str, folder: Path, **options) -> bytes:
    return subprocess.run(command, shell=True, check=True, cwd=folder, stdout=subprocess.PIPE, **options).stdout


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """The folder of all films above."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg to make films")
    folder = tmp_path_factory.mktemp("films")
    for name, arguments in FILMS.items():
        run(RAW + arguments.format(name), folder, input=film().tobytes())
    return folder


def changed(path: Path, name: str, *, first: float = 0.0, last: float = 1.0, keep: float = 1.0) -> Path:
    """A copy with zeros between two shares of its bytes, and of only the first share ``keep``."""
    data = np.fromfile(path, np.uint8)
    if first:
        data[int(first * len(data)) : int(last * len(data))] = 0
    copy = path.with_name(f"{name}_{path.name}")
    data[: int(keep * len(data))].tofile(copy)
    return copy


def psnr(frames: torch.Tensor, reference: torch.Tensor) -> float:
    error = (frames.double() - reference.double()).square().mean()
    return float(10 * torch.log10(255**2 / error))


def smooth(frames: int, height: int, width: int) -> torch.Tensor:
    """A film (3, t, h, w) of soft moving colors."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(0.10 * x + 0.3 * t), torch.cos(0.08 * y + 0.2 * t), torch.sin(0.05 * (x + y) - 0.3 * t)]
    return (127.5 + 110 * torch.stack(waves)).round().byte()


@pytest.mark.parametrize("name", FILMS)
def test_every_frame_is_counted_without_a_header_that_tells(films, name):
    seconds, *rest = media.probe(films / name)
    assert rest == [FRAMES, HEIGHT, WIDTH]
    # Where 30 frames per second are rounded to milliseconds or hundredths.
    assert seconds == pytest.approx(FRAMES / RATE, abs=0.01 if name.endswith("gif") else 0.0015)


@pytest.mark.parametrize("fps", [30, 7.5, 60])
@pytest.mark.parametrize("name", FILMS)
def test_a_clip_holds_the_frames_shown_at_its_times(films, name, fps):
    for offset in (0.0, 0.5):  # at the very start of a frame, where rounding shows, and in its middle
        for number in [0, 1, *np.random.default_rng(0).integers(2, FRAMES, 4), FRAMES - 1]:
            start = (number + offset) / RATE
            expected = np.floor(number + offset + np.arange(9) * RATE / fps + 1e-6).astype(int)
            clip = media.read(films / name, frames=9, fps=fps, size=(24, 40), start=start)
            assert numbers(clip) == [shown for shown in expected if shown < FRAMES], f"{start=}"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_of_a_variable_rate_are_found_by_their_time_stamps(tmp_path, suffix):
    path = tmp_path / f"uneven{suffix}"
    stamps = np.random.default_rng(1).integers(5, 400, FRAMES).cumsum()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": "25", "preset": "faster"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for stamp, picture in zip(stamps.tolist(), film(), strict=True):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    since_first = (stamps - stamps[0]) / 1000
    seconds, count, *_ = media.probe(path)
    assert count == FRAMES
    assert seconds > since_first[-1]
    for start in np.random.default_rng(2).integers(0, 1000 * (since_first[-1] - 3), 20) / 1000 + 0.00025:
        times = start + np.arange(24) / 8  # A quarter of a millisecond after a whole one, as 125 ms are.
        clip = media.read(path, frames=24, fps=8, size=(HEIGHT, WIDTH), start=start)
        assert numbers(clip) == (np.searchsorted(since_first, times, side="right") - 1).tolist()


def test_pictures_of_a_gif_are_shown_as_long_as_they_say(tmp_path):
    pictures = [Image.fromarray(picture) for picture in film(5)]
    delays = [30, 250, 40, 480, 1000]
    pictures[0].save(tmp_path / "odd.gif", save_all=True, append_images=pictures[1:], duration=delays, loop=3)
    assert media.probe(tmp_path / "odd.gif")[:2] == (1.8, 5)
    for start in (0.005, 0.12):
        clip = media.read(tmp_path / "odd.gif", frames=50, fps=20, size=(HEIGHT, WIDTH), start=start)
        times = np.arange(start, 1.8, 1 / 20)
        assert numbers(clip) == np.searchsorted(np.cumsum(delays) / 1000, times + 0.005, side="right").tolist()


def test_a_film_cut_without_encoding_starts_where_it_is_shown(films):
    run(FFMPEG + "-ss 1.0 -i gop250.mp4 -c copy edited.mp4", films)
    assert media.probe(films / "edited.mp4").frames == FRAMES - RATE
    clip = media.read(films / "edited.mp4", frames=4, fps=10, size=(HEIGHT, WIDTH), start=0.5)
    assert numbers(clip) == [45, 48, 51, 54]


def test_guessed_time_stamps_do_not_shuffle_frames(films):
    run(RAW + X264 + "-g 30 -bf 3 guessed.avi", films, input=film().tobytes())
    for start in (0.0, 1.5):
        shown = numbers(media.read(films / "guessed.avi", frames=60, fps=30, size=(24, 40), start=start))
        assert shown == sorted(shown)
        assert np.abs(np.array(shown) - np.arange(60) - RATE * start).max() <= 2


def test_a_short_film_gives_what_it_has(films):
    clip = media.read(films / "gop12.mp4", frames=100, fps=8, size=(HEIGHT, WIDTH), start=3.01)
    assert clip.shape == (3, 8, HEIGHT, WIDTH)
    with pytest.raises(DataError, match=r"from 4 s on, of 4\.00 s"):
        media.read(films / "gop12.mp4", frames=1, fps=8, size=(HEIGHT, WIDTH), start=4.0)


@pytest.mark.parametrize(("rotation", "shape"), [(0, "16/11"), (90, "1"), (180, "1"), (270, "16/11")])
def test_phone_clips_are_upright_and_pixels_square_as_ffmpeg_shows_them(films, rotation, shape):
    name = f"turned{rotation}_{shape.replace('/', '_')}.mp4"
    source = f"-f lavfi -i testsrc2=s={WIDTH}x{HEIGHT}:r=5:d=1 -vf setsar={shape} "
    run(f"{FFMPEG}{source}{X264}flat.mp4 && {FFMPEG}-i flat.mp4 -c copy -metadata:s:v rotate={rotation} {name}", films)
    _, _, height, width = media.probe(films / name)
    across = WIDTH * Fraction(shape)
    assert (height, width) == ((round(across), HEIGHT) if rotation % 180 else (HEIGHT, round(across)))
    flags = "flags=bicubic+accurate_rnd+full_chroma_int"
    raw = run(f"{FFMPEG}-i {name} -vf scale={width}:{height}:{flags} -f rawvideo -pix_fmt rgb24 -", films)
    expected = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(5, height, width, 3).permute(3, 0, 1, 2)
    clip = media.read(films / name, frames=5, fps=5, size=(height, width))
    assert psnr(clip, expected) > 25
    assert psnr(clip, expected.rot90(2, (2, 3))) < 12


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photos_are_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(smooth(1, 40, 64)[:, 0].permute(1, 2, 0).numpy())
    picture.save(tmp_path / "photo.jpg", quality=98, exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "photo.jpg")))
    assert media.probe(tmp_path / "photo.jpg")[1:] == (1, *expected.shape[:2])
    clip = media.read(tmp_path / "photo.jpg", frames=3, fps=8, size=expected.shape[:2])
    assert clip.shape == (3, 1, *expected.shape[:2])
    assert psnr(clip[:, 0], torch.tensor(expected).permute(2, 0, 1)) > 38


@pytest.mark.parametrize("name", ["still.png", "still.jpg", "still.jpeg", "still.bmp", "still.webp", "100%d.jpg"])
def test_a_picture_is_a_film_of_one_frame(tmp_path, name):
    for other in ("1001.jpg", "1002.jpg"):  # which 100%d.jpg is not a pattern for
        Image.new("RGB", (20, 20)).save(tmp_path / other)
    expected = smooth(1, 33, 47)
    Image.fromarray(expected[:, 0].permute(1, 2, 0).numpy()).save(tmp_path / name, quality=95)
    assert media.probe(tmp_path / name)[1:] == (1, 33, 47)
    assert psnr(media.read(tmp_path / name, frames=16, fps=8, size=(33, 47)), expected) > 36


def test_pictures_are_averaged_over_areas_and_cut_at_the_center(tmp_path):
    picture = (torch.rand(3, 1, 64, 96) * 255).byte()
    media.write(picture, tmp_path / "noise.png", 1)
    areas = torch.nn.functional.interpolate(picture.float().transpose(0, 1), scale_factor=1 / 4, mode="area")
    for height, width in [(16, 24), (16, 16), (12, 24), (16, 5)]:
        top, left = (16 - height) // 2, (24 - width) // 2
        expected = areas[:, :, top : top + height, left : left + width].transpose(0, 1)
        clip = media.read(tmp_path / "noise.png", frames=1, fps=1, size=(height, width))
        torch.testing.assert_close(clip.float(), expected, rtol=0, atol=1.01)


def test_small_pictures_are_enlarged_smoothly(tmp_path):
    media.write(smooth(1, 24, 32), tmp_path / "small.png", 1)
    expected = torch.nn.functional.interpolate(smooth(1, 24, 32)[:, 0][None].float(), scale_factor=3, mode="bicubic")
    clip = media.read(tmp_path / "small.png", frames=1, fps=1, size=(72, 96))
    assert psnr(clip[:, 0], expected[0]) > 59  # 57.8 linearly


@pytest.mark.parametrize(
    "arguments",
    [
        "scale=out_color_matrix=bt601:out_range=tv,format=yuv420p",
        "scale=out_color_matrix=bt601:out_range=tv,format=yuv420p -colorspace smpte170m -color_range tv",
        "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p -colorspace bt709 -color_range tv",
        "scale=out_color_matrix=bt709:out_range=pc,format=yuv420p -colorspace bt709 -color_range pc",
        "scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10 -colorspace bt2020nc -color_range tv",
        "scale=out_color_matrix=bt601:out_range=tv,format=yuv444p",
    ],
)
def test_colors_are_those_that_the_file_declares(films, arguments):
    run(f"{FFMPEG}-f lavfi -i color=c=0xc83c1e:s=64x64:r=5:d=1 -vf {arguments} -c:v libx264 -crf 1 color.mp4", films)
    for side in (64, 24, 96):
        color = media.read(films / "color.mp4", frames=1, fps=1, size=(side, side)).float().mean((1, 2, 3))
        torch.testing.assert_close(color, torch.tensor([200.0, 60, 30]), rtol=0, atol=5)


def broken_files(folder: Path) -> list[Path]:
    tone = "-f lavfi -i sine=duration=1 "
    run(FFMPEG + tone + "-c:a aac sound.mp4", folder)
    Image.new("RGB", (32, 32)).save(folder / "cover.png")
    run(FFMPEG + tone + "-i cover.png -map 0 -map 1 -c:a aac -c:v copy -disposition:v attached_pic cover.m4v", folder)
    run(FFMPEG + f"-f lavfi -i testsrc=d=1 {X264}-movflags +frag_keyframe fragments.mp4", folder)
    (folder / "empty.webm").touch()
    for name in ("text.mp4", "text.gif", "text.png", "text.avi"):
        (folder / name).write_text("The quick brown fox jumps over the lazy dog.\n" * 20)
    (folder / "folder.mp4").mkdir(exist_ok=True)
    names = ["missing.mp4", "sound.mp4", "cover.m4v", "empty.webm", "folder.mp4"]
    names += [path.name for path in folder.glob("text.*")]
    cuts = [changed(folder / name, "cut", keep=0.6) for name in ("gop250.mp4", "hevc.mp4", "asp.m4v")]
    headers = [changed(folder / name, "header", keep=0.01) for name in FILMS]
    void = [changed(folder / name, "void", first=0.01) for name in ("vp9.webm", "palette.gif", "mjpeg.avi")]
    return [*(folder / name for name in names), *cuts, *headers, *void]


def test_every_broken_file_is_a_data_error_that_names_it(films, capfd):
    for path in broken_files(films):
        for use in (media.probe, lambda path: media.read(path, frames=4, fps=8, size=(24, 40))):
            with pytest.raises(DataError) as caught:
                use(path)
            assert str(caught.value).startswith(f"{path}: ")
            assert len(caught.value.reason) > 10
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["gop12.mp4", "open.mkv", "vp8.webm", "vp9.webm", "palette.gif", "asp.avi"])
def test_a_truncated_film_is_used_up_to_where_it_goes(films, name):
    path = changed(films / name, "short", keep=0.6)
    seconds, count, *_ = media.probe(path)
    assert 0.2 * FRAMES < count < 0.8 * FRAMES
    clip = media.read(path, frames=FRAMES, fps=RATE, size=(HEIGHT, WIDTH))
    # Of the last frames, some packets are missing or incomplete.
    assert numbers(clip)[:-4] == list(range(clip.shape[1] - 4))
    assert abs(clip.shape[1] - count) <= 4
    with pytest.raises(DataError, match="has no frame that decodes from"):
        media.read(path, frames=4, fps=8, size=(24, 40), start=seconds + 0.1)


@pytest.mark.parametrize(("name", "kept_back"), [("gop12.mp4", 2), ("vp9.webm", 0)])
def test_damage_stays_where_it_is(films, name, kept_back, capfd):
    data = (films / name).read_bytes()
    with av.open(str(films / name)) as container:
        keys = [packet for packet in container.demux(video=0) if packet.is_keyframe]
        first, after = (round(float(key.pts * key.time_base) * RATE) for key in keys[-2:])
        payload = bytes(keys[-2])
    path = films / f"no_key_{name}"
    path.write_bytes(data.replace(payload, bytes(len(payload))))
    first -= kept_back  # Frames that the decoder has not given out yet.
    whole = numbers(media.read(path, frames=FRAMES, fps=RATE, size=(HEIGHT, WIDTH)))
    assert len(whole) == FRAMES
    assert whole[:first] == list(range(first))
    assert whole[after:] == list(range(after, FRAMES))
    assert whole[first:after] != list(range(first, after))
    for start in range(0, FRAMES, 5):
        clip = media.read(path, frames=4, fps=RATE / 3, size=(HEIGHT, WIDTH), start=(start + 0.5) / RATE)
        expected = range(start, min(start + 12, FRAMES), 3)
        assert clip.shape[1] == len(expected)
        unsure = range(first - 2 * kept_back, after)  # Every third frame is decoded.
        assert all(got == want or want in unsure for got, want in zip(numbers(clip), expected, strict=True))
    # What was shown before the damage stays; of it, frames that no other needs were not decoded.
    start = (first + kept_back + 1.5) / RATE
    clip = media.read(path, frames=1, fps=RATE, size=(HEIGHT, WIDTH), start=start)
    assert first - 3 < numbers(clip)[0] < first + kept_back
    assert capfd.readouterr().err == ""


def test_a_film_ends_where_decoding_ends(films):
    path = changed(films / "gop12.mp4", "tail", first=0.7)
    clip = media.read(path, frames=FRAMES, fps=RATE, size=(HEIGHT, WIDTH))
    assert 0.2 * FRAMES < clip.shape[1] < 0.8 * FRAMES
    assert numbers(clip) == list(range(clip.shape[1]))
    with pytest.raises(DataError, match=r"no frame that decodes from 3\.8 s on"):
        media.read(path, frames=4, fps=8, size=(24, 40), start=3.8)


@pytest.mark.parametrize("name", FILMS)
def test_random_damage_raises_nothing_but_data_errors(films, name):
    random = np.random.default_rng(0)
    intact = np.fromfile(films / name, np.uint8)
    path = films / f"random_{name}"
    for header in [True, False] * 3:
        damaged = intact.copy()
        damaged[random.integers(0, 600 if header else len(damaged), 30)] = random.integers(0, 256, 30)
        damaged.tofile(path)
        with contextlib.suppress(DataError):
            seconds = media.probe(path).seconds
            clip = media.read(path, frames=8, fps=8, size=(24, 40), start=0.4 * seconds)
            assert clip.shape[0] == 3
            assert clip.shape[2:] == (24, 40)


def test_a_changed_file_is_indexed_again(tmp_path):
    path = tmp_path / "film.mp4"
    media.write(smooth(8, 16, 16), path, 8)
    assert media.probe(path) == (1.0, 8, 16, 16)
    media.write(smooth(4, 32, 16), path, 8)
    assert media.probe(str(path)) == (0.5, 4, 32, 16)
    os.utime(path, (0, 0))
    assert media.probe(path) == (0.5, 4, 32, 16)


@pytest.mark.parametrize("frames", [1, 2, 16])
@pytest.mark.parametrize("fps", [8, 29.97, 12.5, 60])
def test_written_films_have_their_frames_at_their_times(tmp_path, fps, frames):
    pictures = torch.from_numpy(film(frames)).permute(3, 0, 1, 2)
    for suffix in [".mp4", ".gif", ".MP4"] if fps <= 50 else [".mp4"]:
        path = tmp_path / f"film{suffix}"
        media.write(pictures, path, fps)
        seconds, *rest = media.probe(path)
        assert rest == [frames, HEIGHT, WIDTH]
        assert seconds == pytest.approx(frames / fps, abs=0.011 if suffix == ".gif" else 1e-3)
        clip = media.read(path, frames=frames + 1, fps=fps, size=(HEIGHT, WIDTH))
        assert numbers(clip) == list(range(frames))
        path.unlink()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("height", [48, 49])
@pytest.mark.parametrize("width", [64, 65])
def test_written_films_look_like_what_was_written(tmp_path, height, width):
    pictures = smooth(12, height, width)
    media.write(pictures, tmp_path / "film.mp4", 8)
    height_even, width_even = height + height % 2, width + width % 2
    assert media.probe(tmp_path / "film.mp4")[1:] == (12, height_even, width_even)
    back = media.read(tmp_path / "film.mp4", frames=12, fps=8, size=(height_even, width_even))
    assert psnr(back[:, :, :height, :width], pictures) > 36
    if height % 2:
        assert psnr(back[:, :, -1], back[:, :, -2]) > 30
    media.write(pictures, tmp_path / "film.gif", 8)
    back = media.read(tmp_path / "film.gif", frames=12, fps=8, size=(height, width))
    # 256 colors are mixed out of neighboring pixels.
    assert psnr(back, pictures) > 25
    assert psnr(*(torch.nn.functional.avg_pool2d(film.float(), 4) for film in (back, pictures))) > 31
    media.write(pictures[:, :1], tmp_path / "film.png", 8)
    assert torch.equal(media.read(tmp_path / "film.png", frames=12, fps=8, size=(height, width)), pictures[:, :1])


def test_quality_follows_crf(tmp_path):
    pictures, sizes, quality = smooth(8, 64, 64), [], []
    for crf in (5, 18, 35):
        media.write(pictures, tmp_path / "film.mp4", 8, crf=crf)
        sizes.append((tmp_path / "film.mp4").stat().st_size)
        quality.append(psnr(media.read(tmp_path / "film.mp4", frames=8, fps=8, size=(64, 64)), pictures))
    assert sizes == sorted(sizes, reverse=True)
    assert quality == sorted(quality, reverse=True)


def test_other_programs_read_what_was_written(tmp_path):
    pictures = smooth(10, 48, 64)
    media.write(pictures, tmp_path / "film.gif", 10)
    with Image.open(tmp_path / "film.gif") as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (10, 0, 100)
        gif.seek(7)
        shown = torch.tensor(np.array(gif.convert("RGB"))).permute(2, 0, 1)
    clip = media.read(tmp_path / "film.gif", frames=1, fps=10, size=(48, 64), start=0.75)
    assert torch.equal(clip[:, 0], shown)
    if shutil.which("ffprobe") is None:
        pytest.skip("needs ffprobe to look at an mp4")
    media.write(pictures, tmp_path / "film.mp4", 10)
    fields = "codec_name,pix_fmt,width,height,color_space,color_range,r_frame_rate,nb_frames"
    lines = run(f"ffprobe -loglevel error -show_entries stream={fields} film.mp4", tmp_path).decode().split()
    assert {
        "codec_name=h264",
        "pix_fmt=yuv420p",
        "width=64",
        "height=48",
        "color_space=bt470bg",
        "color_range=tv",
        "r_frame_rate=10/1",
        "nb_frames=10",
    } <= set(lines)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    (tmp_path / "folder.gif").mkdir()
    for path in (tmp_path / "folder.gif", tmp_path / "nowhere" / "film.mp4", tmp_path / "nowhere" / "still.png"):
        with pytest.raises(DataError, match="cannot be written"):
            media.write(smooth(1, 16, 16), path, 8)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.gif"]


def test_wrong_arguments_name_what_is_allowed(tmp_path):
    pictures = smooth(2, 16, 16)
    for frames, name in [(pictures, "film.webm"), (pictures, "film.png"), (pictures[:, :0], "film.mp4")]:
        with pytest.raises(ValueError, match=rf"\.mp4.*\.gif.*\.png.*got '{name}' with frames of shape \(3, "):
            media.write(frames, tmp_path / name, 8)
    for name, fps, crf in [("film.gif", 60, 18), ("film.mp4", 0, 18), ("film.mp4", 8, 52)]:
        with pytest.raises(ValueError, match=rf"'{name}' needs .* got {fps=}, {crf=}"):
            media.write(pictures, tmp_path / name, fps, crf=crf)
    right = {"frames": 1, "fps": 8.0, "start": 0.0, "size": (16, 16)}
    for wrong in [{"frames": 0}, {"fps": 0.0}, {"start": -1.0}, {"size": (0, 16)}]:
        with pytest.raises(ValueError, match="Need frames, size >= 1, fps > 0"):
            media.read(tmp_path / "film.mp4", **(right | wrong))
