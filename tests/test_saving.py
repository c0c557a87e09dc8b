"""Checkpoints that survive: half-written files, full disks, kills, and signals that ask a run to end."""

import errno
import itertools
import multiprocessing
import os
import signal
import time
from copy import deepcopy
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from lightning_utilities.core.apply_func import apply_to_collection

from mmdiff import DataError, saving
from mmdiff.checkpoint import load_dict
from mmdiff.module import lay_out
from mmdiff.saving import AtomicIO, Checkpoint, newest
from runs import assert_same_state, fit

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:.*your dataloader is not resumable",
    "ignore:.*exists and is not empty",
    "ignore:Be aware that when using `ckpt_path`",
    "ignore:The dirpath has changed",
    "ignore:.*use of fork:DeprecationWarning",
)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicIO().save_checkpoint({"step": 1}, path)
    written = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving.os, "fsync", full)
    with pytest.raises(DataError, match=r"last\.ckpt: could not be written \(.*No space left on device\)"):
        AtomicIO().save_checkpoint({"step": 2, "weights": torch.zeros(1000)}, path)
    assert path.read_bytes() == written
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_tensors_are_written_row_by_row(tmp_path):
    weights = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    AtomicIO().save_checkpoint({"states": [{"weights": weights}]}, tmp_path / "a.ckpt")
    written = torch.load(tmp_path / "a.ckpt")["states"][0]["weights"]
    assert written.is_contiguous()
    assert torch.equal(written, weights)


def test_moments_of_a_checkpoint_lie_as_their_weights():
    """The optimizer goes on as if it had not been loaded, though its weights are channels last and the moments not."""
    expected, got = (torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last) for _ in range(2))
    x = torch.randn(2, 3, 5, 5)
    optimizers = [torch.optim.AdamW(net.parameters(), lr=0.1, fused=True) for net in (expected, got)]

    def step(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()

    step(expected, optimizers[0])
    saved = apply_to_collection(deepcopy(optimizers[0].state_dict()), torch.Tensor, torch.Tensor.contiguous)
    got.load_state_dict(expected.state_dict())
    optimizers[1].load_state_dict(saved)
    lay_out(optimizers[1])
    for net, optimizer in zip((expected, got), optimizers, strict=True):
        step(net, optimizer)
    assert torch.equal(got.weight, expected.weight)


def test_the_newest_whole_checkpoint(tmp_path):
    assert newest(tmp_path / "nowhere") is None
    for i, name in enumerate(["old.ckpt", "new.ckpt", "cut.ckpt"]):
        AtomicIO().save_checkpoint({"step": i}, tmp_path / name)
        os.utime(tmp_path / name, ns=(i, i))
    content = (tmp_path / "cut.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: len(content) // 2])
    (tmp_path / "last.ckpt.partial").write_bytes(content)
    with pytest.warns(UserWarning, match=r"passed over .*cut\.ckpt: is not a whole checkpoint"):
        assert newest(tmp_path) == tmp_path / "new.ckpt"


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """A run that nothing happens to."""
    return fit(tmp_path_factory.mktemp("whole"), 22)


def every_step(folder) -> Checkpoint:
    return Checkpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=1, enable_version_counter=False)


def test_killed_at_any_moment(expected, tmp_path):
    """By SIGKILL, while a checkpoint is being written and in between: `benchmarks/kills.py` does more of it."""
    fork = multiprocessing.get_context("fork")
    last = tmp_path / "last.ckpt"
    for saves, writing in ((2, True), (3, False), (1, True), (4, False)):
        child = fork.Process(target=fit, args=(tmp_path, 22, every_step(tmp_path)), kwargs={"resume": newest(tmp_path)})
        child.start()
        seen = {last.stat().st_mtime_ns} if last.exists() else set()
        deadline = time.monotonic() + 60
        while len(seen) < saves or (writing and not list(tmp_path.glob("*.partial"))):
            assert child.is_alive()
            assert time.monotonic() < deadline
            if last.exists():
                seen.add(last.stat().st_mtime_ns)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert newest(tmp_path) == last
    assert load_dict(last)["global_step"] < 22
    assert_same_state(fit(tmp_path, 22, every_step(tmp_path), resume=last), expected)


class Send(L.Callback):
    """Sends this process a signal before a batch."""

    def __init__(self, number, batch):
        self.number, self.batch = number, batch

    def on_train_batch_start(self, trainer, module, batch, index):
        if module.seen == 4 * self.batch:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_the_step(number, status, expected, tmp_path, capsys):
    before = signal.getsignal(number)
    checkpoint = Checkpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=1000)
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, 22, checkpoint, Send(number, 12))
    assert end.value.code == status
    assert f"saved {tmp_path}/last.ckpt at step 13" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    assert load_dict(tmp_path / "last.ckpt")["global_step"] == 13
    assert_same_state(fit(tmp_path, 22, resume=tmp_path / "last.ckpt"), expected)


def test_a_signal_between_the_batches_of_a_step(tmp_path):
    checkpoint = Checkpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=1000)
    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", 8, checkpoint, Send(signal.SIGTERM, 6), accumulate=2)
    content = load_dict(tmp_path / "last.ckpt")
    assert (content["global_step"], content["stream"]["seen"]) == (4, 4 * 2 * 4)
    whole = fit(tmp_path / "whole", 8, accumulate=2)
    assert_same_state(fit(tmp_path / "more", 8, resume=tmp_path / "last.ckpt", accumulate=2), whole)


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.02, 6, 12), (0.3, 30, 40), (3.0, 100, 100)])
def test_processes_ask_each_other_about_once_a_second(seconds, least, most, monkeypatch, tmp_path):
    asked, step = [], 0
    monkeypatch.setattr(time, "monotonic", lambda: 1e6 + seconds * step)

    def reduce(state, reduce_op):
        asked.append(step)
        return torch.stack([state, torch.tensor([signal.SIGTERM if step > 90 else 0.0, 0.0])]).amax(0)

    trainer, module = Mock(spec=L.Trainer), Mock(spec=L.LightningModule, device=torch.device("cpu"))
    trainer.strategy.reduce = reduce
    checkpoint = Checkpoint(tmp_path)
    answers = []
    while step < 100:
        answers.append(checkpoint._asked_anywhere(trainer, module))
        step += 1
    assert least <= len(asked) <= most
    assert max(b - a for a, b in itertools.pairwise(asked)) * seconds <= max(1, seconds)
    assert answers == [signal.SIGTERM if n in asked and n > 90 else 0 for n in range(100)]


def test_the_end_of_a_run_is_saved(expected, tmp_path):
    """Also where it falls between two regular checkpoints; and the run can go on from it."""
    checkpoint = Checkpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=4)
    fit(tmp_path, 7, checkpoint)
    assert load_dict(tmp_path / "last.ckpt")["global_step"] == 7
    assert_same_state(fit(tmp_path, 22, resume=tmp_path / "last.ckpt"), expected)
