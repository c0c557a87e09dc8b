"""RePaint against the conditional law of a Gaussian, in closed form and by affine maps propagated without sampling."""

from functools import partial

import pytest
import torch

from mmdiff.sampling import SeededNoise, sample
from mmdiff.schedules import Karras
from mmdiff.solvers.repaint import repaint

MEAN = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6, 0.3], [0.6, 0.8, -0.2], [0.3, -0.2, 0.5]], dtype=torch.float64)
GIVEN = torch.tensor([1.4, 0.0, 0.0], dtype=torch.float64)
KNOWN = torch.tensor([True, False, False])


def denoise(x, sigma):
    """E[x0 | x] of the Gaussian."""
    total = COVARIANCE + float(sigma) ** 2 * torch.eye(3, dtype=torch.float64)
    return MEAN + (x - MEAN) @ torch.linalg.solve(total, COVARIANCE)


def conditional():
    """Mean and covariance of the last two numbers when the first one is known (Bishop 2006, equations 2.81, 2.82)."""
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    return MEAN[1:] + gain * (GIVEN[0] - MEAN[0]), COVARIANCE[1:, 1:] - gain[:, None] * COVARIANCE[0, 1:]


def drawn(count, steps=20, **options):
    solver = partial(repaint, given=GIVEN.expand(count, 3), known=KNOWN[None], **options)
    given = torch.where(KNOWN, GIVEN, 0).expand(count, 3)
    sigmas = Karras(sigma_max=20, sigma_min=0.02).grid(steps)
    torch.manual_seed(1)
    return sample(denoise, (count, 3), sigmas, solver, torch.randn_like, given=given)


def distance(x):
    """Of the law of the samples from the conditional one: of means and of covariances."""
    mean, covariance = conditional()
    return (x[:, 1:].mean(0) - mean).abs().max().item(), (torch.cov(x[:, 1:].T) - covariance).abs().max().item()


@pytest.mark.parametrize("jump", [1, 4])
def test_the_law_tends_to_the_conditional_one(jump):
    errors = [distance(drawn(20_000, jump=jump, repeats=repeats)) for repeats in (1, 4, 16)]
    means, covariances = zip(*errors, strict=True)
    print(jump, errors)
    assert means[0] > 3 * means[2]
    assert means[2] < 0.05
    assert covariances[2] < 0.05


def test_without_repeats_it_is_replacement():
    print(conditional())
    assert distance(drawn(20_000, repeats=1))[0] > 0.1
