import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from mmdiff.metrics.frechet import FrechetDistance, frechet


def draw(n, seed, shift=0.0, size=3):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def covariance(size, seed, rank=None):
    a = draw(rank or 2 * size, seed, size=size)
    return a.T @ a / len(a)


def textbook(mean_x, cov_x, mean_y, cov_y):
    """The formula with a square root of the product, which is not symmetric."""
    root = sqrtm(cov_x.numpy() @ cov_y.numpy()).real
    return float((mean_x - mean_y).square().sum() + np.trace(cov_x.numpy() + cov_y.numpy() - 2 * root))


def distance(real, fake):
    metric = FrechetDistance(torch.nn.Identity())
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute().item()


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_law_has_no_distance_from_itself(size):
    mean, cov = draw(1, 0, size=size)[0], covariance(size, 1)
    assert frechet(mean, cov, mean, cov).item() == pytest.approx(0, abs=1e-12)


def test_equal_covariances_leave_the_distance_of_the_means():
    mean = torch.tensor([1.0, -2.0, 2.0])
    assert frechet(mean, covariance(3, 0), torch.zeros(3), covariance(3, 0)).item() == pytest.approx(9)


def test_gaussians_with_the_same_axes_differ_by_their_deviations():
    """Commuting covariances: the sum of squared differences of the standard deviations along the common axes."""
    axes = torch.linalg.qr(draw(4, 0, size=4)).Q
    a, b = torch.tensor([3.0, 1.0, 0.5, 0.0]), torch.tensor([1.0, 1.0, 2.0, 4.0])
    x, y = ((axes * deviations.double() ** 2) @ axes.T for deviations in (a, b))
    zero = torch.zeros(4)
    assert frechet(zero, x, zero, y).item() == pytest.approx((a - b).square().sum().item())


def test_two_covariances_in_the_plane():
    """tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)) for two by two matrices."""
    x, y = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
    cross = math.sqrt((x @ y).trace().item() + 2 * math.sqrt(torch.det(x @ y).item()))
    assert frechet(torch.zeros(2), x, torch.zeros(2), y).item() == pytest.approx(5 + 5 - 2 * cross)


@pytest.mark.parametrize(("size", "rank"), [(1, None), (3, None), (20, None), (6, 3)])
def test_it_is_the_textbook_formula(size, rank):
    x = draw(1, 0, size=size)[0], covariance(size, 1)
    y = draw(1, 2, size=size)[0], covariance(size, 3, rank)
    assert frechet(*x, *y).item() == pytest.approx(textbook(*x, *y), rel=1e-6)
    assert frechet(*y, *x).item() == pytest.approx(frechet(*x, *y).item(), rel=1e-6)


def test_single_precision_is_promoted():
    x, y = covariance(5, 0), covariance(5, 1)
    got = frechet(torch.zeros(5), x.float(), torch.zeros(5), y.float())
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(frechet(torch.zeros(5), x, torch.zeros(5), y).item(), rel=1e-5)


def test_the_metric_fits_means_and_covariances():
    real, fake = draw(80, 0) * torch.tensor([1.0, 5.0, 0.2]), draw(60, 1, 0.4)
    expected = textbook(real.mean(0), real.T.cov(), fake.mean(0), fake.T.cov())
    assert distance(real, fake) == pytest.approx(expected, rel=1e-8)


def test_a_large_mean_costs_no_accuracy():
    real, fake = draw(80, 0), draw(60, 1, 0.4)
    assert distance(real + 1000, fake + 1000) == pytest.approx(distance(real, fake), rel=1e-7)


@pytest.mark.parametrize("batch", [1, 7, 60])
def test_batches_add_up_in_any_split(batch):
    real, fake = draw(60, 0), draw(45, 1, 0.5)
    metric = FrechetDistance(torch.nn.Flatten())
    for part in real.reshape(60, 3, 1).split(batch):
        metric.update(part, real=True, cond={"kind": ["a"] * len(part)})
    for part in fake.reshape(45, 3, 1).split(batch):
        metric.update(part, real=False)
    assert metric.compute().item() == pytest.approx(distance(real, fake), rel=1e-10)
    assert sum(state.numel() for state in metric.metric_state.values()) == 2 * (1 + 3 + 9)
    metric.reset()
    metric.update(fake, real=True)
    metric.update(real, real=False)
    assert metric.compute().item() == pytest.approx(distance(real, fake), rel=1e-10)


def test_sums_of_two_processes_add_up():
    """What torchmetrics does between processes: every state is gathered in turn and reduced."""
    real, fake = draw(60, 0), draw(45, 1, 0.5)
    metrics = []
    for part in (slice(20), slice(20, None)):
        metric = FrechetDistance(torch.nn.Identity())
        metric.update(real[part], real=True)
        metric.update(fake[part], real=False)
        metrics.append(metric)
    other = iter(metrics[1].metric_state.values())
    metrics[0].dist_sync_fn = lambda state, group: [state, next(other)]
    metrics[0].distributed_available_fn = lambda: True
    assert metrics[0].compute().item() == pytest.approx(distance(real, fake), rel=1e-10)


@pytest.mark.parametrize(("n", "size"), [(120, 12), (1200, 12), (60, 3)])
def test_the_bias_of_equal_laws_falls_with_the_number_of_samples(n, size):
    """Errors of the means give 2 / n per feature and those of the covariances (size + 1) / (2 n), to first order."""
    values = [distance(draw(n, 2 * i, size=size), draw(n, 2 * i + 1, size=size)) / size for i in range(40)]
    assert np.mean(values) == pytest.approx((size + 5) / (2 * n), rel=0.12)


def test_it_grows_with_a_shift_and_a_change_of_scale():
    values = [distance(draw(200, 0), draw(200, 1, shift)) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)
    assert values[3] == pytest.approx(3 * 2**2, rel=0.2)
    assert distance(draw(200, 0), 2 * draw(200, 1)) == pytest.approx(3, rel=0.3)


@pytest.mark.parametrize(("real", "fake"), [(29, 30), (30, 29), (0, 40), (40, 0), (0, 0)])
def test_too_few_samples_are_refused(real, fake):
    metric = FrechetDistance(torch.nn.Identity())
    metric.update(draw(real, 0), real=True)
    metric.update(draw(fake, 1), real=False)
    with pytest.raises(ValueError, match=f"3 features needs at least 30 real .* got {real} and {fake}: use more"):
        metric.compute()


def test_just_enough_samples():
    assert distance(draw(30, 0), draw(30, 1)) > 0
