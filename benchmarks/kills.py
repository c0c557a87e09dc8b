"""Kills a training at random moments, resumes it with resume=auto, and compares its end with that of a run left alone.

python benchmarks/kills.py            # 20 kills, one process, checkpoints at every step
python benchmarks/kills.py 20 2       # the same on two processes

A third of the kills come while a checkpoint is being written (when its partial file is there), a third after a random
number of steps, and a third at a random time, which may be before the first step. Every resume must find a whole
checkpoint and go on, and the last checkpoints of both runs must be the same, bit for bit.
"""

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from mmdiff import plugins
from mmdiff.cli.train import train

TINY = [
    "experiment=audio/notes",
    "network.width=8",
    "network.multipliers=[1, 2]",
    "network.attention=[]",
    "conditioner.features=16",
    "data.dataset.size=12",
    "data.held_out=2",
    "data.batch_size=2",
    "modality.seconds=0.3",
    "modality.representation.iterations=2",
    "callbacks.preview.count=0",
    "callbacks.checkpoint.every_n_train_steps=1",
    "trainer.val_check_interval=50",
]
STATE = ("state_dict", "current_model_state", "ema", "optimizer_states", "lr_schedulers", "stream")


def run(folder: Path, log: Path, options: list[str]) -> None:
    """What `mmdiff train` does with these options, in this process; its output goes to the log."""
    os.setsid()
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    plugins.register()
    with initialize_config_dir(str(plugins.core_conf()), version_base="1.3"):
        config = compose("train", [*TINY, *options, f"output={folder}"])
    train(config)


def start(folder: Path, log: Path, options: list[str]) -> multiprocessing.Process:
    """In a process of its own, forked so that it need not import anything."""
    running = multiprocessing.get_context("fork").Process(target=run, args=(folder, log, options))
    running.start()
    return running


def finish(folder: Path, log: Path, options: list[str]) -> None:
    running = start(folder, log, options)
    running.join()
    if running.exitcode:
        sys.exit(log.read_text())


def kill(running: multiprocessing.Process, moment: Callable[[], bool]) -> bool:
    """Kill it and the processes that it started once the moment has come; False if it ended before."""
    while running.is_alive():
        if moment():
            os.killpg(running.pid, signal.SIGKILL)
            running.join()
            return True
        time.sleep(0.0005)
    return False


def moments(folder: Path, chance: random.Random) -> list[tuple[str, Callable[[], bool]]]:
    """Ways to choose when to kill, begun anew at each call."""
    checkpoints = folder / "checkpoints"
    last = checkpoints / "last.ckpt"
    begun, seconds, saves = time.monotonic(), chance.uniform(0.5, 6), chance.randint(1, 8)
    seen: set[int] = {last.stat().st_mtime_ns} if last.exists() else set()

    def steps() -> bool:
        if last.exists():
            seen.add(last.stat().st_mtime_ns)
        return len(seen) > saves

    def writing() -> bool:
        return steps() and any(checkpoints.glob("*.partial"))

    return [
        ("while writing", writing),
        ("after steps", steps),
        ("at a time", lambda: time.monotonic() - begun > seconds),
    ]


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def state(folder: Path) -> dict:
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {name: content[name] for name in STATE}


def main(kills: int = 20, processes: int = 1, steps: int = 200, seed: int = 0) -> None:
    chance = random.Random(seed)
    options = [f"trainer.max_steps={steps}"]
    options += ["trainer=ddp_cpu", "trainer.strategy=ddp_fork"] if processes > 1 else ["trainer=cpu"]
    options += [f"trainer.devices={processes}"]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        alone, cut = Path(temporary) / "alone", Path(temporary) / "cut"
        logs = {folder: Path(temporary) / f"{folder.name}.log" for folder in (alone, cut)}
        finish(alone, logs[alone], options)
        done = 0
        while done < kills:
            name, moment = moments(cut, chance)[done % 3]
            if not kill(start(cut, logs[cut], [*options, "resume=auto"]), moment):
                sys.exit(f"the run ended before kill {done + 1} of {kills}; give more steps\n{logs[cut].read_text()}")
            done += 1
            last = cut / "checkpoints" / "last.ckpt"
            step = torch.load(last, weights_only=True)["global_step"] if last.exists() else None
            left = len(list(cut.glob("checkpoints/*.partial")))
            print(f"kill {done:2} {name:13} last whole checkpoint: step {step}, half-written files: {left}", flush=True)
        finish(cut, logs[cut], [*options, "resume=auto"])
        equal = same(state(alone), state(cut))
        verdict = "the same, bit for bit" if equal else "DIFFERENT"
        print(f"{kills} kills, {processes} process(es): the final states are {verdict}")
        sys.exit(not equal)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
