"""Weak scaling on this machine: steps per second of two processes beside one, ours and bare DDP on the same network.

python benchmarks/scaling.py           # 3 rounds of 30 steps

Every process has one thread and the same batch size, so a machine with a free core for each would keep its speed: the
efficiency is the speed of two processes over that of one. Ours is a whole training by `mmdiff.module` with its data
loader, average, clipping and callbacks; the bare one is forward, backward and AdamW under DistributedDataParallel on a
batch that lies ready. Rounds alternate, and the median of each is told.
"""

import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from mmdiff.callbacks import EMA, Finite, Speed
from mmdiff.conditioning import Conditioner
from mmdiff.data import DataModule
from mmdiff.denoiser import Denoiser
from mmdiff.modality import Modality
from mmdiff.module import DiffusionModule
from mmdiff.nn.unet import UNet
from mmdiff.saving import Checkpoint
from mmdiff.scaling import EDM
from mmdiff.schedules import LogNormal

SHAPE, FEATURES, BATCH, WARMUP = (1, 32, 32), 64, 4, 3


class Field(Modality):
    """Random fields, to train on."""

    shape, suffixes, suffix = SHAPE, (".pt",), ".pt"

    def read(self, path, generator=None):
        return torch.load(path, weights_only=True)

    def write(self, media, path):
        torch.save(media, path)

    def encode(self, media):
        return media

    def decode(self, x):
        return x

    def preview(self, media):
        return (media.clamp(0, 1) * 255).byte().expand(3, -1, -1)


def make_module() -> DiffusionModule:
    torch.manual_seed(0)
    network = UNet(SHAPE, FEATURES, width=32, multipliers=(1, 2, 3), attention=(2,))
    denoiser = Denoiser(network, EDM(), Conditioner(FEATURES, {}))
    return DiffusionModule(denoiser, Field(), LogNormal(mean=-0.5, std=1.2), partial(torch.optim.AdamW, lr=1e-4))


class Clock(L.Callback):
    """When each step ended, kept in a file by the first process."""

    def __init__(self, path: Path):
        self.path, self.times = path, []

    def on_train_batch_end(self, *_):
        self.times.append(time.perf_counter())

    def on_train_end(self, trainer, module):
        if trainer.is_global_zero:
            self.path.write_text(str((len(self.times) - 1 - WARMUP) / (self.times[-1] - self.times[WARMUP])))


def ours(world: int, steps: int, folder: Path) -> None:
    module = make_module()
    data = [(torch.randn(SHAPE), {}) for _ in range(64)]
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp_fork" if world > 1 else "auto",
        devices=world,
        max_steps=steps + WARMUP + 1,
        max_epochs=-1,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            Clock(folder / "speed"),
            EMA(),
            Finite(folder),
            Speed(),
            Checkpoint(folder, every_n_train_steps=10**6),
        ],
        default_root_dir=folder,
    )
    trainer.fit(module, DataModule(data, module.modality, batch_size=BATCH, held_out=1))


def bare_process(rank: int, world: int, steps: int, folder: Path) -> None:
    torch.set_num_threads(1)
    network = make_module().denoiser.train()
    if world > 1:
        distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    model = DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x, sigma, context = torch.randn(BATCH, *SHAPE), torch.rand(BATCH) + 0.1, network.conditioner({}, BATCH)
    times = []
    for _ in range(steps + WARMUP + 1):
        optimizer.zero_grad()
        noise = torch.randn_like(x)
        ((model(x + sigma[:, None, None, None] * noise, sigma, context) - x) ** 2).mean().backward()
        optimizer.step()
        times.append(time.perf_counter())
    if rank == 0:
        (folder / "speed").write_text(str(steps / (times[-1] - times[WARMUP])))


def bare(world: int, steps: int, folder: Path) -> None:
    multiprocessing.start_processes(bare_process, (world, steps, folder), world, start_method="fork")


def main(rounds: int = 3, steps: int = 30) -> None:
    torch.set_num_threads(1)
    speeds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for run in (ours, bare):
            for world in (1, 2):
                with tempfile.TemporaryDirectory() as folder:
                    run(world, steps, Path(folder))
                    speeds.setdefault((run.__name__, world), []).append(float((Path(folder) / "speed").read_text()))
    median = {key: statistics.median(values) for key, values in speeds.items()}
    print("| training | steps/s, 1 process | steps/s of each of 2 | efficiency |\n|---|---|---|---|")
    efficiency = {}
    for name in ("ours", "bare"):
        efficiency[name] = median[name, 2] / median[name, 1]
        print(f"| {name} | {median[name, 1]:.2f} | {median[name, 2]:.2f} | {efficiency[name]:.3f} |")
    print(f"ours over bare DDP: {efficiency['ours'] / efficiency['bare']:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
