"""Training: one Lightning module for all modalities."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard

from mmdiff.denoiser import Denoiser
from mmdiff.modality import Modality
from mmdiff.sampling import SeededNoise
from mmdiff.schedules import NoiseSchedule
from mmdiff.streams import BATCH, derive
from mmdiff.types import Batch, Coupling, Levels
from mmdiff.weighting import Weighting


class DiffusionModule(L.LightningModule):
    """Trains a denoiser to estimate clean data at the noise levels of a schedule.

    Args:
        denoiser: what is trained.
        modality: of the data; used by previews and saved with the model.
        train_schedule: distribution of the noise levels.
        optimizer: called with the parameters, for instance a partial of `torch.optim.AdamW`.
        lr: called with the optimizer; returns a scheduler that is stepped after every batch.
        weighting: loss weight of each noise level; the prediction type's own when None.
        levels: lets levels differ between the parts of an example (see `mmdiff.levels`); one for all when None.
        coupling: matches noise to data, for straighter paths of a flow; independent when None.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        modality: Modality,
        train_schedule: NoiseSchedule,
        optimizer: Callable[..., torch.optim.Optimizer],
        *,
        lr: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
        weighting: Weighting | None = None,
        levels: Levels | None = None,
        coupling: Coupling | None = None,
    ):
        super().__init__()
        self.denoiser = denoiser
        self.modality = modality
        self.train_schedule = train_schedule
        self.optimizer = optimizer
        self.lr = lr
        self.weighting = weighting
        self.levels = levels
        self.coupling = coupling
        self.seed: int | None = None  # of the run's streams; that of torch when training starts
        self.seen = 0  # examples so far, over all processes: the state of the streams
        self.place = 0  # of the latest batch of this process

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over all trainable parameters and its schedule, stepped per batch."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        optimizer.register_load_state_dict_post_hook(lay_out)
        if self.lr is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr(optimizer), "interval": "step"}}

    def configure_model(self) -> None:
        """Shard the weights where the strategy asks for it."""
        devices = self.device_mesh
        for part in (self.denoiser.network, self.denoiser.conditioner):
            if devices and not isinstance(part, FSDPModule) and any(True for _ in part.parameters()):
                for weights in part.parameters():
                    weights.data = weights.data.to(self.trainer.strategy.root_device).contiguous()
                fully_shard(part, mesh=devices["data_parallel"])

    def on_fit_start(self) -> None:
        """Agree on the seed of the run."""
        if self.seed is None:
            self.seed = self.trainer.strategy.broadcast(torch.initial_seed())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add ``stream``: all that random numbers and the order of the data depend on."""
        checkpoint["stream"] = {"seed": self.seed, "seen": self.seen, "turns": self._turns}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on in the stream; with other processes than before, Lightning's epoch begins here."""
        stream = checkpoint.get("stream")
        if stream is None:  # not of this module
            return
        self.seed, self.seen = stream["seed"], stream["seen"]
        if stream["turns"] != self._turns:
            batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            batches["is_last_batch"] = False
            batches["total"]["completed"] = batches["total"]["processed"]
            batches["current"] = dict.fromkeys(batches["current"], 0)

    @property
    def _turns(self) -> list[int]:
        return [self.trainer.world_size, self.trainer.accumulate_grad_batches]

    def loss(self, batch: Batch, sigma: Tensor, noise: Tensor) -> Tensor:
        """Mean loss of a batch at the given noise levels (see `mmdiff.denoiser.expand_sigma`) and noise."""
        return self.losses(batch, sigma, noise).mean()

    def losses(self, batch: Batch, sigma: Tensor, noise: Tensor) -> Tensor:
        """The same for each example."""
        conditioner = self.denoiser.conditioner
        known = {name: values for name, values in batch.cond.items() if name in conditioner.embedders}
        context = conditioner(known, len(batch.x))
        return self.denoiser.loss(batch.x, sigma, noise, context, mask=batch.mask, weighting=self.weighting)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss at noise levels that are stratified over all batches of the step.

        Random numbers depend on the place of the batch in the run alone (see `mmdiff.streams`), so two processes take
        the step that one takes on the same batches, accumulated.
        """
        assert self.seed is not None
        count, schedule = len(batch.x), self.train_schedule
        place = self.place = self.seen + self.global_rank * count
        self.seen += self.trainer.world_size * count
        torch.manual_seed(derive(self.seed, BATCH, place))
        world, accumulated = self._turns
        turn = index % accumulated * world + self.global_rank
        sigma = schedule.draw(count, rank=turn, world=world * accumulated).to(batch.x)
        if self.levels:
            sigma = self.levels(sigma, batch.x, schedule)
        noise = torch.randn_like(batch.x)
        if self.coupling:
            noise = self.coupling(batch.x, noise)
        loss = self.loss(batch, sigma, noise)
        self.log("train/loss", loss, prog_bar=True, batch_size=count)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Loss at the same levels and noise in every validation, so that its curve shows the model alone.

        And by noise: ``val/loss_q1`` is that of the lowest quarter of the training levels, ``val/loss_q4`` of the
        highest.
        """
        count = len(batch.x)
        sigma = self.train_schedule.quantile((torch.arange(count) + 0.5) / count)
        noise = SeededNoise(range(index * count, (index + 1) * count))(batch.x)
        losses = self.losses(batch, sigma.to(batch.x), noise)
        self.log("val/loss", losses.mean(), prog_bar=True, batch_size=count, sync_dist=True)
        for quarter, part in enumerate(losses.tensor_split(4), 1):
            if len(part):
                self.log(f"val/loss_q{quarter}", part.mean(), batch_size=len(part), sync_dist=True)


def lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the memory layout of their weights: fused kernels pair the two by their place in memory.

    The weights of a checkpoint may lie otherwise: those of convolutions are channels last, and split ones are not.
    """
    for weights, state in optimizer.state.items():
        for name, moment in state.items():
            if torch.is_tensor(moment) and moment.shape == weights.shape:
                state[name] = torch.empty_like(weights, dtype=moment.dtype).copy_(moment)
