"""Does molecule keep the contract of mmdiff, and does it know a molecule when it sees one?"""

import math

import pytest
import torch
from mmdiff_molecule.built import Built
from mmdiff_molecule.chemistry import bond_orders, graph_name, is_valid, rings
from mmdiff_molecule.frame import canonical
from mmdiff_molecule.judge import MoleculeAccuracy
from mmdiff_molecule.modality import Molecule

from mmdiff import DataError
from mmdiff.testing import check_plugin

TETRAHEDRON = 3**-0.5 * torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


def test_conformance():
    """The same as ``mmdiff check molecule network.width=32``."""
    check_plugin("molecule", "network.width=32")


def polar(radius: float, degrees: float) -> list[float]:
    return [radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees)), 0]


def molecules() -> dict[str, tuple[list[int], torch.Tensor, int]]:
    """Numbers, coordinates by experiment (NIST CCCBDB) and the greatest order of a bond."""
    return {
        "methane": ([6, 1, 1, 1, 1], torch.cat([torch.zeros(1, 3), 1.087 * TETRAHEDRON]), 1),
        "water": ([8, 1, 1], torch.tensor([[0, 0, 0], polar(0.958, 0), polar(0.958, 104.5)]), 1),
        "formaldehyde": (
            [6, 8, 1, 1],
            torch.tensor([[0, 0, 0], polar(1.205, 0), polar(1.111, 122), polar(1.111, -122)]),
            2,
        ),
        "hydrogen cyanide": ([1, 6, 7], torch.tensor([[-1.064, 0, 0], [0, 0, 0], [1.156, 0, 0]]), 3),
        "acetylene": ([6, 6, 1, 1], torch.tensor([[0.0, 0, 0], [1.203, 0, 0], [-1.063, 0, 0], [2.266, 0, 0]]), 3),
        "nitrogen": ([7, 7], torch.tensor([[0.0, 0, 0], [1.098, 0, 0]]), 3),
    }


@pytest.mark.parametrize("name", molecules())
def test_real_molecules_are_valid(name):
    listed, points, order = molecules()[name]
    numbers = torch.tensor(listed)
    assert is_valid(numbers, points)
    assert bond_orders(numbers, points).max() == order
    assert rings(bond_orders(numbers, points)) == 0
    assert not is_valid(numbers[:-1], points[:-1])  # an atom is missing
    assert not is_valid(torch.cat([numbers, numbers]), torch.cat([points, points + 8]))  # two molecules
    assert not is_valid(torch.cat([numbers, numbers[-1:]]), torch.cat([points, points[-1:] + 0.1]))  # a collision
    assert not is_valid(numbers, 2 * points)  # no bonds
    changed = numbers.clone()
    changed[0] = 7 if numbers[0] != 7 else 6
    assert not is_valid(changed, points)


def test_one_atom_is_no_molecule():
    assert not is_valid(torch.tensor([6]), torch.zeros(1, 3))


def test_graphs_have_names():
    """Of butane and isobutane, alike but for their bonds; the order of the atoms does not matter."""
    chain, star = (torch.zeros(4, 4, dtype=torch.long) for _ in range(2))
    for orders, bonds in ((chain, [(0, 1), (1, 2), (2, 3)]), (star, [(0, 1), (0, 2), (0, 3)])):
        for i, j in bonds:
            orders[i, j] = orders[j, i] = 1
    numbers = torch.full((4,), 6)
    assert graph_name(numbers, chain) != graph_name(numbers, star)
    order = torch.tensor([2, 0, 3, 1])
    assert graph_name(numbers, chain) == graph_name(numbers, chain[order][:, order])
    ring = chain.clone()
    ring[0, 3] = ring[3, 0] = 1
    assert (rings(chain), rings(ring)) == (0, 1)


def test_what_is_built_is_valid_and_labeled():
    data = Built(size=200, seed=3)
    metric = MoleculeAccuracy()
    for molecule, cond in (data[i] for i in range(len(data))):
        one = {name: [value] for name, value in cond.items()}
        metric.update(molecule[None], real=True, cond=one)
        metric.update(molecule[None], real=False, cond=one)
    values = metric.compute()
    assert values["real_valid"] >= 0.99
    assert values["as_asked"] == values["valid"] == values["real_valid"]
    assert values["kinds"] > 30
    for molecule, cond in (data[i] for i in range(20)):
        metric.update(molecule[None], real=False, cond={"carbon": [cond["carbon"] + 1]})
    assert metric.compute()["as_asked"] == pytest.approx(values["as_asked"].item() * 200 / 220)


def test_pose_and_order_do_not_matter_but_chirality_does():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(7, 3, generator=generator) * torch.tensor([3.0, 2, 1])
        numbers = torch.tensor([[6.0], [7], [8], [1], [1], [1], [1]])
        molecule = torch.cat([torch.cat([points, numbers], 1), torch.zeros(2, 4)])
        expected = canonical(molecule)
        assert expected[:, 3].tolist()[3:] == [1, 1, 1, 1, 0, 0]
        assert torch.allclose(canonical(expected), expected, atol=1e-4)

        turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
        turn = turn * torch.linalg.det(turn)
        moved = torch.cat([points @ turn + torch.tensor([1.0, -2, 3]), numbers], 1)
        moved = torch.cat([moved, torch.zeros(2, 4)])[torch.randperm(9, generator=generator)]
        assert torch.allclose(canonical(moved), expected, atol=1e-3)

        mirrored = canonical(molecule * torch.tensor([1.0, 1, -1, 1]))
        assert not torch.allclose(mirrored, expected, atol=1e-2)
        far = [torch.cdist(atoms[:7, :3], atoms[:7, :3]).flatten().sort().values for atoms in (mirrored, expected)]
        assert torch.allclose(*far, atol=1e-3)


def test_files(tmp_path):
    path, modality = tmp_path / "water.xyz", Molecule(atoms=4)
    path.write_text("3\nwater\nO 0.0 0.0 0.0\nH 0.958 0.0 0.0 extra\nH -0.24 0.927 0.0\n\n")
    water = modality.read(path)
    assert water[:, 3].tolist() == [8, 1, 1, 0]
    assert torch.cdist(water[:1, :3], water[1:3, :3]).flatten().tolist() == pytest.approx([0.958, 0.958], abs=1e-3)
    for text, reason in {
        "1\n\nFe 0 0 0\n": "has atoms of Fe; known are H, C, N, O",
        "2\n\nH 0 0 0\n": "announces 2 atoms and has 1 with finite coordinates",
        "1\n\nH 0 0 nan\n": "announces 1 atoms and has 1 with finite coordinates",
        "five\n": "is not a xyz file",
        "5\n\n" + "H 0 0 0\n" * 5: "has 5 atoms, more than modality.atoms=4",
    }.items():
        path.write_text(text)
        with pytest.raises(DataError, match=reason):
            modality.read(path)
