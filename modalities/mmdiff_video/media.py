"""Films and pictures: what they hold, any clip of them, and new ones.

Frames are uint8 (3, t, h, w), RGB, upright. A picture is a film of one frame. A bad file is a ``DataError``.

Time counts from the first frame. Time stamps (``pts``) count ticks of the file's own length; they alone tell when
a frame is shown: frames need not be evenly spread, and in the file they stand in the order of decoding.
"""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from jaxtyping import UInt8
from torch import Tensor

from mmdiff import DataError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".png", ".jpg", ".jpeg", ".bmp", ".webp")
# Color that is rounded and interpolated in full is 0.8 dB closer, for 0.1 ms per frame of 256 x 256 that is used.
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class Info(NamedTuple):
    """Length in seconds, number of frames, and size in pixels as shown: upright, with square pixels."""

    seconds: float
    frames: int
    height: int
    width: int


class _Index(NamedTuple):
    """What is in a file: time stamps of the frames that are shown and of the key frames, both sorted, in ticks."""

    info: Info
    tick: Fraction
    shown: np.ndarray
    keys: np.ndarray


def probe(path: str | os.PathLike[str]) -> Info:
    """Length, frames and size of a film, from all of its packets and its first frame."""
    return _index(path).info


def read(
    path: str | os.PathLike[str], *, frames: int, fps: float, size: tuple[int, int], start: float = 0.0
) -> UInt8[Tensor, "3 t h w"]:
    """A clip: the frames that the film shows at ``start``, ``start + 1 / fps``, ... seconds.

    Each is resized to cover ``size`` (height, width), by averaging areas to shrink and bicubically to enlarge, and cut
    to its center. Opacity is ignored. Where frames do not decode the one before stays; the clip has fewer than
    ``frames`` where the film, or what decodes of it, ends.
    """
    if frames < 1 or not fps > 0 or not start >= 0 or min(size) < 1:
        raise ValueError(f"Need frames, size >= 1, fps > 0 and start >= 0, got {frames=}, {size=}, {fps=}, {start=}.")
    index = _index(path)
    wanted = _stamps(index, start + np.arange(frames) / fps)
    clip = _clip(path, index, wanted, size) if len(wanted) else []
    if not clip:
        raise DataError(path, f"has no frame that decodes from {start:g} s on, of {index.info.seconds:.2f} s")
    return torch.from_numpy(np.stack(clip)).permute(3, 0, 1, 2).contiguous()


