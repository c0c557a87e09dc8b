"""Clips of a loader that seeks against those of one that decodes whole films: `python benchmarks/video_loader.py`.

Films of 30 seconds, 256 x 256 pixels, 25 frames per second; clips of 16 frames at 8 per second, 64 x 64, from random
times on. Prints a markdown table of clips per second of processor time, which other programs hardly change.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch

from mmdiff_video import media

FILMS, CLIPS, ROUNDS = 2, 40, 3
SECONDS, RATE, SIDE = 30, 25, 256
FRAMES, FPS, SIZE = 16, 8.0, 64


def make(path: Path, gop: int, seed: int) -> None:
    """A film of soft moving blobs with grain, as x264 encodes it by default but for the length of its GOPs."""
    random = np.random.default_rng(seed)
    centers, speeds = random.uniform(0, SIDE, (6, 2)), random.uniform(-3, 3, (6, 2))
    colors = random.uniform(0, 255, (6, 3))
    y, x = np.mgrid[:SIDE, :SIDE]
    grain = random.normal(0, 4, (8, SIDE, SIDE, 1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": str(gop)})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for index in range(SECONDS * RATE):
            cx, cy = ((centers + speeds * index) % SIDE).T[:, :, None, None]
            weight = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 1500)
            picture = np.tensordot(weight, colors, (0, 0)) + 30 + grain[index % 8]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8))))
        container.mux(stream.encode(None))


def plain(path: Path, start: float) -> torch.Tensor:
    """The clip by decoding the whole film, then picking frames, then resizing."""
    with av.open(str(path)) as container:
        film = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    picks = [film[min(int((start + index / FPS) * RATE), len(film) - 1)] for index in range(FRAMES)]
    pictures = torch.from_numpy(np.stack(picks)).permute(0, 3, 1, 2).float()
    clip = torch.nn.functional.interpolate(pictures, (SIZE, SIZE), mode="area")
    return clip.round().byte().permute(1, 0, 2, 3)


def seeking(path: Path, start: float) -> torch.Tensor:
    """The clip by our reader, which knows the film from earlier clips."""
    return media.read(path, frames=FRAMES, fps=FPS, size=(SIZE, SIZE), start=start)


def first(path: Path, start: float) -> torch.Tensor:
    """The clip by our reader, which sees the film for the first time."""
    media._index_of.cache_clear()
    return seeking(path, start)


def speed(reader: Callable[[Path, float], torch.Tensor], films: list[Path], clips: int) -> float:
    """Clips per second of processor time, the best of some rounds."""
    starts = np.random.default_rng(0).uniform(0, SECONDS - FRAMES / FPS, clips)
    times = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        for index, start in enumerate(starts):
            reader(films[index % len(films)], start)
        times.append(time.process_time() - begin)
    return clips / min(times)


def main() -> None:
    torch.set_num_threads(1)
    print("| films | decode all | first clip of a film | later clips | times faster |\n|---|---|---|---|---|")
    for gop in (250, 50):
        with tempfile.TemporaryDirectory() as folder:
            films = [Path(folder) / f"{index}.mp4" for index in range(FILMS)]
            for seed, film in enumerate(films):
                make(film, gop, seed)
            difference = (plain(films[0], 7.0).float() - seeking(films[0], 7.0).float()).abs().mean()
            assert difference < 2, f"the readers differ by {difference:.2f} levels"
            whole, cold, warm = speed(plain, films, 2 * FILMS), speed(first, films, CLIPS), speed(seeking, films, CLIPS)
        factors = f"{cold / whole:.1f} to {warm / whole:.1f}"
        print(f"| GOP {gop} | {whole:.1f}/s | {cold:.1f}/s | {warm:.1f}/s | {factors} |", flush=True)


if __name__ == "__main__":
    main()
