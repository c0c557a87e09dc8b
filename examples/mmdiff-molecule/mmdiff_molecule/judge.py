"""How many molecules are valid, and as asked."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from mmdiff_molecule.chemistry import bond_orders, graph_name, is_valid, rings

ELEMENTS = {"hydrogen": 1, "carbon": 6, "nitrogen": 7, "oxygen": 8}


class MoleculeAccuracy(Metric):
    """Shares of the generated molecules; see `mmdiff_molecule.chemistry` for what is valid."""

    higher_is_better = True
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "valid", "as_asked", "real", "real_valid"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")
        self.kinds: set[str] = set()

    def update(self, media: Float[Tensor, "b n 4"], *, real: bool, cond: dict[str, list[Any]]) -> None:
        """Judge a batch; conditions that are not given count as met."""
        for i, molecule in enumerate(media.cpu()):
            there = molecule[:, 3] > 0
            numbers, points = molecule[there, 3].long(), molecule[there, :3]
            valid = is_valid(numbers, points)
            if real:
                self.real, self.real_valid = self.real + 1, self.real_valid + valid
                continue
            self.count, self.valid = self.count + 1, self.valid + valid
            if valid:
                orders = bond_orders(numbers, points)
                self.kinds.add(graph_name(numbers, orders))
                seen = {name: int((numbers == number).sum()) for name, number in ELEMENTS.items()}
                seen["ring"] = "yes" if rings(orders) else "no"
                asked = {name: values[i] for name, values in cond.items() if values[i] is not None}
                self.as_asked = self.as_asked + all(seen.get(name, value) == value for name, value in asked.items())

    def reset(self) -> None:
        """Forget all."""
        super().reset()
        self.kinds = set()

    def compute(self) -> dict[str, Tensor]:
        """``valid``, ``as_asked`` (valid, with the asked formula and ring), ``real_valid`` and ``kinds``.

        The last is the number of different molecules, by atoms and bonds, among the valid ones.
        """
        return {
            "valid": self.valid / self.count,
            "as_asked": self.as_asked / self.count,
            "real_valid": self.real_valid / self.real,
            "kinds": torch.tensor(float(len(self.kinds))),
        }