def write(frames: UInt8[Tensor, "3 t h w"], path: str | os.PathLike[str], fps: float, *, crf: int = 18) -> None:
    """Write mp4 (H.264), gif (one palette for all frames, repeats for ever) or, of one frame, png, by suffix.

    Args:
        frames: at least one; for mp4 the last row and column are repeated where height and width are odd.
        path: the file.
        fps: frames per second, from 0.01 to 1000, of a gif to 50.
        crf: of mp4, from 0 (best) to 51.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITERS or not frames.numel() or (suffix == ".png" and frames.shape[1] != 1):
        allowed = f"Can write {list(_WRITERS)}, as png one frame"
        raise ValueError(f"{allowed}, got {path.name!r} with frames of shape {tuple(frames.shape)}.")
    fastest = 50 if suffix == ".gif" else 1000
    if not 0.01 <= fps <= fastest or not 0 <= crf <= 51:
        raise ValueError(f"{path.name!r} needs 0.01 <= fps <= {fastest} and 0 <= crf <= 51, got {fps=}, {crf=}.")
    pictures = frames.detach().cpu().permute(1, 2, 3, 0).contiguous().numpy()
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _WRITERS[suffix](pictures, partial, Fraction(fps).limit_denominator(1001), crf)
        partial.replace(path)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(path, f"cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[av.VideoStream]:
    """The main film in a file; what FFmpeg raises inside is a ``DataError``."""
    options = {"pattern_type": "none"}  # Otherwise 100%d.jpg stands for 1001.jpg, 1002.jpg, ...
    try:
        with av.open(os.fspath(path), options=options, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None or not stream.codec_context:
                raise DataError(path, "has no video that can be decoded")
            stream.codec_context.thread_count = 1
            yield stream
    except av.error.FFmpegError as error:
        raise DataError(path, f"cannot be read as video ({error.strerror})") from error


def _index(path: str | os.PathLike[str]) -> _Index:
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise DataError(path, f"cannot be opened ({error.strerror})") from error
    if stat.st_size == 0:
        raise DataError(path, "is empty (0 bytes)")
    return _index_of(os.fspath(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1 << 12)
def _index_of(path: str, size: int, mtime_ns: int) -> _Index:
    """The index of one state of the file, told from others by ``size`` and ``mtime_ns``."""
    shown, keys, last, first = set(), [], (-math.inf, 0), None
    with _open(path) as stream:
        for packet in stream.container.demux(stream):
            if first is None:
                first = next(iter(_decoded(packet)), None)
            stamp = _stamp(packet)
            if stamp is not None:
                keys += [stamp] * packet.is_keyframe
                # An edit list hides frames that others need.
                if not packet.is_discard:
                    shown.add(stamp)
                    last = max(last, (stamp, packet.duration or 0))
        if first is None or not shown:
            raise DataError(path, "has no frame that can be decoded")
        tick, shape = stream.time_base, (first.height, round(first.width * _aspect(stream)))
    stamps = np.array(sorted(shown))
    # A last frame of unknown length is as long as the others; one alone is as long as a picture is for FFmpeg.
    final = last[1] or (int(np.median(np.diff(stamps))) if len(stamps) > 1 else 1 / (25 * tick))
    seconds = float((last[0] - min(shown) + final) * tick)
    height, width = shape[::-1] if _quarter_turns(first) % 2 else shape
    return _Index(Info(seconds, len(stamps), height, width), tick, stamps, np.array(sorted(keys)))


def _decoded(packet: av.Packet) -> list[av.VideoFrame]:
    """The frames that this packet completes, none where it is damaged."""
    with suppress(av.error.FFmpegError):
        return packet.decode()
    return []


def _stamp(part: av.Packet | av.VideoFrame) -> int | None:
    """When it is shown; the empty packet at the end has no time."""
    return part.dts if part.pts is None else part.pts


def _stamps(index: _Index, times: np.ndarray) -> np.ndarray:
    """Time stamps of the frames shown at ``times`` seconds, which increase; times beyond the end are left out."""
    # Files round to ticks: of 30 frames per second the third is at 67 or 70 ms, while 2 / 30 s is 66.7 ms. Where a tick
    # is as long as a frame (avi) nothing is rounded.
    slack = min(float(index.tick) / 2, 0.005) + 1e-6
    seconds = index.info.seconds
    count = max(int((times < seconds - 2 * slack).sum()), int(times[0] < seconds))
    ticks = index.shown[0] + (times[:count] + slack) / float(index.tick)
    return index.shown[np.searchsorted(index.shown, ticks, side="right") - 1]


def _clip(path: str | os.PathLike[str], index: _Index, wanted: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """Pictures (h, w, 3) of what is shown at the time stamps ``wanted``, up to where decoding ends."""
    before = max(int(np.searchsorted(index.keys, wanted[0], side="right")) - 1, 0)
    clip: list[np.ndarray] = []
    # Where the key frame is damaged, from the beginning.
    for key in sorted({before, 0}, reverse=True):
        with _open(path) as stream:
            frames = _frames(stream, int(index.keys[key]) if key else None, set(wanted.tolist()))
            first = next(frames, None)
            if first is None or (key and first[0] > wanted[0]):
                continue
            reformatter, latest = VideoReformatter(), None
            for frame in _held(chain([first], frames), wanted.tolist()):
                clip.append(clip[-1] if frame is latest else _fit(frame, _aspect(stream), size, reformatter))
                latest = frame
            break
    return clip


def _frames(stream: av.VideoStream, key: int | None, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames from the one at ``key`` (or the beginning) on and their time stamps, at least those ``wanted``."""
    # In avi, packets can hold two frames, and time stamps of H.264 are guessed in the order of decoding.
    sparse = stream.container.format.name != "avi"
    if key is not None:
        with suppress(av.error.FFmpegError):
            stream.container.seek(key, stream=stream)
    for packet in stream.container.demux(stream):
        # Frames that nobody wants and no other frame needs are a third of the work.
        if sparse:
            stream.codec_context.skip_frame = "DEFAULT" if _stamp(packet) in wanted else "NONREF"
        for frame in _decoded(packet):
            stamp = _stamp(frame)
            if stamp is not None:
                yield stamp, frame


