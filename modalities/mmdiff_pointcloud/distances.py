"""Distances between clouds of points, one pair at a time or every pair of two sets.

The Chamfer distance here is squared and the sum of two means, as in PointFlow, PVD and LION. The earth mover's distance
is the mean Euclidean cost of the best assignment, not the squared cost of an approximate one that the same papers call
EMD. Numbers under another convention cannot be compared.

Shapes: clouds are (n, 3) and (m, 3), sets of clouds are ``a`` and ``b`` of them. Results have the type and the device
of the first argument; inside, all is float64, so that clouds far from the origin need no care and TF32 does no harm.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from torch import Tensor

LARGEST_EXACT = 2048
"""Points for which ``emd`` still takes seconds: its time grows with n^3."""

PROJECTIONS, QUANTILES = 64, 256
"""Lines that the sliced distance projects on, and values that describe a projection."""


def chamfer(x: Float[Tensor, "n 3"], y: Float[Tensor, "m 3"]) -> Float[Tensor, ""]:
    """``mean_x min_y |x - y|^2 + mean_y min_x |x - y|^2``."""
    return chamfer_matrix(x[None], y[None])[0, 0]


def chamfer_matrix(
    xs: Float[Tensor, "a n 3"], ys: Float[Tensor, "b m 3"], *, memory_mb: float = 256
) -> Float[Tensor, "a b"]:
    """``chamfer`` of every pair, in twice the time of one direction, or once if ``ys`` is ``xs``.

    On a GPU the distances are tiles of a matrix product; elsewhere neighbors are found in k-d trees. Both are exact.

    Args:
        xs: a set.
        ys: another, or the same object.
        memory_mb: bound on what is held beside the arguments and the result, in units of 2**20 bytes.
    """
    forward = directed(xs, ys, memory_mb)
    backward = forward if ys is xs else directed(ys, xs, memory_mb)
    return (forward + backward.T).to(xs)


def directed(xs: Float[Tensor, "a n 3"], ys: Float[Tensor, "b m 3"], memory_mb: float) -> Float[Tensor, "a b"]:
    """``mean_x min_y |x - y|^2`` of every pair, in float64."""
    points, found = xs.detach().flatten(0, 1), torch.empty(xs.shape[:2], dtype=torch.float64, device=xs.device)
    search, row = (product_search, 96 + 8 * ys.shape[1]) if xs.is_cuda else (tree_search, 96)
    rows = int((memory_mb * 2**20 - 8 * found.numel()) / row)
    if rows < 1:
        raise ValueError(f"memory_mb must be at least {(8 * found.numel() + row) / 2**20:.2g}, got {memory_mb:g}.")
    result = []
    for y in ys.detach():
        nearest = search(y)
        for part, into in zip(points.split(rows), found.view(-1).split(rows), strict=True):
            into.copy_(nearest(part))
        result.append(found.mean(1))
    return torch.stack(result, 1)


def tree_search(y: Float[Tensor, "m 3"]) -> Callable[[Tensor], Tensor]:
    """A function from points (q, 3) to their squared distances to ``y``, by a k-d tree: m log m."""
    tree = cKDTree(y.double().cpu().numpy())

    def nearest(x: Tensor) -> Tensor:
        distance, _ = tree.query(x.double().cpu().numpy(), workers=torch.get_num_threads())
        return torch.from_numpy(distance).square_()

    return nearest


def product_search(y: Float[Tensor, "m 3"]) -> Callable[[Tensor], Tensor]:
    """The same by ``|x|^2 + |y|^2 - 2 x y``."""
    center = y.mean(0, dtype=torch.float64)
    y = y - center
    norm, columns = y.square().sum(1), y.T

    def nearest(x: Tensor) -> Tensor:
        x = x - center
        return (torch.addmm(norm, x, columns, alpha=-2).amin(1) + x.square().sum(1)).clamp_(min=0)

    return nearest


def emd(x: Float[Tensor, "n 3"], y: Float[Tensor, "m 3"]) -> Float[Tensor, ""]:
    """``min over permutations of mean |x_i - y_permutation(i)|``, exact: the Jonker-Volgenant algorithm, on the CPU."""
    if len(x) != len(y) or len(x) > LARGEST_EXACT:
        raise ValueError(
            f"emd takes two clouds of one size of at most {LARGEST_EXACT} points, got {len(x)} and {len(y)}; "
            "sinkhorn_emd takes any."
        )
    cost = costs(x, y).cpu().numpy()
    return torch.tensor(cost[linear_sum_assignment(cost)].mean()).to(x)


class Bounds(NamedTuple):
    """What a value is certain to lie between."""

    lower: Float[Tensor, ""]
    upper: Float[Tensor, ""]


def sinkhorn_emd(
    x: Float[Tensor, "n 3"], y: Float[Tensor, "m 3"], *, epsilon: float = 0.005, iterations: int = 50
) -> Bounds:
    """Bounds on the earth mover's distance, which ``emd`` is where that is defined.

    Sinkhorn iterations in float64, for temperatures from the largest cost down to ``epsilon``, each a half of the one
    before, with the scaling vectors absorbed in the potentials at each change (Schmitzer 2019, algorithm 2). Upper is
    the cost of the plan rounded to the right marginals (Altschuler et al. 2017, algorithm 2), lower the value of the
    dual at potentials made feasible by two c-transforms; both hold however far the iterations got.

    Args:
        x: points of mass 1 / n each.
        y: points of mass 1 / m each.
        epsilon: last temperature, in units of the mean cost.
        iterations: at each temperature.
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(f"epsilon must be positive and iterations at least 1, got {epsilon:g} and {iterations}.")
    cost = costs(x, y)
    f, g = cost.new_zeros(len(x)), cost.new_zeros(len(y))
    largest, last = cost.max().clamp(min=1e-30), epsilon * cost.mean().clamp(min=1e-30)
    plan = torch.ones_like(cost) / cost.numel()
    for step in range(1 + max(0, math.ceil((largest / last).log2()))):
        temperature = largest * 2.0**-step
        kernel = ((f[:, None] + g - cost) / temperature).exp() / cost.numel()
        v = torch.ones_like(g)
        for _ in range(iterations):
            u = 1 / (len(x) * (kernel @ v))
            v = 1 / (len(y) * (u @ kernel))
        f, g = f + temperature * u.log(), g + temperature * v.log()
        plan = u[:, None] * kernel * v
    g = (cost - f[:, None]).amin(0)
    f = (cost - g).amin(1)
    return Bounds((f.mean() + g.mean()).to(x), (rounded(plan) * cost).sum().to(x))


