"""Bonds from distances, and whether they satisfy the valences; for molecules of H, C, N and O.

Two atoms are bonded where their distance is less than `BONDED` times the sum of their covalent radii (Cordero et al.
2008). Between heavy atoms the ratio also tells the order: single bonds have one near 1 (C-C 1.01, C-O 1.01, C-N 1.00),
double ones near 0.87 (C=C 0.88, C=O 0.85, C=N 0.87), triple ones near 0.79 (C#C, C#N).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O"}
VALENCES = {1: 1, 6: 4, 7: 3, 8: 2}
RADII = {1: 0.31, 6: 0.76, 7: 0.71, 8: 0.66}
"""Covalent, in angstrom."""

BONDED, DOUBLE, TRIPLE, OVERLAPPING = 1.25, 0.925, 0.83, 0.7
"""Ratios of a distance to the sum of the radii, below which there is a bond, a double, a triple one, a collision."""


def bond_orders(numbers: Int[Tensor, "n"], points: Float[Tensor, "n 3"]) -> Int[Tensor, "n n"]:
    """Orders of the bonds between atoms, 0 where there is none, -1 where two atoms collide.

    Args:
        numbers: atomic numbers.
        points: coordinates in angstrom.
    """
    radii = torch.tensor([RADII[number] for number in numbers.tolist()])
    ratio = torch.cdist(points, points) / (radii[:, None] + radii)
    heavy = (numbers > 1)[:, None] & (numbers > 1)
    orders = (ratio < BONDED).long() + (heavy & (ratio < DOUBLE)).long() + (heavy & (ratio < TRIPLE)).long()
    return orders.masked_fill(ratio < OVERLAPPING, -1).fill_diagonal_(0)


def is_valid(numbers: Int[Tensor, "n"], points: Float[Tensor, "n 3"]) -> bool:
    """Whether atoms are one molecule in which every atom has the bonds that its valence asks for."""
    if len(numbers) < 2:
        return False
    orders = bond_orders(numbers, points)
    valences = torch.tensor([VALENCES[number] for number in numbers.tolist()])
    return bool((orders >= 0).all() and (orders.sum(1) == valences).all()) and is_connected(orders)


def is_connected(orders: Int[Tensor, "n n"]) -> bool:
    """Whether bonds lead from the first atom to all others."""
    reached = torch.arange(len(orders)) == 0
    for _ in range(len(orders)):
        reached = reached | (orders[reached] > 0).any(0)
    return bool(reached.all())


def rings(orders: Int[Tensor, "n n"]) -> int:
    """Number of independent rings of one connected molecule."""
    return int((orders > 0).sum()) // 2 - len(orders) + 1


def graph_name(numbers: Int[Tensor, "n"], orders: Int[Tensor, "n n"]) -> str:
    """A name that is the same for the same atoms and bonds in any order (Weisfeiler and Leman 1968)."""
    names = [SYMBOLS[number] for number in numbers.tolist()]
    for _ in range(4):
        around = [sorted((names[j], int(row[j])) for j in row.nonzero()[:, 0].tolist()) for row in orders]
        known = sorted({(name, str(beside)) for name, beside in zip(names, around, strict=True)})
        names = [f"{name}{known.index((name, str(beside)))}" for name, beside in zip(names, around, strict=True)]
    return " ".join(sorted(names))
