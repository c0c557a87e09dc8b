"""Trains the notes experiments as shipped and measures them: `make bench`. Prints a row of RESULTS.md for each."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COUNT = 256


def mmdiff(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "mmdiff", *arguments], check=True)


def main() -> None:
    print("| experiment | training, minutes | notes | pitch | timbre | both |\n|---|---|---|---|---|---|")
    for experiment in ("audio/demo", "audio/notes"):
        with tempfile.TemporaryDirectory() as folder:
            run, result = Path(folder) / "run", Path(folder) / "evaluation"
            start = time.monotonic()
            mmdiff("train", f"experiment={experiment}", f"hydra.run.dir={run}")
            minutes = (time.monotonic() - start) / 60
            mmdiff("evaluate", f"checkpoint={run}/checkpoints/last.ckpt", f"count={COUNT}", f"output={result}")
            metrics = json.loads((result / "metrics.json").read_text(encoding="utf-8"))["metrics"]
            shares = " | ".join(f"{metrics[f'notes.{name}']:.1%}" for name in ("pitch", "timbre", "both"))
            print(f"| {experiment} | {minutes:.1f} | {COUNT} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
