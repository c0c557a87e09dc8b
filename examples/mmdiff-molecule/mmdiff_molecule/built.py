"""Molecules built by rule: a data set that needs no download.

A skeleton of 2 to 4 heavy atoms grows by random bonds, from nothing or from a ring of 3 or 4. Atoms are C, N or O as
their bonds allow, no two of N and O beside each other; some carbons get a double-bonded O, as long as there are no
more than 4 heavy atoms; hydrogens fill the valences. Coordinates are those that bring all distances near to their
targets: those of bonds to `LENGTHS`, those of atoms two bonds apart to what the angle in between asks for, and all
others to more than `APART`.
"""

import math
import random
from itertools import combinations
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.utils.data import Dataset

from mmdiff.errors import check_at_least
from mmdiff_molecule.frame import canonical

LENGTHS = {"CC": 1.53, "CN": 1.47, "CO": 1.43, "CH": 1.09, "HN": 1.01, "HO": 0.96}
"""Of single bonds, in angstrom."""

CARBONYL = 1.21
TETRAHEDRAL, FLAT, RING_ANGLES = 109.5, 120.0, {3: 60.0, 4: 89.0}
"""Angles between bonds, in degrees: elsewhere, at the carbon of a C=O, and inside a ring of 3 or 4."""

APART = {0: 2.9, 1: 2.65, 2: 2.45}
"""Least distance in angstrom of atoms three or more bonds apart, by the number of hydrogens among them: those of
staggered bonds."""

HEAVY = 4
"""Atoms but hydrogens, at most."""

BONDS = {"C": 4, "N": 3, "O": 2, "H": 1}
NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8}
NAMES = {"H": "hydrogen", "C": "carbon", "N": "nitrogen", "O": "oxygen"}
CHUNK = 512


class Graph(NamedTuple):
    """Elements of the atoms, and the orders of the bonds between them."""

    elements: list[str]
    bonds: dict[tuple[int, int], int]
    ring: int


class Built(Dataset):
    """Molecule i is a function of ``(seed, i)`` alone, up to rounding.

    The conditions are the formula, ``hydrogen``, ``carbon``, ``nitrogen`` and ``oxygen``, and ``ring``: yes or no.

    Args:
        size: of the data set.
        seed: of another data set of the same law.
        atoms: at most, hydrogens included.
    """

    def __init__(self, *, size: int = 4096, seed: int = 0, atoms: int = 14):
        check_at_least(1, size=size)
        check_at_least(12, atoms=atoms)
        self.size = size
        graphs = [build(random.Random(f"{seed} {i}"), atoms) for i in range(size)]
        self.conditions = [condition(graph) for graph in graphs]
        self.molecules = torch.cat([embed(graphs[i : i + CHUNK], atoms) for i in range(0, size, CHUNK)])

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "n 4"], dict[str, Any]]:
        return canonical(self.molecules[index]), dict(self.conditions[index])


def condition(graph: Graph) -> dict[str, Any]:
    """What is told of a molecule."""
    counts = {name: graph.elements.count(element) for element, name in NAMES.items()}
    return counts | {"ring": "yes" if graph.ring else "no"}


def build(rng: random.Random, atoms: int) -> Graph:
    """Atoms and bonds of a random molecule of at most that many atoms."""
    while True:
        graph = _grow(rng)
        if len(graph.elements) <= atoms:
            return graph


def _grow(rng: random.Random) -> Graph:
    ring = rng.choice((0, 0, 0, 3, 4))
    count = rng.randint(max(ring, 2), HEAVY)
    bonds = {(i, (i + 1) % ring): 1 for i in range(ring)} if ring else {(0, 1): 1}
    for i in range(ring or 2, count):
        open_ = [j for j in range(i) if sum(j in bond for bond in bonds) < 4]
        bonds[rng.choice(open_), i] = 1
    elements = ["C"] * count
    for i in rng.sample(range(count), count):
        beside = [elements[b if a == i else a] for a, b in bonds if i in (a, b)]
        others = [element for element in "NO" if len(beside) <= BONDS[element]]
        if others and set(beside) == {"C"} and rng.random() < 0.3:
            elements[i] = rng.choice(others)
    for i in range(count):
        beside = [elements[b if a == i else a] for a, b in bonds if i in (a, b)]
        fitting = i >= ring and elements[i] == "C" and len(beside) < 3 and set(beside) == {"C"}
        if fitting and len(elements) < HEAVY and rng.random() < 0.25:
            bonds[i, len(elements)] = 2
            elements.append("O")
    for i in range(len(elements)):
        for _ in range(BONDS[elements[i]] - sum(order for bond, order in bonds.items() if i in bond)):
            bonds[i, len(elements)] = 1
            elements.append("H")
    return Graph(elements, bonds, ring)


