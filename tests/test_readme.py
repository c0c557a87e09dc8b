"""Every command and every piece of code in the README works as it stands there.

Training commands run with ``debug=fast`` behind them and on little data; the checkpoint that the README takes from the
demo is one of two training steps; ``make`` targets are only checked to exist, since running them is what CI does.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from closed_forms import two_bumps
from mmdiff.solvers import heun

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.join(words)
    for kind, text in BLOCKS
    if kind == "sh"
    for line in text.splitlines()
    if (words := shlex.split(line, comments=True))
]
FAST = {
    "train": ["debug=fast", "data.held_out=4"],
    "sample": ["batch_size=4"],
    "evaluate": [],
    "tune": ["count=2", "iterations=1", "reference=10"],
}


def run(command: str, folder: Path) -> None:
    words = shlex.split(command)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    assert words[0] == "mmdiff", command
    words = [word.replace("count=64", "count=4") for word in words]
    small = ["data.dataset.size=32"] if "experiment=audio/notes" in words else []
    done = subprocess.run(
        [sys.executable, "-m", "mmdiff", words[1], *FAST.get(words[1], []), *small, *words[2:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that holds what the README's reader has: some sounds, the demo's checkpoint, the files shown."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_sounds" / "low").mkdir(parents=True)
    for i in range(4):
        tone = torch.sin(torch.arange(16000) * 0.05 * (i + 1)).numpy()
        soundfile.write(folder / "my_sounds" / "low" / f"{i}.wav", tone, 16000)
    code = [text for kind, text in BLOCKS if kind == "python"]
    (folder / "mine.py").write_text("\n".join(code), encoding="utf-8")
    (folder / "my_conf" / "network").mkdir(parents=True)
    mixer = next(text for kind, text in BLOCKS if kind == "yaml")
    (folder / "my_conf" / "network" / "mixer.yaml").write_text(mixer, encoding="utf-8")
    run("mmdiff train experiment=audio/demo data.dataset.size=32 hydra.run.dir=demo/run", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("make")])
def test_command_runs(command, place):
    run(command, place)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_target_exists(command):
    done = subprocess.run(["make", "--dry-run", command.split()[1]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_solver_of_the_readme_has_the_order_it_states():
    names: dict = {}
    exec(next(text for kind, text in BLOCKS if kind == "python" and "def midpoint" in text), names)
    x = torch.tensor([[0.7], [4.0]], dtype=torch.float64)

    def end(solver, steps):
        *_, last = solver(two_bumps, x, torch.linspace(10, 1, steps + 1, dtype=torch.float64), torch.randn_like)
        return last.x

    exact = end(heun, 4000)
    errors = [(end(names["midpoint"], steps) - exact).abs().max().item() for steps in (40, 80)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)
