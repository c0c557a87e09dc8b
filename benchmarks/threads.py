"""A training step on all cores while other programs run: how long threads wait for each other before they sleep.

    python benchmarks/threads.py

Prints the median of the steps of 10 seconds, of a small image U-Net on all cores, alone and beside one busy program on
each core, for the setting of GNU OpenMP and for that of `mmdiff`.
"""

import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import torch

from mmdiff.cli import SPINS
from mmdiff.nn.unet import UNet
from mmdiff.types import Context

SECONDS = 10


def median_step() -> float:
    torch.manual_seed(0)
    network = UNet((1, 64, 64), 128, width=32, multipliers=(1, 2, 4), attention=(2,), patch=2)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    x, noise, context = torch.randn(4, 1, 64, 64), torch.randn(4), Context(vector=torch.randn(4, 128))
    times = [time.perf_counter()]
    while times[-1] - times[0] < SECONDS or len(times) < 4:
        network(x, noise, context).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
    return statistics.median(later - earlier for earlier, later in pairwise(times[1:]))


def apart(spins: str | None) -> float:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    environment |= {} if spins is None else {"GOMP_SPINCOUNT": spins}
    done = subprocess.run([sys.executable, __file__, "step"], env=environment, capture_output=True, check=True)
    return float(done.stdout)


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    print("| other programs | GNU OpenMP alone, s per step | mmdiff, s per step | mmdiff is faster by |")
    print("|---|---|---|---|")
    for others in (0, cores):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            alone, ours = apart(None), apart(SPINS)
        finally:
            for program in busy:
                program.kill()
        print(f"| {others} | {alone:.3f} | {ours:.3f} | **{alone / ours:.2f}x** |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(median_step())
    else:
        main()
