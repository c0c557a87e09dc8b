"""Guidance by a second checkpoint."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from mmdiff.checkpoint import check_same_model, load
from mmdiff.guidance import Guidance, autoguidance


class Autoguidance:
    """`mmdiff.guidance.autoguidance` by the model of a checkpoint, which hears of the conditions that it knows.

    Args:
        weak: a checkpoint, a run's folder or an exported one with a smaller or less trained model of the same modality.
        scale: 1 is no guidance.

    Raises:
        DataError: if it cannot be loaded.
    """

    def __init__(self, weak: str | Path, scale: float = 2.0):
        self.denoiser = load(weak).denoiser
        self.scale = scale

    def ask(self, cond: Mapping[str, Sequence[Any]], count: int, device: torch.device) -> Guidance:
        """See `mmdiff.guidance.Asking`."""
        denoiser = self.denoiser.to(device)
        known = {name: values for name, values in cond.items() if name in denoiser.conditioner.embedders}
        weak = partial(denoiser, context=denoiser.conditioner(known, count))
        return partial(autoguidance, weak=weak, scale=self.scale)


def check_guidance(guidance: DictConfig, config: DictConfig) -> None:
    """Check that a second model, if the guidance has one, is of the modality of a configuration.

    Raises:
        ValueError: naming what differs.
    """
    weak = guidance.get("weak")
    if weak is not None:
        check_same_model(weak, config, option="guidance.weak", parts=["modality"])
