"""Judges of sets of clouds: how far the sets are apart, where their points lie, how rough their surfaces are.

Clouds are (n, 3); nothing here normalizes them, so the unit and the pose of the data decide what the figures mean.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor
from torchmetrics import Metric

from mmdiff.metrics.neighbors import Neighbors, TwoSets
from mmdiff_pointcloud.distances import chamfer_matrix, sliced_wasserstein_matrix

CELLS = 28
"""Cells along a side of the grid of occupancy: the 28 of Achlioptas et al. 2018."""

NEIGHBORS = 16
"""Points that a patch of surface is fitted to, the one it belongs to included."""


def jsd(real: Float[Tensor, "a n 3"], fake: Float[Tensor, "b m 3"]) -> Float[Tensor, ""]:
    """Jensen-Shannon divergence, in bits, between where the points of all real and of all generated clouds lie.

    Points are counted in ``CELLS``^3 cells of the smallest cube around the real points, concentric with their bounding
    box; points outside count in the nearest cell. Achlioptas et al. 2018, with a cube that follows the data in place of
    one of fixed size.
    """
    points = real.flatten(0, 1)
    low, high = points.amin(0), points.amax(0)
    side = (high - low).amax().clamp(min=1e-30)
    corner = (low + high - side) / 2

    def occupancy(clouds: Tensor) -> Tensor:
        cell = ((clouds.flatten(0, 1) - corner) / side * CELLS).long().clamp(0, CELLS - 1)
        index = (cell[:, 0] * CELLS + cell[:, 1]) * CELLS + cell[:, 2]
        return torch.bincount(index, minlength=CELLS**3).double() / len(index)

    p, q = occupancy(real), occupancy(fake)
    middle = (p + q) / 2
    return (entropy(middle) - (entropy(p) + entropy(q)) / 2).to(real)


def entropy(p: Float[Tensor, "k"]) -> Float[Tensor, ""]:
    """``-sum p log2 p``."""
    return -torch.xlogy(p, p).sum() / math.log(2)


def roughness(cloud: Float[Tensor, "n 3"]) -> float:
    """Median over points of sqrt(l3 / (l1 + l2)) for the principal variances l1 >= l2 >= l3 of the 16 points nearest.

    0 on a plane, near 0.5 where points fill the space; nan with fewer than 16 points. It sees noise on a surface long
    before distances between whole clouds do.
    """
    points = cloud.detach().double().cpu().numpy()
    if len(points) < NEIGHBORS or not np.isfinite(points).all():
        return math.nan
    near = points[cKDTree(points).query(points, NEIGHBORS)[1]]
    offset = near - near.mean(1, keepdims=True)
    variance = np.linalg.eigvalsh(offset.transpose(0, 2, 1) @ offset).clip(0)
    return float(np.median(np.sqrt(variance[:, 0] / np.maximum(variance[:, 1:].sum(1), 1e-30))))


class Statistics(TwoSets):
    """Figures of the two sets that need no pairs of clouds: `jsd` and `roughness`."""

    def compute(self) -> dict[str, Tensor]:
        """The divergence, the same between two halves of the real set to read it against, and mean roughness of both.

        Equal distributions have a divergence above 0, which falls with the number of points. All nan below two clouds.
        """
        names = ("jsd", "jsd_real_halves", "roughness", "roughness_real")
        sets = self.sets()
        if sets is None:
            return dict.fromkeys(names, torch.tensor(math.nan, device=self.device))
        real, fake = sets
        rough = [torch.tensor([roughness(cloud) for cloud in clouds]).nanmean().to(real) for clouds in (fake, real)]
        return dict(zip(names, (jsd(real, fake), jsd(real[::2], real[1::2]), *rough), strict=True))


def cloud_metrics() -> dict[str, Metric]:
    """Metrics of a modality of clouds by name: neighbors by two distances, and statistics.

    The Chamfer distance is the one to compare with published figures, the sliced Wasserstein distance the one that sees
    uneven density.
    """
    return {
        "chamfer": Neighbors(chamfer_matrix, coordinates),
        "sliced": Neighbors(sliced_wasserstein_matrix, coordinates),
        "points": Statistics(coordinates),
    }


def coordinates(clouds: Float[Tensor, "b n c"]) -> Float[Tensor, "b n 3"]:
    """Clouds without normals and colors."""
    return clouds[..., :3]
