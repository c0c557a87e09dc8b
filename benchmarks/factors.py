"""Trains the experiments on embedded data as shipped, asks each for samples, and measures how many are as asked.

`make bench` runs all of them; `python benchmarks/factors.py video/shapes` one. Prints a row of RESULTS.md for each.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COUNT = {"audio/demo": 256, "audio/notes": 256, "video/shapes": 256, "pointcloud/furniture": 256}


def mmdiff(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "mmdiff", *arguments], check=True)


def measure(experiment: str, folder: Path) -> tuple[float, dict[str, float]]:
    """Minutes of training, and the metrics."""
    start = time.monotonic()
    mmdiff("train", f"experiment={experiment}", f"hydra.run.dir={folder / 'run'}")
    minutes = (time.monotonic() - start) / 60
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    mmdiff("evaluate", f"checkpoint={checkpoint}", f"count={COUNT[experiment]}", f"output={folder}")
    return minutes, json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]


def main() -> None:
    print("| experiment | training, minutes | samples | what the metrics say |\n|---|---|---|---|")
    for experiment in sys.argv[1:] or COUNT:
        with tempfile.TemporaryDirectory() as folder:
            minutes, metrics = measure(experiment, Path(folder))
        shown = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
        print(f"| {experiment} | {minutes:.1f} | {COUNT[experiment]} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
