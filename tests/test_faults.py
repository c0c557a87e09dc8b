"""What goes wrong in a long run, and what is said and saved then."""

import json
import logging
import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch

from mmdiff import DataError
from mmdiff.callbacks import Finite
from mmdiff.checkpoint import load_dict
from mmdiff.cli.train import processes, quiet
from mmdiff.data import DataModule
from mmdiff.folder import Folder
from mmdiff.saving import Checkpoint
from runs import Cropped, fit

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:This DataLoader will create",
)


@pytest.fixture
def poisoned(tmp_path, numbers) -> Folder:
    """Eight files of numbers, of which two hold what is no number."""
    for i in range(8):
        (tmp_path / f"{i}.txt").write_text(f"{i} {i} {i} {'nan' if i == 3 else 'inf' if i == 5 else i}")
    return Folder(tmp_path, numbers)


@pytest.mark.parametrize("workers", [0, 1])
def test_poisoned_examples_are_named_and_passed_over(workers, poisoned, numbers, capfd, monkeypatch):
    data = DataModule(poisoned, numbers, batch_size=1, held_out=1, num_workers=workers)
    data.train.indices = list(range(8))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: print(message, file=sys.stderr))
        loader = data.train_dataloader()
        seen = [batch.x[0, 0, 0].item() for _ in range(2) for batch in loader]
    assert sorted(seen) == sorted([0, 1, 2, 4, 4, 6, 6, 7] * 2)
    said = capfd.readouterr().err
    for name in ("3.txt", "5.txt"):
        assert said.count(f"skipped {poisoned.root}/{name}: holds nan or infinite values") == 1


def test_too_many_poisoned_examples(poisoned, numbers):
    data = DataModule(poisoned, numbers, batch_size=1, held_out=1, max_bad=1)
    data.train.indices = list(range(8))
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(DataError, match=r"[35]\.txt: holds nan or infinite values, as 1 examples before it did"),
    ):
        list(data.train_dataloader())


class Exploding(Cropped):
    """One example is finite, but its squared error is not."""

    def __getitem__(self, index):
        media, cond = super().__getitem__(index)
        return (media * 1e30 if index == 17 else media), cond


def test_a_loss_that_is_no_number_ends_the_run_and_names_its_batch(tmp_path):
    checkpoint = Checkpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=1)
    with pytest.raises(ValueError, match="the loss is not finite since step") as caught:
        fit(tmp_path, 22, Finite(tmp_path), checkpoint, dataset=Exploding())
    assert str(tmp_path / "nonfinite.json") in str(caught.value)
    found = json.loads((tmp_path / "nonfinite.json").read_text())
    assert "example 17" in found["examples"]
    assert len(found["examples"]) == 4
    content = load_dict(tmp_path / "last.ckpt")
    assert content["stream"]["seen"] == found["first_example_of_run"]
    assert all(value.isfinite().all() for value in content["current_model_state"].values())


class Deadly(Cropped):
    """Reading one example kills the process, as the system does when memory is short."""

    def __getitem__(self, index):
        if index == 17 and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_worker(tmp_path):
    with pytest.raises(OSError, match=r"a process of the run was lost.*DataLoader worker"), processes(1):
        fit(tmp_path, 22, workers=1, dataset=Deadly())


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), BrokenPipeError(32, "Broken pipe")]
)
def test_a_connection_that_breaks_is_a_lost_process(error):
    named = rf"a process of the run was lost, the last checkpoint is whole .*{error.strerror}"
    with pytest.raises(OSError, match=named), processes(1):
        raise error


def test_lightning_says_it_when_it_ends_a_run_that_lost_a_process(monkeypatch, caplog):
    from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

    quiet()
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(3)"])
    child.wait()
    ended = []
    monkeypatch.setattr(_ChildProcessObserver, "_terminate_all", lambda self: ended.append(self))
    for name in ("lightning", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    assert _ChildProcessObserver(os.getpid(), [child])._run()
    assert ended
    assert "a process of the run was lost, the last checkpoint is whole ([rank: 1] Child process" in caplog.text
