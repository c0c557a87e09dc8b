"""RePaint against the conditional law of a Gaussian in closed form."""

from functools import partial

import pytest
import torch

from mmdiff.sampling import sample
from mmdiff.schedules import Karras
from mmdiff.solvers.repaint import repaint

COUNT = 2000
MEAN = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6, 0.3], [0.6, 0.8, -0.2], [0.3, -0.2, 0.5]], dtype=torch.float64)
GIVEN = torch.tensor([[1.4, 0.0, 0.0]], dtype=torch.float64).expand(COUNT, 3)
KNOWN = torch.tensor([[True, False, False]])


def denoise(x, sigma):
    """E[x0 | x] of the Gaussian."""
    total = COVARIANCE + float(sigma) ** 2 * torch.eye(3, dtype=torch.float64)
    return MEAN + (x - MEAN) @ torch.linalg.solve(total, COVARIANCE)


def drawn(steps, **options):
    solver = partial(repaint, given=GIVEN, known=KNOWN, **options)
    sigmas = Karras(sigma_max=20, sigma_min=0.02).grid(steps)
    x = sample(denoise, GIVEN.shape, sigmas, solver, torch.randn_like, given=GIVEN)
    assert torch.equal(x[:, :1], GIVEN[:, :1])
    return x[:, 1:]


def distances(x):
    """Of mean and covariance from the conditional ones (Bishop 2006, equations 2.81 and 2.82)."""
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    mean = MEAN[1:] + gain * (GIVEN[0, 0] - MEAN[0])
    covariance = COVARIANCE[1:, 1:] - gain[:, None] * COVARIANCE[0, 1:]
    return (x.mean(0) - mean).abs().max().item(), (torch.cov(x.T) - covariance).abs().max().item()


@pytest.mark.parametrize("jump", [1, 8])
def test_the_mean_tends_to_the_conditional_one_with_repeats(jump):
    once, some, many = (distances(drawn(40, jump=jump, repeats=repeats))[0] for repeats in (1, 4, 12))
    assert once > 0.1
    assert some < 0.7 * once
    assert many < 0.05


def test_the_covariance_tends_to_the_conditional_one_with_steps():
    few, some, many = (distances(drawn(steps, repeats=4))[1] for steps in (10, 30, 120))
    assert few > 0.15
    assert some < 0.7 * few
    assert many < 0.06


def test_a_step_is_walked_as_often_as_asked():
    calls = []

    def counted(x, sigma):
        calls.append(float(sigma))
        return denoise(x, sigma)

    sigmas = Karras().grid(5)
    steps = list(repaint(counted, torch.zeros(1, 3).double(), sigmas, given=GIVEN[:1], known=KNOWN, jump=2, repeats=3))
    a, b, c, d, e = sigmas[:-1].tolist()
    assert calls == [a, b] * 3 + [c, d] * 3 + [e] * 3
    assert [step.index for step in steps] == list(range(15))
    assert steps[-1].sigma == 0


@pytest.mark.parametrize("option", ["jump", "repeats"])
def test_mistakes(option):
    with pytest.raises(ValueError, match=f"{option} must be a whole number of at least 1, got 0"):
        drawn(2, **{option: 0})
