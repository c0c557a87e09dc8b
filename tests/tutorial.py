"""Follows docs/tutorial.md word by word: runs its commands and writes its files, in order, in an empty folder."""

import os
import re
import subprocess
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
WRITTEN = ("python", "yaml")


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: kind and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def path_of(text: str) -> str:
    """The path that a file's block names in one of the comments at its head."""
    head = re.match(r"(?:# .*\n)+", text)
    (path,) = re.findall(r"^# (\S+\.\w+)$", head[0] if head else "", re.MULTILINE)
    return path


def follow(place: Path, programs: Path) -> str:
    """What the commands print; a ``sh`` block is run, a file is written to the path in the comment that it begins with.

    Args:
        place: an empty folder.
        programs: the folder of the environment's ``python``, ``pip`` and ``mmdiff``.

    Raises:
        RuntimeError: for the first command that fails, with what it printed.
    """
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    said = ""
    for kind, text in blocks(PAGE.read_text(encoding="utf-8")):
        if kind in WRITTEN:
            path = place / path_of(text)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif kind == "sh":
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", text], cwd=place, env=environment, capture_output=True, text=True
            )
            said += done.stdout
            if done.returncode:
                raise RuntimeError(f"{text} failed:\n{done.stdout}\n{done.stderr}")
    return said


def check_outcome(place: Path, said: str) -> None:
    """Check that the tutorial has led where it says: to a trained plugin that draws files and passes its checks."""
    assert (place / "trained" / "checkpoints" / "last.ckpt").is_file()
    assert len(list((place / "drawn").glob("*.csv"))) == 32
    assert len(list((place / "completed").glob("*.csv"))) == 2
    checks = re.findall(r"^(all \d+|\d+ of \d+) checks (passed|failed)$", said, re.MULTILINE)
    assert [result for _, result in checks] == ["passed"] * 3, checks