def _held(frames: Iterable[tuple[int, av.VideoFrame]], wanted: list[int]) -> Iterator[av.VideoFrame]:
    """The frame shown at each time stamp ``wanted``: the latest so far, before all of them the first."""
    before, done = None, 0
    for stamp, frame in frames:
        while done < len(wanted) and wanted[done] < stamp:
            yield frame if before is None else before
            done += 1
        before = frame
        if stamp >= wanted[-1]:
            yield from [frame] * (len(wanted) - done)
            return


def _fit(frame: av.VideoFrame, aspect: float, size: tuple[int, int], reformatter: VideoReformatter) -> np.ndarray:
    """The picture (h, w, 3), upright: the center of the frame, scaled to cover ``size``."""
    turns = _quarter_turns(frame)
    height, width = size[::-1] if turns % 2 else size
    scale = max(height / frame.height, width / (frame.width * aspect))
    tall, wide = max(height, round(frame.height * scale)), max(width, round(frame.width * aspect * scale))
    way = Interpolation.AREA if tall * wide <= frame.height * frame.width else Interpolation.BICUBIC
    # One thread: it is faster than to start more for each frame.
    scaled = reformatter.reformat(frame, wide, tall, "rgb24", interpolation=way | _EXACT, threads=1).to_ndarray()
    top, left = (tall - height) // 2, (wide - width) // 2
    return np.rot90(scaled[top : top + height, left : left + width], turns)


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counterclockwise turns that make it upright."""
    return round(frame.rotation / 90) % 4


def _aspect(stream: av.VideoStream) -> float:
    """Width of a pixel over its height; 1 where the file says nothing or nonsense."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 0.1 < aspect < 10 else 1.0


def _write_mp4(pictures: np.ndarray, path: Path, rate: Fraction, crf: int) -> None:
    height, width = pictures.shape[1:3]
    pictures = np.pad(pictures, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(os.fspath(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        # Left to guess, players take the colors of large pictures for those of BT.709.
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU601, ColorRange.MPEG
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))


def _write_gif(pictures: np.ndarray, path: Path, rate: Fraction, crf: int) -> None:
    height, width = pictures.shape[1:3]
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / rate)
    split, palette, use = (graph.add(name) for name in ("split", "palettegen", "paletteuse"))
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(graph.add("buffersink"))
    graph.configure()
    for time, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture)
        frame.pts, frame.time_base = time, 1 / rate
        graph.vpush(frame)
    graph.vpush(None)
    with av.open(os.fspath(path), "w", format="gif") as container:
        stream = container.add_stream("gif", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        for _ in pictures:
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode(None))


def _write_png(pictures: np.ndarray, path: Path, rate: Fraction, crf: int) -> None:
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = *pictures.shape[1:3], "rgb24", 1 / rate
    packets = encoder.encode(av.VideoFrame.from_ndarray(pictures[0])) + encoder.encode(None)
    path.write_bytes(b"".join(bytes(packet) for packet in packets))


_WRITERS = {".mp4": _write_mp4, ".gif": _write_gif, ".png": _write_png}
