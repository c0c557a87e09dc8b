"""The handwritten digits of scikit-learn: a data set that needs no download, and a judge of generated digits.

The 1797 images of 8 x 8 pixels are shuffled once. The first 1200 are for the generative model; the judge is a support
vector machine that learns from the other 597 and never sees what the model learned from.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics import Metric

FOR_THE_MODEL = 1200


@cache
def digits() -> tuple[UInt8[np.ndarray, "n 1 8 8"], list[str]]:
    """All images, 0 to 255, and their labels, shuffled."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = np.rint(bunch.images[order, None] * 255 / 16).astype(np.uint8)
    return images, [str(label) for label in bunch.target[order]]


class Digits(Dataset):
    """The images for the generative model, with the condition ``label``: ``"0"`` to ``"9"``."""

    def __len__(self) -> int:
        return FOR_THE_MODEL

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "1 8 8"], dict[str, Any]]:
        images, labels = digits()
        place = range(len(self))[index]
        return torch.from_numpy(images[place].copy()), {"label": labels[place]}


@cache
def judge() -> SVC:
    """A classifier of flattened images, 0 to 255, that learned from the images which `Digits` leaves out."""
    images, labels = digits()
    return SVC(gamma="scale", C=10).fit(images[FOR_THE_MODEL:].reshape(-1, 64), labels[FOR_THE_MODEL:])


class DigitAccuracy(Metric):
    """The share of images that the judge reads as their condition ``label``."""

    higher_is_better = True
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("real_right", "real", "fake_right", "fake"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, media: UInt8[Tensor, "b 1 8 8"], *, real: bool, cond: dict[str, list[Any]]) -> None:
        """Read a batch of images; those without a label do not count."""
        read = judge().predict(media.cpu().flatten(1).numpy())
        right = [seen == str(asked) for seen, asked in zip(read, cond.get("label", []), strict=False) if asked]
        name = "real" if real else "fake"
        setattr(self, name, getattr(self, name) + len(right))
        setattr(self, f"{name}_right", getattr(self, f"{name}_right") + sum(right))

    def compute(self) -> dict[str, Tensor]:
        """``right`` of the generated images, and ``real_right`` of the real ones, which the judge has not seen."""
        return {"right": self.fake_right / self.fake, "real_right": self.real_right / self.real}
