"""Builds a wheel, installs it with its extras in a clean environment, runs it elsewhere, and follows the tutorial.

Run it as a script. It installs torch anew, so it takes minutes and some gigabytes in the temporary folder.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tutorial import check_outcome, follow

ROOT = Path(__file__).parents[1]
EXPERIMENTS = {"audio": "audio/notes", "video": "video/shapes", "pointcloud": "pointcloud/furniture"}
"""What to train with each extra; every one is installed after the training with those before it."""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", place, ROOT, cwd=place)
        wheel = next(place.glob("*.whl"))
        venv.create(place / "env", with_pip=True)
        python = place / "env" / "bin" / "python"
        mmdiff = python.with_name("mmdiff")
        for extra, experiment in EXPERIMENTS.items():
            run(python, "-m", "pip", "install", "--quiet", f"{wheel}[{extra}]", cwd=place)
            info = run(mmdiff, "info", cwd=place)
            if experiment not in info:
                sys.exit(f"mmdiff info of the wheel knows no {experiment}:\n{info}")
            run(mmdiff, "train", f"experiment={experiment}", "debug=fast", "data.dataset.size=16", cwd=place)
            if not list(place.glob(f"runs/{experiment}/*/checkpoints/last.ckpt")):
                sys.exit(f"the wheel's training of {experiment} left no checkpoint")
        empty = place / "empty"
        empty.mkdir()
        try:
            check_outcome(empty, follow(empty, python.parent))
        except (AssertionError, RuntimeError) as error:
            sys.exit(f"the tutorial: {error}")
        print(f"{wheel.name}: installed, two training steps of each plugin and the tutorial ran from {place}")


if __name__ == "__main__":
    main()
