"""A run small enough to be cut and repeated, with randomness in every place that may have some."""

import json
from functools import partial
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from conftest import Numbers
from mmdiff.callbacks import EMA
from mmdiff.conditioning import ClassEmbedder, Conditioner
from mmdiff.data import DataModule
from mmdiff.denoiser import Denoiser
from mmdiff.lr import warmup_cosine
from mmdiff.module import DiffusionModule
from mmdiff.saving import AtomicIO, Checkpoint
from mmdiff.scaling import EDM
from mmdiff.schedules import LogNormal
from mmdiff.types import MediaSet

ADVICE = (
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:.*your dataloader is not resumable",
    "ignore:This DataLoader will create",
)
"""Warnings about such a run that its tests do not look at."""


class Cropped:
    """Numbers of 40 examples that are shifted at random whenever they are read, and listed then."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return index + torch.rand(1, 4), {"label": "ab"[index % 2], "id": index}


class Ragged:
    """Lists of 1 to 4 numbers, 41 of them."""

    def __len__(self):
        return 41

    def __getitem__(self, index):
        return torch.full((1, 1 + index % 4), float(index)), {"label": "ab"[index % 2], "id": index}


class Perceptron(nn.Module):
    """Two layers with dropout, for up to 4 numbers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4 + 1 + 8, 16), nn.SiLU(), nn.Dropout(0.2), nn.Linear(16, 4))

    def forward(self, x, noise, context):
        padded = F.pad(x[:, 0], (0, 4 - x.shape[2]))
        return self.layers(torch.cat([padded, noise[:, None], context.vector], 1))[:, None, : x.shape[2]]


class Seen(L.Callback):
    """Writes down what a process saw: for each batch the indices, the values and the loss."""

    def __init__(self, folder):
        self.folder, self.batches = folder, []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        # Lightning divides the loss by the batches that add up.
        loss = outputs["loss"].item() * trainer.accumulate_grad_batches
        self.batches.append((batch.cond["id"], batch.x.flatten().tolist(), loss))

    def on_train_end(self, trainer, module):
        (self.folder / f"seen{trainer.global_rank}.json").write_text(json.dumps(self.batches))


class Save(L.Callback):
    """Keeps a checkpoint of some steps, as they stand when a batch ends."""

    def __init__(self, folder, *steps):
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer, *_):
        path = self.folder / f"{trainer.global_step}.ckpt"
        if trainer.global_step in self.steps and not trainer.fit_loop._should_accumulate():
            trainer.save_checkpoint(path)


def make_module() -> DiffusionModule:
    torch.manual_seed(0)
    conditioner = Conditioner(8, {"label": ClassEmbedder(8, ["a", "b"], drop=0.3)})
    return DiffusionModule(
        Denoiser(Perceptron(), EDM(sigma_data=1.5), conditioner),
        Numbers(mean=20.0, std=12.0),
        LogNormal(mean=-0.5, std=1.2),
        partial(torch.optim.AdamW, lr=1e-2),
        lr=lambda o: torch.optim.lr_scheduler.LambdaLR(o, partial(warmup_cosine, warmup=3, total=30)),
    )


def fit(
    folder: Path,
    steps: int,
    *callbacks: L.Callback,
    keep: tuple[int, ...] = (),
    resume: Path | None = None,
    workers: int = 0,
    accumulate: int = 1,
    processes: int = 1,
    dataset: MediaSet | None = None,
    bucket: int = 0,
) -> dict:
    """Train for some steps; what the last checkpoint then holds, with the batches that each process saw."""
    folder.mkdir(exist_ok=True)
    module = make_module()
    data = DataModule(
        dataset or Cropped(), module.modality, batch_size=4, held_out=4, num_workers=workers, bucket=bucket
    )
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp_fork" if processes > 1 else "auto",
        devices=processes,
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        default_root_dir=folder,
        callbacks=[Seen(folder), EMA(), *callbacks, Save(folder, *keep, steps)],
        logger=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        plugins=AtomicIO(),
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    seen = [json.loads((folder / f"seen{rank}.json").read_text()) for rank in range(processes)]
    return torch.load(folder / f"{steps}.ckpt", weights_only=True) | {"seen": seen}


STATE = ("state_dict", "current_model_state", "ema", "optimizer_states", "lr_schedulers", "stream")


def assert_same(a, b, where="") -> None:
    """Bitwise, whatever is nested."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{i}")
    else:
        assert a == b, where


def assert_same_state(a: dict, b: dict) -> None:
    """Of two checkpoints: all that training goes on from."""
    for name in STATE:
        assert_same(a[name], b[name], name)
