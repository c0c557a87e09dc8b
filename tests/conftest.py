"""What the tests of the commands share: the commands themselves, in this process or in one of their own."""

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import beartype
import pytest
import torch
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning as OldSpelling

# The import hook asks for beartype, which takes no int for a float unless told to follow PEP 484.
beartype.beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

from mmdiff import DataError  # noqa: E402
from mmdiff.modality import Modality  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Let beartype accept ``DictConfig``, which inherits from a generic of the old spelling."""
    config.addinivalue_line("filterwarnings", f"ignore::beartype.roar.{OldSpelling.__name__}")


NETWORK = ["network.width=8", "network.multipliers=[1, 2]", "network.attention=[]", "conditioner.features=16"]
NOTES = ["data.dataset.size=12", "data.held_out=6", "modality.seconds=0.3", "modality.representation.iterations=2"]

TINY = ["experiment=audio/notes", "debug=fast", *NETWORK, *NOTES]


@pytest.fixture(autouse=True)
def _seeded():
    """Every test draws the same random numbers, in whatever order and selection the tests run."""
    torch.manual_seed(0)


class Ran(NamedTuple):
    """What a command left behind: its exit status and what it printed, without progress bars."""

    status: int
    out: str
    err: str


def without_bars(text: str) -> str:
    """The lines of stderr that are not states of a progress bar."""
    lines = re.split(r"[\r\n]+", text)
    return "\n".join(line for line in lines if line.strip() and not re.search(r"\d+%\||\d+it \[", line))


class Numbers(Modality):
    """A made-up kind of data: text files of numbers, at most ``size`` of them; the core has never heard of it."""

    suffixes = (".txt",)
    suffix = ".txt"
    ragged = -1

    def __init__(self, size: int = 4, *, mean: float | None = None, std: float | None = None):
        self.size = size
        self.shape = (1, size)
        self.mean, self.std = mean or 0.0, std or 1.0

    def read(self, path, generator=None):
        try:
            values = [float(line) for line in path.read_text().split()]
        except (OSError, ValueError) as error:
            raise DataError(path, "is not made of numbers") from error
        return torch.tensor(values)[None, : self.size]

    def write(self, media, path):
        path.write_text("\n".join(map(str, media[0].tolist())))

    def encode(self, media):
        padded = torch.nn.functional.pad(media, (0, self.size - media.shape[-1]))
        return (padded - self.mean) / self.std

    def decode(self, x):
        return x * self.std + self.mean

    def mask(self, media):
        return (torch.arange(self.size) < media.shape[-1])[None] if media.shape[-1] < self.size else None

    def preview(self, media):
        return (media.clamp(0, 1) * 255).byte().expand(3, 1, media.shape[-1])

    def fit(self, media):
        values = torch.cat([m.flatten() for m in media])
        return {"mean": values.mean().item(), "std": values.std().item()}


@pytest.fixture
def numbers() -> Numbers:
    """A modality of four numbers."""
    return Numbers()


@contextlib.contextmanager
def as_a_process(folder: Path, *arguments: str) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Give what runs inside the arguments, folder, output and warnings of a process of its own; undo what it leaves."""
    out, err = io.StringIO(), io.StringIO()
    handlers, threads, state = logging.root.handlers[:], torch.get_num_threads(), torch.get_rng_state()
    with (
        mock.patch.object(sys, "argv", [*arguments]),
        mock.patch.dict(os.environ),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default", UserWarning)
        warnings.simplefilter("ignore", OldSpelling)
        warnings.filterwarnings("ignore", ".*found in sys.modules after import", RuntimeWarning)
        os.environ.pop("HYDRA_FULL_ERROR", None)
        try:
            yield out, err
        finally:
            logging.root.handlers[:] = handlers
            torch.set_num_threads(threads)
            torch.set_rng_state(state)


@pytest.fixture(scope="session")
def command() -> Callable[..., Ran]:
    """``command("train", "seed=1", folder=DIR)``: what ``mmdiff train seed=1`` does in DIR, in this process."""

    def run(*arguments: str, folder: Path) -> Ran:
        from mmdiff.cli import main

        status = 0
        with as_a_process(folder, "mmdiff", *map(str, arguments)) as (out, err):
            try:
                main()
            except SystemExit as end:
                status = end.code or 0
        return Ran(status, out.getvalue(), without_bars(err.getvalue()))

    return run


@pytest.fixture(scope="session")
def train() -> Callable[..., Ran]:
    """``train("seed=1", folder=DIR)``: the training of ``mmdiff train seed=1 output=DIR/run`` alone, twice as fast."""

    def run(*overrides: str, folder: Path) -> Ran:
        from hydra import compose, initialize_config_dir

        from mmdiff import plugins
        from mmdiff.cli.train import train

        plugins.register()
        with as_a_process(folder, "mmdiff") as (out, err):
            with initialize_config_dir(str(plugins.core_conf()), version_base="1.3"):
                config = compose("train", [*overrides, f"output={folder}/run"])
            warnings.simplefilter("error", UserWarning)
            warnings.simplefilter("ignore", OldSpelling)
            train(config)
        return Ran(0, out.getvalue(), without_bars(err.getvalue()))

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


@pytest.fixture(scope="session")
def files(checkpoint, tmp_path_factory) -> dict[str, list[str]]:
    """What some options cannot do without, by ``group=option``: two tuned steps, a table, a second checkpoint."""
    from mmdiff.schedules import Karras
    from mmdiff.solvers import dpmpp_2m
    from mmdiff.solvers.tuned import write
    from mmdiff.tuning import coefficients

    folder = tmp_path_factory.mktemp("files")
    write(coefficients(dpmpp_2m, Karras().grid(2)), folder / "two.json")
    (folder / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler", "beta_schedule": "linear"}')
    return {
        "solver=tuned": [f"solver.file={folder}/two.json"],
        "schedule=discrete": [f"schedule.file={folder}/scheduler_config.json"],
        "guidance=autoguidance": [f"guidance.weak={checkpoint}"],
    }
