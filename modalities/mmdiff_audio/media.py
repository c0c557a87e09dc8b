"""Sound files: what they hold, any clip of them, and new ones.

A clip has ``c`` channels of ``n`` samples, float32, full scale at plus and minus one. A bad file is a ``DataError``.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff import DataError

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
_ENCODERS = {".wav": "pcm_s16le", ".flac": "flac"}
_LAYOUTS = {1: "mono", 2: "stereo"}
# Seconds to decode before a clip so that it equals the slice of a full decode: VBR mp3 needs 0.5, the others 0.2.
_PREROLL = 0.5
# 0.02 dB down at 0.45 of the lower rate, 140 dB down from 0.5625 of it on.
_RESAMPLER = "filter_size=128:filter_type=kaiser:kaiser_beta=14:cutoff=0.9476"
_RESAMPLER_REACH = 80  # samples at the lower rate, a little above filter_size / 2 / cutoff


class Info(NamedTuple):
    """Length in seconds, sample rate in Hz and number of channels of a sound file."""

    seconds: float
    rate: int
    channels: int


def probe(path: str | os.PathLike[str]) -> Info:
    """Length, rate and channels of a sound file, from its header and its last second."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise DataError(path, f"cannot be opened ({error.strerror})") from error
    if stat.st_size == 0:
        raise DataError(path, "is empty (0 bytes)")
    return _probe(os.fspath(path), stat.st_size, stat.st_mtime_ns)