def rounded(plan: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """A plan near ``plan`` whose rows sum to 1 / n and whose columns sum to 1 / m."""
    n, m = plan.shape
    plan = plan * (1 / (n * plan.sum(1, keepdim=True))).clamp(max=1)
    plan = plan * (1 / (m * plan.sum(0))).clamp(max=1)
    rows, columns = 1 / n - plan.sum(1), 1 / m - plan.sum(0)
    return plan + rows[:, None] * columns / rows.sum().clamp(min=1e-300)


def costs(x: Float[Tensor, "n 3"], y: Float[Tensor, "m 3"]) -> Float[Tensor, "n m"]:
    """Euclidean distances, in float64 and without cancellation."""
    return torch.cdist(x.detach().double(), y.detach().double(), compute_mode="donot_use_mm_for_euclid_dist")


def sliced_features(clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b f"]:
    """Vectors whose Euclidean distance is the sliced Wasserstein distance of order 2 (Bonneel et al. 2015), nearly.

    A cloud is projected on ``PROJECTIONS`` directions spread evenly over the sphere, and sorted. Of the values,
    ``QUANTILES`` means of equal shares are kept, which shortens distances a little, and not at all if n divides
    ``QUANTILES``. Clouds of different size can be compared.
    """
    k = torch.arange(PROJECTIONS, dtype=torch.float64, device=clouds.device)
    height, angle = (k + 0.5) / PROJECTIONS, math.pi * (3 - math.sqrt(5)) * k
    radius = (1 - height.square()).sqrt()
    directions = torch.stack([radius * angle.cos(), height, radius * angle.sin()])
    projected = (clouds.detach().double() @ directions).mT.sort(dim=2).values
    shares = torch.nn.functional.adaptive_avg_pool1d(projected, QUANTILES)
    return shares.flatten(1) / math.sqrt(PROJECTIONS * QUANTILES)


def sliced_wasserstein_matrix(xs: Float[Tensor, "a n 3"], ys: Float[Tensor, "b m 3"]) -> Float[Tensor, "a b"]:
    """Sliced Wasserstein distance of every pair: unlike ``chamfer`` it sees where the points are dense.

    It holds 128 KiB for each cloud, and no loop visits the pairs.
    """
    first = torch.cat([sliced_features(part) for part in xs.split(8)])
    second = first if ys is xs else torch.cat([sliced_features(part) for part in ys.split(8)])
    return torch.cdist(first, second).to(xs)
