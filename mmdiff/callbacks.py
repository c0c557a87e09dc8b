"""What happens around training steps: averaged weights, previews, the configuration in the checkpoint, progress."""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from mmdiff.logs import log_picture
from mmdiff.module import DiffusionModule
from mmdiff.pictures import describe, save_grid
from mmdiff.sampling import Sampler
from mmdiff.types import Batch


class EMA(Callback):
    """Average of the weights whose memory grows with the run: the power-function profile of Karras et al. 2024 (EDM2).

    After n steps the decay is (1 - 1/n)^(gamma + 1), so the average covers the same share of a run of any length
    and forgets the initialization by itself. Validation, previews and saved checkpoints use the averaged weights.
    Of sharded weights every process averages its own part, which Lightning's `WeightAveraging` does not.

    Args:
        gamma: exponent of the profile; 16.97 has a relative width of 5 % of the run, 6.94 of 10 %.
    """

    def __init__(self, gamma: float = 16.97):
        if gamma < 0:
            raise ValueError(f"callbacks.ema.gamma must not be negative, got {gamma:g}.")
        self.gamma = gamma
        self.count = 0  # weights in the average
        self.average: list[Tensor] = []
        self.current: dict[str, Any] | None = None  # of a checkpoint, until training starts

    def decay(self, count: int) -> float:
        """What an average of that many weights keeps of itself when one more is added."""
        return (1 - 1 / (count + 1)) ** (self.gamma + 1)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Set the average apart; that of a checkpoint is in the module, as its weights."""
        self.average = [weights.clone() for weights in _local(module)]
        if self.current is not None:
            set_model_state_dict(module, self.current, options=StateDictOptions(full_state_dict=True))
            self.current = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Add the weights to the average when a step is done."""
        if trainer.global_step > self.count:
            torch._foreach_lerp_(self.average, _local(module), 1 - self.decay(self.count))
            self.count = trainer.global_step

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Put the average in place of the weights."""
        self._swap(module)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Put the weights back."""
        self._swap(module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave the average in the module."""
        self._swap(module)
        self.average = []

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as ``state_dict``, the weights as ``current_model_state``."""
        if not self.average:
            return
        checkpoint["ema"] = {"count": self.count}
        checkpoint["current_model_state"] = _copy(checkpoint["state_dict"])
        self._swap(module)
        checkpoint["state_dict"] = _copy(trainer.strategy.lightning_module_state_dict())
        self._swap(module)

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the average of a checkpoint; of one without, with its weights."""
        if "ema" in checkpoint:
            self.count, self.current = checkpoint["ema"]["count"], checkpoint["current_model_state"]

    @torch.no_grad()
    def _swap(self, module: L.LightningModule) -> None:
        for average, weights in zip(self.average, _local(module), strict=bool(self.average)):
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)


def _local(module: torch.nn.Module) -> list[Tensor]:
    """The parameters, of sharded ones the part of this process."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # after a validation they are whole
    return [p.to_local() if isinstance(p, DTensor) else p.detach() for p in module.parameters()]


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.empty_like(value, device="cpu").copy_(value) for name, value in state.items()}


