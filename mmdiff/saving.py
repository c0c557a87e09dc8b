"""Checkpoints that a run can rely on: whole or not there, found again, and written before a signal ends the run."""

import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection

from mmdiff.checkpoint import load_dict
from mmdiff.errors import DataError

PARTIAL = ".partial"


class AtomicIO(TorchCheckpointIO):
    """Writes beside the old file, then takes its place: at every moment the path names a whole file, or none.

    Tensors are written row by row, however they lie in memory: when a checkpoint is split over processes, PyTorch sends
    them as they lie and reads them row by row.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write.

        Raises:
            DataError: if there is no room; the old file is untouched.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + PARTIAL)
        checkpoint = apply_to_collection(checkpoint, torch.Tensor, _row_by_row)
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            raise DataError(path, f"could not be written ({error}); an older checkpoint is untouched") from error


def _row_by_row(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor if it lies so, or a copy in main memory: devices have no room for one of everything."""
    return tensor if tensor.is_contiguous() else tensor.cpu().contiguous()


class Checkpoint(ModelCheckpoint):
    """Lightning's checkpoints, and one more when SIGTERM or SIGINT (Ctrl-C) asks the run to end.

    The step in hand is finished on all processes, saved, and the program exits with 128 plus the signal's number, as
    if the signal had ended it: 143 after SIGTERM, 130 after Ctrl-C. A second signal ends it at once. Several processes
    ask each other about once a second, since doing so waits for all and for their devices.
    """

    asked: int = 0
    every: int = 1  # steps between two questions
    left: int = 0  # of them
    since: float = 0.0  # the last one

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Listen for signals, in place of Lightning, which restores the handlers of before."""
        super().on_train_start(trainer, module)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._ask)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *arguments: Any) -> None:
        """Save when a step is done and it is time to, at the end, and when asked to end."""
        if trainer.fit_loop._should_accumulate():  # half of a step cannot be saved
            return
        super().on_train_batch_end(trainer, module, *arguments)
        if trainer.global_step == trainer.max_steps:
            self._save_now(trainer)
        asked = self.asked if trainer.world_size == 1 else self._asked_anywhere(trainer, module)
        if not asked:
            return
        self._save_now(trainer)
        if trainer.is_global_zero:
            name = signal.Signals(asked).name
            print(f"{name}: saved {self.last_model_path} at step {trainer.global_step}", file=sys.stderr)
        # The launcher kills everything when a process that it started fails; the first one tells the status.
        environment = getattr(trainer.strategy, "cluster_environment", None)
        sys.exit(0 if isinstance(environment, LightningEnvironment) and not trainer.is_global_zero else 128 + asked)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save after the last of ``trainer.max_epochs``, while weights and average are still apart."""
        super().on_train_epoch_end(trainer, module)
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._save_now(trainer)

    def _save_now(self, trainer: L.Trainer) -> None:
        if self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, {})

    def _asked_anywhere(self, trainer: L.Trainer, module: L.LightningModule) -> int:
        self.left -= 1
        if self.left > 0:
            return 0
        now = time.monotonic()
        state = torch.tensor([self.asked, now - self.since], device=module.device)
        asked, seconds = trainer.strategy.reduce(state, reduce_op="max").tolist()  # type: ignore[union-attr]
        self.every = max(min(int(self.every / max(seconds, 1e-3)), 2 * self.every), 1)
        self.left, self.since = self.every, now
        return int(asked)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = number


def newest(folder: str | Path) -> Path | None:
    """The checkpoint in a folder that was written last, None if there is none; files that are not whole are named."""
    for path in sorted(Path(folder).glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True):
        try:
            load_dict(path)
        except DataError as error:
            warnings.warn(f"passed over {error}", stacklevel=2)
        else:
            return path
    return None
