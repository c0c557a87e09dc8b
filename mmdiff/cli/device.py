"""The device of a command, and its processes."""

from datetime import timedelta

import torch
from lightning import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig


def choose(name: str) -> torch.device:
    """The named device; ``auto`` is the accelerator if there is one.

    Raises:
        ValueError: for a device that this machine does not have.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    allowed = ["auto", "cpu", *([accelerator.type] if accelerator else [])]
    if name.partition(":")[0] not in allowed:
        raise ValueError(f"device must be one of {', '.join(allowed)} on this machine, got {name}.")
    return torch.device(name)


def launch(trainer: DictConfig) -> Fabric:
    """Start the processes of a trainer's configuration, one for each of its devices; each has a whole model.

    They only wait for each other, which gloo does on all devices; not forever, lest one stays behind when others died.

    Raises:
        ValueError: for devices that this machine does not have.
    """
    try:
        fabric = Fabric(
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            num_nodes=trainer.get("num_nodes", 1),
            strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(hours=2)),
        )
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    fabric.launch()
    return fabric
