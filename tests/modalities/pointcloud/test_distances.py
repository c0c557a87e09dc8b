"""Distances against loops, closed forms and linear programs; bounds that hold; memory that stays bounded."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from mmdiff_pointcloud import distances
from mmdiff_pointcloud.distances import (
    Bounds,
    chamfer,
    chamfer_matrix,
    emd,
    sinkhorn_emd,
    sliced_features,
    sliced_wasserstein_matrix,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def draw(*shape, seed=0, scale=(1.0, 0.5, 0.3)):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor(scale)


def chamfer_loop(x, y):
    squared = ((x.double().numpy()[:, None] - y.double().numpy()[None]) ** 2).sum(2)
    return squared.min(1).mean() + squared.min(0).mean()


def transport(x, y):
    """The optimal transport problem as a linear program."""
    n, m = len(x), len(y)
    cost = np.linalg.norm(x.double().numpy()[:, None] - y.double().numpy()[None], axis=2)
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    masses = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=masses).fun


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("a", "b", "n", "m"), [(1, 1, 1, 1), (3, 2, 50, 70), (5, 5, 64, 64), (2, 7, 9, 3)])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_chamfer_is_the_double_loop(device, a, b, n, m, offset):
    xs, ys = draw(a, n) + offset, draw(b, m, seed=1) + offset
    expected = [[chamfer_loop(x, y) for y in ys] for x in xs]
    got = chamfer_matrix(xs.to(device), ys.to(device))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.cpu(), expected, rtol=1e-6, atol=1e-7)
    assert chamfer(xs[0], ys[0]).item() == pytest.approx(expected[0][0], rel=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_search_by_products_is_the_search_by_trees(offset):
    """The one that a GPU uses, tried on the CPU."""
    x, y = draw(300) + offset, draw(200, seed=1) + offset
    torch.testing.assert_close(distances.product_search(y)(x), distances.tree_search(y)(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", [1e-3, 0.05])
def test_chamfer_is_squared_and_the_sum_of_both_directions(shift):
    grid = torch.stack(torch.meshgrid(*3 * [torch.arange(5.0)], indexing="ij"), -1).reshape(-1, 3)
    assert chamfer(grid, grid + torch.tensor([0, shift, 0])).item() == pytest.approx(2 * shift**2, rel=1e-3)


def test_a_set_with_itself_is_symmetric_with_zeros_and_half_the_searches(monkeypatch):
    searches = []
    tree_search = distances.tree_search
    monkeypatch.setattr(distances, "tree_search", lambda y: searches.append(1) or tree_search(y))
    xs = draw(6, 40)
    itself = chamfer_matrix(xs, xs)
    assert len(searches) == 6
    assert torch.equal(itself, itself.T)
    assert torch.equal(itself.diagonal(), torch.zeros(6))
    assert torch.equal(chamfer_matrix(xs, xs.clone()), itself)
    assert len(searches) == 18


@pytest.mark.parametrize(("memory_mb", "parts"), [(0.003, 6 * 11), (0.01, 6 * 2), (256, 6)])
def test_memory_is_bounded_by_the_size_of_the_parts(monkeypatch, memory_mb, parts):
    """8 bytes for each point of the set that is searched for, and 96 for each of a part of it."""
    sizes, tree_search = [], distances.tree_search

    def watched(y):
        nearest = tree_search(y)
        return lambda x: sizes.append(len(x)) or nearest(x)

    xs, ys = draw(3, 60), draw(3, 60, seed=1)
    whole = chamfer_matrix(xs, ys)
    monkeypatch.setattr(distances, "tree_search", watched)
    assert torch.equal(chamfer_matrix(xs, ys, memory_mb=memory_mb), whole)
    assert len(sizes) == parts
    assert 8 * 180 + 96 * max(sizes) <= memory_mb * 2**20
    assert sum(sizes) == 6 * 180


def test_too_little_memory_is_named():
    with pytest.raises(ValueError, match=r"memory_mb must be at least 0.0024, got 0.001"):
        chamfer_matrix(draw(5, 60), draw(2, 60), memory_mb=0.001)


def test_emd_is_the_best_of_all_permutations():
    x, y = draw(6), draw(6, seed=1)
    cost = np.linalg.norm(x.numpy()[:, None] - y.numpy()[None], axis=2)
    best = min(cost[range(6), order].mean() for order in itertools.permutations(range(6)))
    assert emd(x, y).item() == pytest.approx(best, rel=1e-6)
    assert best == pytest.approx(transport(x, y), rel=1e-6)


def test_emd_on_a_line_pairs_by_rank():
    x, y = (torch.randn(200, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    direction = torch.tensor([0.6, 0.0, -0.8])
    expected = (x.sort().values - y.sort().values).abs().mean()
    assert emd(x[:, None] * direction, y[:, None] * direction).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    "distance", [emd, lambda x, y: sinkhorn_emd(x, y).lower, lambda x, y: sinkhorn_emd(x, y).upper]
)
def test_a_shift_costs_its_length(distance):
    x, shift = draw(100), torch.tensor([0.2, -0.3, 0.6])
    assert distance(x, x[torch.randperm(100)] + shift).item() == pytest.approx(0.7, rel=0.005)


def test_emd_takes_equal_sizes_up_to_a_limit():
    with pytest.raises(ValueError, match="at most 2048 points, got 3 and 4; sinkhorn_emd takes any"):
        emd(draw(3), draw(4))
    with pytest.raises(ValueError, match="got 2049 and 2049"):
        emd(draw(2049), draw(2049))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("epsilon", "iterations", "gap"), [(0.5, 1, 2.0), (0.02, 5, 0.2), (0.005, 50, 0.02)])
def test_sinkhorn_brackets_the_exact_value(seed, epsilon, iterations, gap):
    x, y = draw(120, seed=seed), draw(120, seed=seed + 10, scale=(0.8, 0.6, 0.3))
    exact = emd(x, y).item()
    lower, upper = sinkhorn_emd(x, y, epsilon=epsilon, iterations=iterations)
    assert lower.item() <= exact * (1 + 1e-6)
    assert upper.item() >= exact * (1 - 1e-6)
    assert (upper - lower).item() < gap * exact
    assert lower.item() > 0.8 * exact


@pytest.mark.parametrize(("n", "m"), [(4, 7), (12, 5), (1, 9)])
def test_sinkhorn_takes_clouds_of_different_size(n, m):
    x, y = draw(n), draw(m, seed=1)
    lower, upper = sinkhorn_emd(x, y, epsilon=1e-3, iterations=200)
    exact = transport(x, y)
    assert lower.item() <= exact * (1 + 1e-6)
    assert upper.item() >= exact * (1 - 1e-6)
    assert (upper - lower).item() < 0.01 * exact


@pytest.mark.parametrize("n", [1, 50])
def test_equal_clouds_and_equal_points(n):
    x = draw(n)
    assert emd(x, x.flip(0)) == 0
    assert sinkhorn_emd(x, x).upper.item() == pytest.approx(0, abs=0.02)
    assert sinkhorn_emd(x, x).lower.item() <= 0
    zeros = torch.zeros(n, 3)
    assert sinkhorn_emd(zeros, zeros) == Bounds(torch.tensor(0.0), torch.tensor(0.0))


def test_wrong_arguments_of_sinkhorn_are_named():
    with pytest.raises(ValueError, match="epsilon must be positive"):
        sinkhorn_emd(draw(3), draw(3), epsilon=0.0)
    with pytest.raises(ValueError, match=r"iterations at least 1, got 0.005 and 0"):
        sinkhorn_emd(draw(3), draw(3), iterations=0)


@pytest.mark.parametrize(("n", "m"), [(128, 128), (256, 64), (1024, 256)])
def test_sliced_distance_of_a_shift(n, m):
    """The mean over directions of the squared length along them: |shift|^2 / 3, whatever the number of points."""
    x, shift = draw(m).repeat_interleave(n // m, 0), torch.tensor([0.2, -0.3, 0.6])
    got = sliced_wasserstein_matrix(x[torch.randperm(n)][None], draw(m)[None] + shift)
    assert got.item() == pytest.approx(0.7 / math.sqrt(3), rel=0.01)


def test_sliced_distance_is_the_mean_over_directions():
    """Against directions drawn at random and sorted projections without quantiles."""
    xs, ys = draw(3, 500), draw(2, 500, seed=1, scale=(0.4, 0.9, 0.1))
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(3, 4000))
    directions /= np.linalg.norm(directions, axis=0)
    sorted_xs, sorted_ys = (np.sort(clouds.double().numpy() @ directions, axis=1) for clouds in (xs, ys))
    expected = [[np.sqrt(((x - y) ** 2).mean()) for y in sorted_ys] for x in sorted_xs]
    np.testing.assert_allclose(sliced_wasserstein_matrix(xs, ys), expected, rtol=0.03)


def test_sliced_distance_is_below_the_best_assignment():
    x, y = draw(200), draw(200, seed=1)
    cost = torch.cdist(x, y).square()
    best = cost[linear_sum_assignment(cost)].mean().sqrt()
    assert 0 < sliced_wasserstein_matrix(x[None], y[None]).item() < best.item()


def test_sliced_distance_sees_density_where_chamfer_does_not():
    """Three quarters of the points on the left half of a plane, against an even spread."""
    even = torch.rand(3, 2048, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.0, 0.0])
    dense = even[2].clone()
    dense[:1024, 0] = torch.minimum(dense[:1024, 0], 1 - dense[:1024, 0])
    ratio = {
        distance: (distance(even[:1], dense[None]) / distance(even[:1], even[1:2])).item()
        for distance in (chamfer_matrix, sliced_wasserstein_matrix)
    }
    assert ratio[chamfer_matrix] < 2
    assert ratio[sliced_wasserstein_matrix] > 4


def test_a_set_with_itself_has_no_sliced_distance_on_the_diagonal():
    xs = draw(40, 70)
    itself = sliced_wasserstein_matrix(xs, xs)
    assert itself.diagonal().abs().max() < 1e-6
    torch.testing.assert_close(itself, sliced_wasserstein_matrix(xs, xs.clone()), atol=1e-6, rtol=1e-6)
    assert sliced_features(xs).shape == (40, distances.PROJECTIONS * distances.QUANTILES)
