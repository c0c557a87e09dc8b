"""The device of a command."""

import torch


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
