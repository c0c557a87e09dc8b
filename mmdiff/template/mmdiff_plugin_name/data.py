"""Made-up data."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

KINDS = ("sine", "square", "saw")


class Waves(Dataset):
    """Waves of three kinds, of any frequency and phase, with a little noise; an index always gives the same one.

    Conditions are ``kind``, a label, and ``frequency``, the number of periods.

    Args:
        size: of the data set.
        length: of a wave.
        seed: of another data set of the same law.
    """

    def __init__(self, *, size: int = 4096, length: int = 64, seed: int = 0):
        self.size = size
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        generator = torch.Generator().manual_seed(self.seed * self.size + index)
        kind = KINDS[int(torch.randint(len(KINDS), (), generator=generator))]
        frequency, phase = (1 + 3 * torch.rand((), generator=generator)).item(), torch.rand((), generator=generator)
        turns = frequency * torch.arange(self.length) / self.length + phase
        sine = torch.sin(2 * math.pi * turns)
        wave = {"sine": sine, "square": sine.sign(), "saw": 2 * (turns % 1) - 1}[kind]
        noise = torch.randn(self.length, generator=generator)
        return (wave + 0.02 * noise)[None], {"kind": kind, "frequency": frequency}
