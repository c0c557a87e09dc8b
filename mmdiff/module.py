"""Training: one Lightning module for all modalities."""

from collections.abc import Callable

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mmdiff.denoiser import Denoiser
from mmdiff.modality import Modality
from mmdiff.sampling import SeededNoise
from mmdiff.schedules import NoiseSchedule
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

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over all trainable parameters and its schedule, stepped per batch."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.lr is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr(optimizer), "interval": "step"}}

    def on_fit_start(self) -> None:
        """Give every process a random stream of its own; with one seed for all they would draw the same noise."""
        if self.trainer.world_size > 1:
            torch.manual_seed(torch.initial_seed() + self.global_rank)

    def loss(self, batch: Batch, sigma: Tensor, noise: Tensor) -> Tensor:
        """Mean loss of a batch at the given noise levels (see `mmdiff.denoiser.expand_sigma`) and noise."""
        conditioner = self.denoiser.conditioner
        known = {name: values for name, values in batch.cond.items() if name in conditioner.embedders}
        context = conditioner(known, len(batch.x))
        return self.denoiser.loss(batch.x, sigma, noise, context, mask=batch.mask, weighting=self.weighting).mean()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss at noise levels that are stratified over the global batch."""
        schedule = self.train_schedule
        sigma = schedule.draw(len(batch.x), rank=self.global_rank, world=self.trainer.world_size).to(batch.x)
        if self.levels:
            sigma = self.levels(sigma, batch.x, schedule)
        noise = torch.randn_like(batch.x)
        if self.coupling:
            noise = self.coupling(batch.x, noise)
        loss = self.loss(batch, sigma, noise)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.x))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Loss at the same levels and noise in every validation, so that its curve shows the model alone."""
        count = len(batch.x)
        sigma = self.train_schedule.quantile((torch.arange(count) + 0.5) / count)
        noise = SeededNoise(range(index * count, (index + 1) * count))(batch.x)
        loss = self.loss(batch, sigma.to(batch.x), noise)
        self.log("val/loss", loss, prog_bar=True, batch_size=count, sync_dist=True)
