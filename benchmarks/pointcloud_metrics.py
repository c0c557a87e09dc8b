"""Chamfer distances of every pair of two sets: ours against a double loop over ``torch.cdist``, on one thread.

Prints a table for RESULTS.md. Each row runs in a process of its own, so that the peak of its memory is its own.
"""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmdiff_pointcloud.distances import chamfer_matrix
from mmdiff_pointcloud.furniture import Furniture

CLOUDS, POINTS, REPEATS = 16, 2048, 3
BOUNDS_MB = (2, 16, 256)


def double_loop(xs: Tensor, ys: Tensor) -> Tensor:
    squared = ((torch.cdist(x, y).square() for y in ys) for x in xs)
    return torch.stack([torch.stack([d.amin(0).mean() + d.amin(1).mean() for d in row]) for row in squared])


def clouds(seed: int) -> Tensor:
    furniture = Furniture(size=CLOUDS, seed=seed, points=POINTS)
    return torch.stack([furniture[i][0] for i in range(CLOUDS)])


def peak_mb(field: str) -> float:
    """A line of the status of this process: ``VmHWM`` is the peak of the resident memory, ``VmRSS`` what it is now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024


def measure(matrix: Callable[..., Tensor], same: bool, options: dict[str, float]) -> tuple[float, float, np.ndarray]:
    """Milliseconds of processor time for an entry, the least of the repeats; peak MB beside the clouds; the matrix."""
    torch.set_num_threads(1)
    xs = clouds(0)
    ys = xs if same else clouds(1)
    matrix(xs[:1], ys[:1], **options)
    Path("/proc/self/clear_refs").write_text("5")
    before, times = peak_mb("VmRSS"), []
    for _ in range(REPEATS):
        start = time.process_time()
        result = matrix(xs, ys, **options)
        times.append(time.process_time() - start)
    return 1000 * min(times) / len(xs) / len(ys), peak_mb("VmHWM") - before, result.numpy()


def main() -> None:
    print(f"{CLOUDS} x {CLOUDS} clouds of {POINTS} points, one thread, processor time\n")
    print("| method | sets | ms an entry | speedup | peak memory, MB | largest difference |\n|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for same in (True, False):
        rows = [("double loop over torch.cdist", double_loop, {})]
        rows += [(f"chamfer_matrix, memory_mb={mb}", chamfer_matrix, {"memory_mb": mb}) for mb in BOUNDS_MB]
        first = None
        for name, matrix, options in rows:
            with context.Pool(1) as pool:
                milliseconds, memory, result = pool.apply(measure, (matrix, same, options))
            first = first or (milliseconds, result)
            speedup, difference = first[0] / milliseconds, np.abs(result - first[1]).max()
            sets = "one with itself" if same else "two"
            print(
                f"| {name} | {sets} | {milliseconds:.2f} | {speedup:.1f} | {memory:.1f} | {difference:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
