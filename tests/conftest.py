"""What the tests of the commands share: the commands themselves, in this process or in one of their own."""

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import beartype
import pytest
import torch
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning as OldSpelling

# The import hook asks for beartype, which takes no int for a float unless told to follow PEP 484.
beartype.beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def pytest_configure(config: pytest.Config) -> None:
    """Let beartype accept ``DictConfig``, which inherits from a generic of the old spelling."""
    config.addinivalue_line("filterwarnings", f"ignore::beartype.roar.{OldSpelling.__name__}")


NETWORK = ["network.width=8", "network.multipliers=[1, 2]", "network.attention=[]", "conditioner.features=16"]
NOTES = ["data.dataset.size=8", "data.held_out=2", "modality.seconds=0.3", "modality.representation.iterations=2"]
TINY = ["experiment=audio/notes", "debug=fast", *NETWORK, *NOTES]


class Ran(NamedTuple):
    """What a command left behind: its exit status and what it printed, without progress bars."""

    status: int
    out: str
    err: str


def without_bars(text: str) -> str:
    """The lines of stderr that are not states of a progress bar."""
    lines = re.split(r"[\r\n]+", text)
    return "\n".join(line for line in lines if line.strip() and not re.search(r"\d+%\||\d+it \[", line))


@pytest.fixture(scope="session")
def command() -> Callable[..., Ran]:
    """``command("train", "seed=1", folder=DIR)``: what ``mmdiff train seed=1`` does in DIR, in this process."""

    def run(*arguments: str, folder: Path) -> Ran:
        from mmdiff.cli import main

        out, err, status = io.StringIO(), io.StringIO(), 0
        handlers, threads, state = logging.root.handlers[:], torch.get_num_threads(), torch.get_rng_state()
        with (
            mock.patch.object(sys, "argv", ["mmdiff", *map(str, arguments)]),
            mock.patch.dict(os.environ),
            contextlib.chdir(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("default", UserWarning)
            warnings.simplefilter("ignore", OldSpelling)
            os.environ.pop("HYDRA_FULL_ERROR", None)
            try:
                main()
            except SystemExit as end:
                status = end.code or 0
        logging.root.handlers[:] = handlers
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        return Ran(status, out.getvalue(), without_bars(err.getvalue()))

    return run


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of processes that the tests start: one thread each."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "COMP_", "HYDRA_"))}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default::UserWarning"}


@pytest.fixture(scope="session")
def program() -> Path:
    """The installed ``mmdiff``."""
    return Path(sys.executable).with_name("mmdiff")


@pytest.fixture(scope="session")
def process(program, environment) -> Callable[..., Ran]:
    """``process("train", "seed=1", folder=DIR)``: the same by the installed command, in a process of its own."""

    def run(*arguments: str, folder: Path, **variables: str) -> Ran:
        done = subprocess.run(
            [program, *map(str, arguments)],
            cwd=folder,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Ran(done.returncode, done.stdout, without_bars(done.stderr))

    return run


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of ``mmdiff train`` for a run of two steps in about a second."""
    return TINY


@pytest.fixture(scope="session")
def tiny_folder() -> list[str]:
    """The same for ``data.root=DIR``."""
    return ["experiment=audio/folder", "debug=fast", *NETWORK, "modality.seconds=0.3"]


@pytest.fixture(scope="session")
def run_folder(command, tmp_path_factory) -> Path:
    """The folder of a finished run of two steps; not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    ran = command("train", *TINY, "hydra.run.dir=run", folder=folder)
    assert ran.status == 0, ran.err
    return folder / "run"


@pytest.fixture(scope="session")
def checkpoint(run_folder) -> Path:
    """Its checkpoint."""
    return run_folder / "checkpoints" / "last.ckpt"