class ConfigInCheckpoint(Callback):
    """Makes a checkpoint describe itself.

    Args:
        config: the resolved configuration, plain dictionaries, lists and values.
    """

    def __init__(self, config: dict[str, Any]):
        self.config = config

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add ``config``."""
        checkpoint["config"] = self.config


class Preview(Callback):
    """Samples with the conditions of held-out examples at every validation: files, and a picture of them, also in logs.

    Args:
        sampler: how to sample.
        folder: gets ``step_<n>.png`` and the folder ``step_<n>`` at each validation.
        count: samples; 0 for none.
    """

    def __init__(self, sampler: Sampler, folder: str | Path, count: int = 4):
        self.sampler = sampler
        self.folder = Path(folder)
        self.count = count

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Sample and write."""
        if trainer.sanity_checking or not self.count or not trainer.is_global_zero:
            return
        if isinstance(trainer.strategy, ModelParallelStrategy):  # one process alone has no whole network
            return
        assert isinstance(module, DiffusionModule)
        held_out = trainer.datamodule.held_out  # type: ignore[attr-defined]
        conds = [held_out[i][1] for i in range(min(self.count, len(held_out)))]
        names = module.denoiser.conditioner.embedders
        cond = {name: [c.get(name) for c in conds] for name in names}
        modality = module.modality
        x = self.sampler(module.denoiser, modality.shape, cond, range(len(conds)), time=modality.time)
        media = modality.decode(x.cpu())
        folder = self.folder / f"step_{trainer.global_step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        for i, item in enumerate(media):
            modality.write(item, folder / f"{i:05d}{modality.suffix}")
        pictures = [modality.preview(item) for item in media]
        labels = [describe({name: c.get(name) for name in names}) for c in conds]
        grid = folder.with_suffix(".png")
        save_grid(pictures, labels, grid)
        for logger in trainer.loggers:
            log_picture(logger, "previews", grid, trainer.global_step)


class Finite(Callback):
    """Ends a run whose loss is no number any more, before what it made of the weights is saved.

    Losses are looked at when they are logged and before a checkpoint, since reading them waits for the device.

    Args:
        folder: gets ``nonfinite.json``, which names the examples of the first such batch.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.losses: list[tuple[int, int, Tensor]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        """Look at the losses since the last time, every ``trainer.log_every_n_steps`` batches."""
        assert isinstance(module, DiffusionModule)
        self.losses.append((module.place, len(batch.x), outputs["loss"].detach()))
        if (index + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.check(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at the losses before they are in a file."""
        self.check(trainer)

    def check(self, trainer: L.Trainer) -> None:
        """End the run on all processes if a loss is not finite.

        Raises:
            ValueError: naming the file that names the examples.
        """
        losses, self.losses = self.losses, []
        finite = torch.stack([loss for *_, loss in losses]).isfinite().tolist() if losses else []
        if not trainer.strategy.reduce_boolean_decision(not all(finite), all=False):
            return
        path = self.folder / ("nonfinite.json" if trainer.global_rank == 0 else f"nonfinite_{trainer.global_rank}.json")
        if not all(finite):
            place, count, loss = losses[finite.index(False)]
            names = trainer.datamodule.names(place, count)  # type: ignore[attr-defined]
            found = {"loss": str(loss.item()), "first_example_of_run": place, "examples": names}
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        raise ValueError(
            f"the loss is not finite since step {trainer.global_step} or shortly before; {path} names the examples of "
            "the first such batch. The last checkpoint is from before it; a smaller optimizer.lr may help."
        )


class Speed(Callback):
    """Logs ``examples_per_second``, of all processes, beside the losses."""

    def __init__(self) -> None:
        self.since: tuple[float, int] | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        """Count; a validation in between is not counted."""
        assert isinstance(module, DiffusionModule)
        now = time.monotonic(), module.seen
        if self.since is None:
            self.since = now
        elif (index + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            (start, before), self.since = self.since, now
            module.log("examples_per_second", (module.seen - before) / (now[0] - start))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin anew."""
        self.since = None


class Progress(ProgressBar):
    """One bar over the whole run in steps, with rate, remaining time and the latest losses."""

    def __init__(self) -> None:
        super().__init__()
        self.bar = tqdm(disable=True)
        self.enabled = True
        self.shown = 0.0

    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self.enabled = False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Open the bar, at the step where a resumed run goes on."""
        total = trainer.max_steps if trainer.max_steps > 0 else int(trainer.estimated_stepping_batches)
        self.bar = tqdm(
            total=total, initial=trainer.global_step, unit="step", disable=not self.enabled, dynamic_ncols=True
        )

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Advance; losses are read once a second, since reading waits for the device."""
        self.bar.update(trainer.global_step - self.bar.n)
        now = time.monotonic()
        if now - self.shown > 1:
            self.shown = now
            metrics = trainer.progress_bar_metrics
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in metrics.items()}, refresh=False)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Close the bar."""
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self.bar.close()
