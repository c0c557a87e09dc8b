"""Pairing shortens the path from noise to data and changes nothing else."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import kstest

from mmdiff_pointcloud.coupling import kd_pairing, leaves


def boxes(batch: int, n: int) -> torch.Tensor:
    """Points on tall open boxes (the four sides, one of them removed), of mean 0 and standard deviation 1 over all."""
    u, side = torch.rand(batch, 2, n), torch.randint(0, 3, (batch, n))
    across, wall = u[:, 0] - 0.5, torch.full_like(u[:, 0], 0.5)
    x = torch.where(side == 0, across, torch.where(side == 1, wall, -wall))
    z = torch.where(side == 0, wall, across)
    points = torch.stack([x, 3 * u[:, 1] - 1.5, z], 1)
    return (points - points.mean()) / points.std()


def path(x0: torch.Tensor, noise: torch.Tensor) -> float:
    return (x0 - noise).square().sum(1).mean().item()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 100, 1000])
@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize("batch", [1, 3])
def test_pairing_is_a_permutation_of_whole_points_in_each_cloud(n, channels, batch):
    x0, noise = torch.randn(batch, channels, n), torch.randn(batch, channels, n)
    kept = x0.clone(), noise.clone()
    paired = kd_pairing(x0, noise)
    assert paired.shape == noise.shape
    for before, after in zip(noise, paired, strict=True):
        assert sorted(map(tuple, before.T.tolist())) == sorted(map(tuple, after.T.tolist()))
    assert torch.equal(x0, kept[0])
    assert torch.equal(noise, kept[1])


@pytest.mark.parametrize("n", [1, 5, 64, 1001])
def test_numbers_on_a_line_are_paired_by_rank(n):
    """The exact optimum in one dimension."""
    x0, noise = torch.randn(2, 1, n), torch.randn(2, 1, n)
    paired = kd_pairing(x0, noise)
    for data, drawn in zip(x0[:, 0], paired[:, 0], strict=True):
        assert torch.equal(drawn[data.argsort()], drawn.sort().values)


def split(points: torch.Tensor, index: list[int], low: float, high: float, level: int) -> list[int]:
    """Leaves of a k-d tree over the places [low, high), by plain recursion."""
    if len(index) <= 1:
        return index
    index = sorted(index, key=lambda i: points[(1, 0, 2)[level % 3], i].item())
    middle = (low + high) / 2
    left = math.ceil(middle) - math.ceil(low)
    return split(points, index[:left], low, middle, level + 1) + split(points, index[left:], middle, high, level + 1)


@pytest.mark.parametrize("n", [2, 3, 8, 21, 128, 200])
def test_leaves_are_those_of_the_recursion(n):
    points = torch.randn(2, 3, n)
    expected = [split(cloud, list(range(n)), 0, n, 0) for cloud in points]
    assert leaves(points).tolist() == expected


@pytest.mark.parametrize("n", [256, 1000, 1024])
def test_paths_become_short(n):
    x0, noise = boxes(8, n), torch.randn(8, 3, n)
    assert path(x0, kd_pairing(x0, noise)) < 0.25 * path(x0, noise)


def test_paths_are_nearly_as_short_as_they_can_be():
    x0, noise = boxes(6, 256), torch.randn(6, 3, 256)
    best = []
    for cloud, drawn in zip(x0, noise, strict=True):
        cost = torch.cdist(cloud.T, drawn.T).square().numpy()
        best.append(cost[linear_sum_assignment(cost)].mean())
    assert path(x0, kd_pairing(x0, noise)) < 1.6 * sum(best) / len(best)


def test_each_point_of_a_cloud_still_gets_gaussian_noise():
    """Data without order (and without ties): over many clouds, the noise of any one place is the noise of all."""
    x0, noise = torch.rand(3000, 3, 12), torch.randn(3000, 3, 12)
    paired = kd_pairing(x0, noise)
    for place in (0, 5, 11):
        for axis in range(3):
            assert kstest(paired[:, axis, place].numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("n", [5, 32])
def test_order_of_the_data_does_not_matter(n):
    x0, noise = torch.randn(2, 3, n), torch.randn(2, 3, n)
    order = torch.randperm(n)
    assert torch.equal(kd_pairing(x0[..., order], noise), kd_pairing(x0, noise)[..., order])


def test_equal_points_are_paired_too():
    x0, noise = torch.zeros(1, 3, 9), torch.randn(1, 3, 9)
    assert torch.equal(kd_pairing(x0, noise).sort().values, noise.sort().values)
