"""Two processes, which talk by gloo as many GPUs would by NCCL."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch

from runs import ADVICE, assert_same_state, fit

pytestmark = pytest.mark.filterwarnings(
    *ADVICE,
    "ignore:.*use of fork:DeprecationWarning",
    "ignore:.*DistributedSampler",
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes: 10 steps, 4 in a pass over the data."""
    folder = tmp_path_factory.mktemp("two")
    return fit(folder, 10, keep=(3, 5), processes=2), folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same global batches by one process, which adds up two batches for a step."""
    folder = tmp_path_factory.mktemp("one")
    return fit(folder, 10, keep=(5,), accumulate=2), folder


def turns(seen: list) -> list:
    """Batches in the order of the run, of processes that take turns."""
    return [batch for step in zip(*seen, strict=True) for batch in step]


def assert_same_batches(got: list, expected: list) -> None:
    """The same examples, cropped the same, and losses to 1e-6: the same noise, levels, and dropped conditions."""
    assert [batch[:2] for batch in got] == [batch[:2] for batch in expected]
    assert [loss for *_, loss in got] == pytest.approx([loss for *_, loss in expected], rel=1e-6)


def test_two_processes_are_one(two, one):
    assert_same_batches(turns(two[0]["seen"]), one[0]["seen"][0])
    for name, value in one[0]["current_model_state"].items():
        torch.testing.assert_close(two[0]["current_model_state"][name], value, rtol=1e-5, atol=1e-6)
    assert two[0]["stream"] | {"turns": [1, 2]} == one[0]["stream"]


def test_two_processes_see_different_examples_and_noise(two):
    first, second = two[0]["seen"]
    for a, b in zip(first, second, strict=True):
        assert not set(a[0]) & set(b[0])
        assert a[2] != b[2]


def test_resumed_on_two_processes(two, tmp_path):
    expected, folder = two
    got = fit(tmp_path, 10, resume=folder / "3.ckpt", processes=2, workers=2)
    assert_same_state(got, expected)


def test_from_two_processes_to_one(two, one, tmp_path):
    got = fit(tmp_path, 10, resume=two[1] / "5.ckpt", accumulate=2)
    assert_same_batches(got["seen"][0], one[0]["seen"][0][10:])


def test_from_one_process_to_two(two, one, tmp_path):
    got = fit(tmp_path, 10, resume=one[1] / "5.ckpt", processes=2)
    assert_same_batches(turns(got["seen"]), turns(two[0]["seen"])[10:])


# The installed command


def options(tiny: list[str]) -> list[str]:
    return [*tiny, "trainer=ddp_cpu", "data.batch_size=1", "callbacks.preview.count=0"]


@pytest.mark.slow
def test_a_multirun_of_two_processes_each(tiny, process, tmp_path):
    ran = process("train", "-m", "seed=1,2", *options(tiny), "hydra.sweep.dir=sweep", folder=tmp_path)
    assert ran.status == 0, ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
    runs = sorted(tmp_path.glob("sweep/*/checkpoints/last.ckpt"))
    assert [run.parts[-3] for run in runs] == ["0", "1"]
    for seed, run in enumerate(runs, 1):
        content = torch.load(run, weights_only=True)
        assert content["stream"] == {"seed": seed, "seen": 4, "turns": [2, 1]}


@pytest.fixture(scope="module")
def launched(tiny, process, tmp_path_factory):
    """A run of two processes that Lightning starts."""
    folder = tmp_path_factory.mktemp("launched")
    ran = process("train", *options(tiny), "hydra.run.dir=run", folder=folder)
    assert ran.status == 0, ran.err
    return torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_torchrun(launched, tiny, environment, tmp_path):
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [*torchrun, "-m", "mmdiff.cli.train", *options(tiny), "hydra.run.dir=run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert_same_state(torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True), launched)


@pytest.mark.slow
def test_slurm(launched, tiny, program, environment, tmp_path):
    """Two processes with the variables that srun gives them."""
    job = {"JOB_ID": str(os.getpid()), "JOB_NAME": "notes", "NODELIST": "localhost", "JOB_NODELIST": "localhost"}
    job |= {"NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1", "JOB_NUM_NODES": "1", "NODEID": "0"}
    running = []
    for rank in map(str, range(2)):
        variables = {f"SLURM_{name}": value for name, value in (job | {"PROCID": rank, "LOCALID": rank}).items()}
        with (tmp_path / f"{rank}.log").open("w") as log:
            command = [program, "train", *options(tiny), "hydra.run.dir=run"]
            running.append(subprocess.Popen(command, cwd=tmp_path, env=environment | variables, stdout=log, stderr=log))
    for rank, one in enumerate(running):
        assert one.wait(300) == 0, (tmp_path / f"{rank}.log").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"0.log", "1.log", "run"}
    assert_same_state(torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True), launched)


@pytest.mark.slow
def test_sharded_training_resumes_and_samples_on_one_device(tiny, process, command, tmp_path):
    sharded = [*options(tiny), "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "hydra.run.dir=run"]
    sharded.remove("trainer=ddp_cpu")
    assert process("train", *sharded, folder=tmp_path) == (0, ANY, "")
    again = process("train", *sharded, "resume=auto", "trainer.max_steps=3", folder=tmp_path)
    assert (again.status, again.err) == (0, "")
    assert "going on from" in again.out
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert (content["global_step"], content["ema"]) == (3, {"count": 3})
    name = "denoiser.network.noise.weight"
    assert content["state_dict"][name].shape == content["current_model_state"][name].shape
    assert not torch.equal(content["state_dict"][name], content["current_model_state"][name])
    ran = command("sample", f"checkpoint={last}", "count=1", "steps=2", "output=out", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert (tmp_path / "out" / "00000.wav").is_file()


@pytest.mark.slow
def test_a_run_goes_on_split_or_whole(tiny, process, tmp_path):
    """Two steps split over processes and two on one device, or the other way, end where four split ones do.

    Convolutions keep their weights channels last on one device and row by row when split; a step is .05.
    """
    common = [*options(tiny), "optimizer.lr=0.05", "lr=constant"]
    common.remove("trainer=ddp_cpu")
    split = [*common, "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
    whole = [*common, "trainer.devices=1", "trainer.accumulate_grad_batches=2"]
    ends = {}
    for name, parts in {"split": [split], "first": [split, whole], "last": [whole, split]}.items():
        for i, part in enumerate(parts, 1):
            steps = f"trainer.max_steps={4 * i // len(parts)}"
            ran = process("train", *part, steps, f"hydra.run.dir={name}", "resume=auto", folder=tmp_path)
            assert (ran.status, ran.err) == (0, "")
        ends[name] = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
    for name, weights in ends["split"]["current_model_state"].items():
        for other in ("first", "last"):
            torch.testing.assert_close(ends[other]["current_model_state"][name], weights, rtol=0, atol=0.01)


@pytest.mark.slow
def test_sigterm_and_a_lost_process(tiny, program, environment, process, tmp_path):
    """The first process alone is told to end, as by `kill`; then the second one is killed."""
    long = [o for o in options(tiny) if o != "debug=fast"]
    long += ["trainer.max_steps=1000000", "callbacks.checkpoint.every_n_train_steps=3"]
    long += ["hydra.run.dir=run", "resume=auto"]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"

    def until_saved(log: Path) -> subprocess.Popen:
        saved = last.stat().st_mtime_ns if last.exists() else 0
        with log.open("w") as out:
            running = subprocess.Popen(
                [program, "train", *long], cwd=tmp_path, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + 200
        while not last.exists() or last.stat().st_mtime_ns == saved:
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return running

    log = tmp_path / "first.log"
    running = until_saved(log)
    running.send_signal(signal.SIGTERM)
    assert running.wait(100) == 143, log.read_text()
    step = torch.load(last, weights_only=True)["global_step"]
    assert f"SIGTERM: saved {last} at step {step}" in log.read_text()
    assert "Traceback" not in log.read_text()

    log = tmp_path / "second.log"
    running = until_saved(log)
    assert f"resume=auto: going on from {last}" in log.read_text()
    child = int(Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()[0])
    os.kill(child, signal.SIGKILL)
    assert running.wait(100) != 0
    assert torch.load(last, weights_only=True)["global_step"] > step
    assert "a process of the run was lost" in log.read_text()
