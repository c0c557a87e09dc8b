"""One pose and one order for every molecule, so that a network need not learn that all of them mean the same."""

import torch
from jaxtyping import Float
from torch import Tensor


def canonical(molecule: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """The molecule centered, turned and ordered by its own geometry; chirality is kept.

    The axes are the principal ones, the longest first. The first two point to where the third moment is positive, the
    third makes them right-handed. Heavy atoms come first, along the first axis; each hydrogen takes the place of the
    heavy atom next to it; no atoms, with the number 0, come last.

    Args:
        molecule: coordinates and atomic numbers.
    """
    there = molecule[:, 3] > 0
    points, numbers = molecule[there, :3], molecule[there, 3]
    points = points - points.mean(0)
    axes = torch.linalg.eigh(points.T @ points).eigenvectors.flip(1)
    skew = (points @ axes).pow(3).sum(0)
    axes = axes * torch.where(skew < 0, -1.0, 1.0)
    axes = torch.cat([axes[:, :2], torch.linalg.cross(axes[:, 0], axes[:, 1])[:, None]], 1)
    points = points @ axes
    heavy, light = numbers > 1, numbers == 1
    along = points[:, 0].clone()
    if heavy.any() and light.any():
        along[light] = points[heavy, 0][torch.cdist(points[light], points[heavy]).argmin(1)]
    order = sorted(range(len(points)), key=lambda i: (bool(light[i]), along[i].item(), points[i, 0].item()))
    result = torch.zeros_like(molecule)
    result[: len(points)] = torch.cat([points, numbers[:, None]], 1)[order]
    return result