def read(
    path: str | os.PathLike[str], rate: int, channels: int, start: float = 0.0, seconds: float | None = None
) -> Float[Tensor, "c n"]:
    """A clip of a sound file from ``start`` seconds on, at ``rate`` Hz, in mono (the mean) or stereo.

    Packets that do not decode are silent. The clip has ``round(seconds * rate)`` samples, or what the file has left.
    """
    if rate < 1 or channels not in _LAYOUTS or start < 0:
        raise ValueError(f"Need rate >= 1, channels 1 or 2 and start >= 0, got {rate=}, {channels=}, {start=}.")
    info = probe(path)
    total = round(info.seconds * info.rate)
    first, last = round(start * rate), math.ceil(total * rate / info.rate)
    if seconds is not None:
        last = min(last, first + round(seconds * rate))
    if first >= last:
        return torch.zeros(channels, 0)
    # Every `period` samples both rates share an instant: a clip cut there is resampled exactly like the whole file.
    period = info.rate // math.gcd(info.rate, rate)
    margin = math.ceil(_RESAMPLER_REACH * max(1, info.rate / rate))
    begin = max(0, first * info.rate // rate - margin) // period * period
    end = min(total, math.ceil(last * info.rate / rate) + margin)
    clip = _resample(_decode(path, channels, begin, end), info.rate, rate)
    return torch.from_numpy(clip[:, first - begin * rate // info.rate :][:, : last - first].copy())


def write(audio: Float[Tensor, "c n"], path: str | os.PathLike[str], rate: int) -> None:
    """Write mono or stereo as 16-bit wav or flac, by suffix; samples beyond plus or minus one are limited."""
    path = Path(path)
    suffix, layout = path.suffix.lower(), _LAYOUTS.get(len(audio))
    if suffix not in _ENCODERS or layout is None or not audio.numel():
        raise ValueError(f"Can write {list(_ENCODERS)}, 1 or 2 channels, got {path.name!r} with {tuple(audio.shape)}.")
    samples = (audio.detach().cpu() * 32768).round().clamp(-32768, 32767).to(torch.int16)
    frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).numpy(), format="s16", layout=layout)
    frame.sample_rate = rate
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with av.open(os.fspath(partial), "w", format=suffix[1:]) as container:
            stream = container.add_stream(_ENCODERS[suffix], rate=rate, layout=layout, format="s16")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        partial.replace(path)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(path, f"cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)


@lru_cache(maxsize=1 << 16)
def _probe(path: str, size: int, mtime_ns: int) -> Info:
    """``probe`` of one state of the file, told from others by ``size`` and ``mtime_ns``."""
    with _open(path) as stream:
        promised, rate, channels = _promised_seconds(stream), stream.rate, stream.codec_context.channels
    found = (promised and _end(path, promised - 1)) or _end(path, 0.0)
    if not found:
        raise DataError(path, "holds no sound that can be decoded")
    if promised and promised - found > max(0.1, 0.02 * promised):
        raise DataError(path, f"is cut off: its header promises {promised:.2f} s, it ends after {found:.2f} s")
    return Info(min(found, promised or found), rate, channels)


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[av.AudioStream]:
    """The first sound track of a file; what FFmpeg raises inside is a ``DataError``."""
    # Probing PCM for other codings inside costs 20 ms. Tags need not be UTF-8.
    options = {"probesize": "32"} if Path(path).suffix.lower() == ".wav" else {}
    try:
        with av.open(os.fspath(path), options=options, metadata_errors="replace") as container:
            stream = next((stream for stream in container.streams.audio if stream.codec_context), None)
            # PyAV reads beyond its memory for planar frames of more than 8 channels.
            if stream is None or stream.codec_context.channels > 8:
                raise DataError(path, "has no sound track of at most 8 channels that can be decoded")
            yield stream
    except av.error.FFmpegError as error:
        raise DataError(path, f"cannot be read as sound ({error.strerror})") from error


def _promised_seconds(stream: av.AudioStream) -> float | None:
    """The length that the header states, None without one."""
    # For an mp3 without a Xing tag, which would also tell the encoder's delay, FFmpeg guesses from the bit rate.
    if stream.duration is None or (stream.container.format.name == "mp3" and not stream.start_time):
        return None
    # FFmpeg shortens what the header of a wav file promises to what the file holds.
    excess = _wav_excess(stream.container.name) if stream.container.format.name == "wav" else 1.0
    return float(stream.duration * stream.time_base) * excess


def _wav_excess(path: str) -> float:
    """Bytes of sound that the header of a wav file promises over those that the file holds, at least 1."""
    with Path(path).open("rb") as file:
        file.seek(12)
        while (header := file.read(8))[:4] not in (b"data", b""):
            file.seek((int.from_bytes(header[4:], "little") + 1) // 2 * 2, os.SEEK_CUR)
        size, held = int.from_bytes(header[4:], "little"), os.fstat(file.fileno()).st_size - file.tell()
    # A size above this is what sox, espeak-ng and FFmpeg leave when they write into a pipe and cannot go back.
    return size / held if 0 < held < size < 0x7FFF0000 else 1.0


def _end(path: str, start: float) -> float:
    """Seconds at which the last sound from ``start`` on ends, 0 if none decodes."""
    with _open(path) as stream:
        return max((index + samples.shape[1] for index, samples in _frames(stream, start, 1)), default=0) / stream.rate


def _frames(stream: av.AudioStream, start: float, channels: int) -> Iterator[tuple[int, np.ndarray]]:
    """Sound from somewhat before ``start`` seconds on: index of the first sample, samples (channels, n)."""
    container, origin, position = stream.container, stream.start_time or 0, 0
    width = stream.codec_context.channels  # A damaged packet can change it.
    # Of the codings in wav files only PCM has exact time stamps after a seek; some frames of ADPCM have none at all.
    exact = container.format.name != "wav" or stream.codec_context.name.startswith("pcm")
    early = max(0.0, start - _PREROLL) if exact else 0.0
    # A failed seek costs time only; a packet that cannot be delimited ends the file.
    if early:
        with suppress(av.error.FFmpegError):
            container.seek(origin + int(early / stream.time_base), stream=stream)
    with suppress(av.error.FFmpegError):
        for packet in container.demux(stream):
            frames = []
            # Damage is an FFmpegError, a format that PyAV cannot hand over (64-bit integers) a ValueError.
            with suppress(av.error.FFmpegError, ValueError):
                frames = [(f.pts, _samples(f, channels)) for f in packet.decode() if f.layout.nb_channels == width]
            for pts, samples in frames:
                if pts is not None:
                    position = round((pts - origin) * stream.time_base * stream.rate)
                yield position, samples
                position += samples.shape[1]


def _samples(frame: av.AudioFrame, channels: int) -> np.ndarray:
    """Float samples in mono or stereo; of more than two channels a side gets the mean of its own and the central."""
    samples, names = frame.to_ndarray(), [channel.name for channel in frame.layout.channels]
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(names)).T
    scale = 1 if samples.dtype.kind == "f" else 2 ** (8 * samples.itemsize - 1)
    samples = samples.astype(np.float32) / np.float32(scale) - np.float32(samples.dtype.kind == "u")
    if channels == 1:
        return samples.mean(axis=0, keepdims=True)
    if len(names) <= 2:
        return samples.repeat(2 // len(names), axis=0)
    sides = ([not name.endswith(other) for name in names] for other in "RL")
    return np.stack([samples[side].mean(axis=0) for side in sides])


def _decode(path: str | os.PathLike[str], channels: int, begin: int, end: int) -> np.ndarray:
    """Samples ``begin`` to ``end`` at the file's own rate, mono or stereo, zero where nothing decodes."""
    clip, empty = np.zeros((channels, end - begin), np.float32), True
    with _open(path) as stream:
        for index, samples in _frames(stream, begin / stream.rate, channels):
            if index >= end:
                break
            first, last = max(index, begin), min(index + samples.shape[1], end)
            if first < last:
                clip[:, first - begin : last - begin] = samples[:, first - index : last - index]
                empty = False
    if empty:
        raise DataError(path, f"holds nothing that decodes from sample {begin} to {end}")
    return clip


def _resample(clip: np.ndarray, before: int, after: int) -> np.ndarray:
    """From ``before`` to ``after`` Hz; the first sample stays where it is, some zeros follow the last."""
    if before == after:
        return clip
    graph, layout = av.filter.Graph(), _LAYOUTS[len(clip)]
    source = graph.add_abuffer(sample_rate=before, format="fltp", layout=layout)
    graph.link_nodes(source, graph.add("aresample", f"{after}:{_RESAMPLER}"), graph.add("abuffersink")).configure()
    clip = np.pad(clip, ((0, 0), (0, 2 * math.ceil(_RESAMPLER_REACH * max(1, before / after)))))
    frame = av.AudioFrame.from_ndarray(clip, format="fltp", layout=layout)
    frame.sample_rate = before
    graph.push(frame)
    return graph.pull().to_ndarray()