def embed(graphs: list[Graph], atoms: int) -> Float[Tensor, "b {atoms} 4"]:
    """Molecules of those atoms and bonds: coordinates and atomic numbers, zero where there is no atom."""
    target, weight = (torch.zeros(len(graphs), atoms, atoms) for _ in range(2))
    least = torch.zeros_like(target)
    start = torch.zeros(len(graphs), atoms, 3)
    numbers = torch.zeros(len(graphs), atoms)
    for k, graph in enumerate(graphs):
        n = len(graph.elements)
        numbers[k, :n] = torch.tensor([float(NUMBERS[element]) for element in graph.elements])
        target[k, :n, :n], weight[k, :n, :n], least[k, :n, :n], path = _distances(graph)
        start[k, :n] = _spread(path, k)
    return torch.cat([_relaxed(start, target, weight, least), numbers[..., None]], -1)


def _distances(graph: Graph) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Targets and their weights, least distances where there is no target, and numbers of bonds between atoms."""
    n = len(graph.elements)
    target, weight, path = torch.zeros(n, n), torch.zeros(n, n), torch.full((n, n), math.inf).fill_diagonal_(0)
    hydrogen = torch.tensor([element == "H" for element in graph.elements])
    least = torch.tensor([APART[0], APART[1], APART[2]])[hydrogen[:, None].long() + hydrogen]
    lengths: list[dict[int, float]] = [{} for _ in range(n)]  # of the bonds of each atom
    for (i, j), order in graph.bonds.items():
        pair = "".join(sorted(graph.elements[i] + graph.elements[j]))
        lengths[i][j] = lengths[j][i] = CARBONYL if order == 2 else LENGTHS[pair]
    flat = {i for (i, _), order in graph.bonds.items() if order == 2}
    near: dict[tuple[int, int], tuple[float, float]] = {}
    for i, around in enumerate(lengths):
        for a, b in combinations(sorted(around), 2):
            inside = max(a, b, i) < graph.ring
            angle = RING_ANGLES[graph.ring] if inside else FLAT if i in flat else TETRAHEDRAL
            near[a, b] = (_third_side(around[a], around[b], angle), 0.5)
    near |= {(i, j): (length, 1.0) for i, around in enumerate(lengths) for j, length in around.items() if i < j}
    first, second = torch.tensor(list(near)).T
    values = torch.tensor(list(near.values()))
    target[first, second] = target[second, first] = values[:, 0]
    weight[first, second] = weight[second, first] = values[:, 1]
    bonded = values[:, 1] == 1
    path[first[bonded], second[bonded]] = path[second[bonded], first[bonded]] = 1
    for k in range(n):
        path = torch.minimum(path, path[:, k, None] + path[k])
    return target, weight, (least * (weight == 0)).fill_diagonal_(0), path


def _third_side(a: float, b: float, degrees: float) -> float:
    """Law of cosines."""
    return math.sqrt(a * a + b * b - 2 * a * b * math.cos(math.radians(degrees)))


def _spread(path: Float[Tensor, "n n"], seed: int) -> Float[Tensor, "n 3"]:
    """Coordinates with distances roughly those of the path: classical scaling (Torgerson 1952), and some noise."""
    n = len(path)
    center = torch.eye(n) - 1 / n
    values, vectors = torch.linalg.eigh(-center @ (1.2 * path) ** 2 @ center / 2)
    points = vectors[:, -3:] * values[-3:].clamp(min=0).sqrt()
    return points + 0.3 * torch.randn(n, 3, generator=Generator().manual_seed(seed))


def _relaxed(
    points: Float[Tensor, "b n 3"],
    target: Float[Tensor, "b n n"],
    weight: Float[Tensor, "b n n"],
    least: Float[Tensor, "b n n"],
    steps: int = 200,
) -> Float[Tensor, "b n 3"]:
    """Coordinates moved downhill, with momentum, on weighted squared errors of the distances."""
    speed = torch.zeros_like(points)
    for _ in range(steps):
        distance = torch.cdist(points, points).clamp(min=1e-3)
        error = weight * (distance - target) + 0.3 * (distance - least).clamp(max=0) * (least > 0)
        pull = error / distance
        force = pull @ points - pull.sum(-1, keepdim=True) * points
        speed = 0.9 * speed + 0.05 * force
        points = points + speed
    return points
