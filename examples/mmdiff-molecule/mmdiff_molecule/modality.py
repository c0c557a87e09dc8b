"""Small molecules as a modality: xyz files, atoms as points with an element."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torchmetrics import Metric

from mmdiff import DataError
from mmdiff.errors import check_at_least
from mmdiff.metrics.kernel import KernelDistance
from mmdiff.modality import Modality
from mmdiff_molecule.chemistry import RADII, SYMBOLS, bond_orders
from mmdiff_molecule.frame import canonical

KINDS = torch.tensor([0, *SYMBOLS])
"""Atomic numbers of the kinds of atoms; 0 is no atom."""

MEAN, STD = 1 / len(KINDS), 0.4
"""Of the channels that tell the kind: one of five is 1, the others are 0."""

COLORS = {1: (235, 235, 235), 6: (70, 70, 70), 7: (40, 80, 230), 8: (220, 30, 30)}


class Molecule(Modality):
    """Molecules of at most ``atoms`` atoms of H, C, N and O.

    Media are float32 of shape (atoms, 4): x, y, z in angstrom and the atomic number, in one pose and order (see
    `mmdiff_molecule.frame`); rows of zeros are no atoms. A model sees the coordinates divided by ``scale`` and a
    channel for each kind of atom, of which no atom is one: so it also learns how many atoms there are.

    Args:
        atoms: of a molecule, at most.
        scale: standard deviation of all coordinates, learned by `fit`; 1.5 angstrom if not given.
    """

    suffixes = (".xyz",)
    suffix = ".xyz"

    def __init__(self, *, atoms: int = 14, scale: float | None = None):
        check_at_least(2, **{"modality.atoms": atoms})
        self.atoms = atoms
        self.shape = (3 + len(KINDS), atoms)
        self.scale = scale or 1.5

    def read(self, path: Path, generator: Generator | None = None) -> Float[Tensor, "n 4"]:
        """The first molecule of an xyz file: its number of atoms, a comment, then element, x, y and z in each line."""
        known = {symbol: number for number, symbol in SYMBOLS.items()}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [line.split() for line in lines[2 : 2 + int(lines[0])]]
            foreign = sorted({row[0] for row in rows} - set(known))
            atoms = torch.tensor([[float(cell) for cell in row[1:4]] + [known.get(row[0], 0)] for row in rows])
        except (OSError, ValueError, IndexError) as error:
            raise DataError(path, f"is not a xyz file ({error})") from error
        if foreign:
            raise DataError(path, f"has atoms of {foreign[0]}; known are {', '.join(known)}")
        if not len(atoms) or len(atoms) < int(lines[0]) or not atoms.isfinite().all():
            raise DataError(path, f"announces {lines[0].strip()} atoms and has {len(atoms)} with finite coordinates")
        if len(atoms) > self.atoms:
            raise DataError(path, f"has {len(atoms)} atoms, more than modality.atoms={self.atoms}")
        return canonical(F.pad(atoms, (0, 0, 0, self.atoms - len(atoms))))

    def write(self, media: Float[Tensor, "n 4"], path: Path) -> None:
        """Write xyz."""
        rows = [row for row in media.tolist() if row[3]]
        lines = [f"{SYMBOLS[int(number)]} {x:.5f} {y:.5f} {z:.5f}" for x, y, z, number in rows]
        path.write_text("\n".join([str(len(rows)), path.stem, *lines]) + "\n", encoding="utf-8")

    def encode(self, media: Float[Tensor, "*b n 4"]) -> Float[Tensor, "*b c n"]:
        """Scaled coordinates, then one standardized channel for each kind."""
        kinds = (media[..., 3:] == KINDS).to(media)
        return torch.cat([media[..., :3] / self.scale, (kinds - MEAN) / STD], -1).mT

    def decode(self, x: Float[Tensor, "*b c n"]) -> Float[Tensor, "*b n 4"]:
        """Of each atom the kind with the largest channel; where that leaves no atom at all, the first is carbon."""
        kind = x[..., 3:, :].argmax(-2)
        kind[..., 0] = torch.where(kind.any(-1), kind[..., 0], 2)
        points = (x[..., :3, :].mT * self.scale) * (kind > 0)[..., None]
        return torch.cat([points, KINDS[kind][..., None].to(x)], -1)

    def preview(self, media: Float[Tensor, "n 4"]) -> UInt8[Tensor, "3 h w"]:
        """Balls and sticks on white, 160 pixels for 10 angstrom, seen along the third axis."""
        there = media[:, 3] > 0
        points, numbers = media[there, :3], media[there, 3].long()
        discs = [(p, 0.6 * RADII[k] + 0.1, COLORS[k]) for p, k in zip(points, numbers.tolist(), strict=True)]
        share = torch.linspace(0, 1, 24)[:, None]
        for i, j in (bond_orders(numbers, points).triu() > 0).nonzero().tolist():
            discs += [(p, 0.1, (150, 150, 150)) for p in torch.lerp(points[i], points[j], share)]
        place = (torch.arange(160) - 79.5) / 16
        picture = torch.full((3, 160, 160), 255, dtype=torch.uint8)
        for point, radius, color in sorted(discs, key=lambda disc: disc[0][2].item()):
            away = ((place - point[0]) ** 2 + (place[:, None] + point[1]) ** 2).sqrt()
            for reach, paint in ((radius + 0.06, (0, 0, 0)), (radius, color)):
                picture[:, away < reach] = torch.tensor(paint, dtype=torch.uint8)[:, None]
        return picture

    def metrics(self) -> dict[str, Metric]:
        """The distance between two sets of molecules; 0 for sets that cannot be told apart."""
        return {"kernel_distance": KernelDistance(statistics)}

    def fit(self, media: Iterable[Tensor]) -> dict[str, Any]:
        """Standard deviation of the coordinates of all atoms."""
        atoms = torch.cat(list(media))
        return {"scale": float(f"{atoms[atoms[:, 3] > 0, :3].std():.5g}")}


def statistics(media: Float[Tensor, "b n 4"]) -> Float[Tensor, "b f"]:
    """What molecules are compared by, whatever their pose: atoms of each element, pairs of atoms at each distance."""
    there = media[..., 3] > 0
    counts = (media[..., 3:] == KINDS[1:]).sum(-2)
    centers = torch.arange(0.5, 6, 0.25)
    far = torch.cdist(media[..., :3], media[..., :3])
    pairs = (there[:, :, None] & there[:, None]).float() - torch.diag_embed(there.float())
    near = torch.exp(-((far[..., None] - centers) ** 2) / (2 * 0.125**2)) * pairs[..., None]
    return torch.cat([counts, near.sum((1, 2))], 1)
