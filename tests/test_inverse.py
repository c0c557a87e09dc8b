"""Measurements that a denoiser heeds, against posteriors in closed form."""

import pytest
import torch

from mmdiff.inverse import conjugate_gradients, dps, mmps, pigdm
from mmdiff.sampling import sample
from mmdiff.schedules import Karras
from mmdiff.solvers import heun

SIZE, STD, NOISE = 4, 0.7, 0.3
GENERATOR = torch.Generator().manual_seed(3)
MEAN = torch.randn(SIZE, generator=GENERATOR, dtype=torch.float64)
A = torch.randn(2, SIZE, generator=GENERATOR, dtype=torch.float64)
Y = torch.tensor([0.8, -1.1], dtype=torch.float64)


def denoise(x, sigma):
    return MEAN + (x - MEAN) * STD**2 / (STD**2 + sigma**2)


def operator(x):
    return x @ A.T


def posterior(precision, weighted):
    """Mean and covariance of a Gaussian prior, measured by A (Bishop 2006, equations 2.116 and 2.117)."""
    covariance = torch.linalg.inv(precision * torch.eye(SIZE) + A.T @ A / NOISE**2)
    return (weighted + Y @ A / NOISE**2) @ covariance, covariance


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0, 50.0])
def test_pigdm_is_the_posterior_mean_of_a_gaussian(sigma):
    x = torch.randn(5, SIZE).double()
    got = pigdm(denoise, operator, Y.expand(5, 2), noise=NOISE, spread=STD)(x, torch.tensor(sigma).double())
    expected, _ = posterior(1 / STD**2 + 1 / sigma**2, MEAN / STD**2 + x / sigma**2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 3.0, 50.0])
def test_mmps_is_the_posterior_mean_of_a_correlated_gaussian(sigma):
    root = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prior, eye = root @ root.T + 0.1 * torch.eye(SIZE), torch.eye(SIZE).double()

    def correlated(x, sigma):
        return MEAN + (x - MEAN) @ torch.linalg.solve(prior + sigma.max() ** 2 * eye, prior)

    x = torch.randn(5, SIZE).double()
    precision = torch.linalg.inv(prior) + eye / sigma**2 + A.T @ A / NOISE**2
    expected = (MEAN @ torch.linalg.inv(prior) + x / sigma**2 + Y @ A / NOISE**2) @ torch.linalg.inv(precision)
    got = mmps(correlated, operator, Y.expand(5, 2), noise=NOISE)(x, torch.tensor(sigma).double())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    other = pigdm(correlated, operator, Y.expand(5, 2), noise=NOISE)(x, torch.tensor(sigma).double())
    assert (other - expected).abs().max() > 0.01  # which takes the data for uncorrelated


def test_pigdm_takes_affine_operators_and_exact_measurements():
    x, shift = torch.randn(5, SIZE).double(), torch.tensor([2.0, -1.0]).double()
    plain = pigdm(denoise, operator, Y.expand(5, 2), noise=NOISE)(x, torch.tensor(1.0))
    moved = pigdm(denoise, lambda x: operator(x) + shift, (Y + shift).expand(5, 2), noise=NOISE)(x, torch.tensor(1.0))
    torch.testing.assert_close(moved, plain)
    exact = pigdm(denoise, operator, Y.expand(5, 2), spread=STD)(x, torch.tensor(1.0))
    torch.testing.assert_close(operator(exact), Y.expand(5, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [pigdm, mmps])
def test_an_operator_that_is_not_linear_counts_as_its_tangent(method):
    def curved(x):
        return operator(x) + 0.3 * operator(x) ** 3

    x, sigma = torch.randn(5, SIZE).double(), torch.tensor(0.6).double()
    got = method(denoise, curved, Y.expand(5, 2), noise=NOISE)(x, sigma)
    for i in range(5):
        place = denoise(x[i], sigma)
        slope = torch.autograd.functional.jacobian(curved, place)

        def tangent(x0, place=place, slope=slope):
            return curved(place) + (x0 - place) @ slope.T

        expected = method(denoise, tangent, Y.expand(1, 2), noise=NOISE)(x[i : i + 1], sigma)
        torch.testing.assert_close(got[i : i + 1], expected)


def test_samples_of_pigdm_have_the_posterior_of_a_gaussian():
    count = 4000
    heeding = pigdm(denoise, operator, Y.expand(count, 2), noise=NOISE, spread=STD)
    grid, nothing = Karras(sigma_max=30).grid(40), torch.zeros(count, SIZE).double()
    x = sample(heeding, nothing.shape, grid, heun, torch.randn_like, given=nothing)
    mean, covariance = posterior(1 / STD**2, MEAN / STD**2)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=0.05)
    prior = sample(denoise, nothing.shape, grid, heun, torch.randn_like, given=nothing)
    assert (torch.cov(prior.T) - covariance).abs().max() > 0.2


def test_dps_follows_the_gradient_of_the_residual():
    """D' - D = scale sigma^2 J A^T r / rms(r), with J a number for this Gaussian."""
    x, sigma = torch.randn(5, SIZE).double(), 0.8
    plain = denoise(x, sigma)
    residual = Y - operator(plain)
    jacobian = STD**2 / (STD**2 + sigma**2)
    change = 2.5 * sigma**2 * jacobian * residual @ A / residual.square().mean(1, keepdim=True).sqrt()
    got = dps(denoise, operator, Y.expand(5, 2), scale=2.5)(x, torch.tensor(sigma).double())
    torch.testing.assert_close(got, plain + change)


def test_dps_does_not_count_what_is_not_measured():
    """As many zeros beside the measurement as one likes change nothing."""
    x = torch.randn(5, SIZE).double()
    plain = dps(denoise, operator, Y.expand(5, 2))(x, torch.tensor(1.0))
    more = dps(
        denoise,
        lambda x: torch.cat([operator(x), 0 * x], 1),
        torch.cat([Y.expand(5, 2), torch.zeros(5, SIZE)], 1),
    )
    torch.testing.assert_close(more(x, torch.tensor(1.0)), plain)


def test_dps_takes_operators_that_are_not_linear():
    """Of x0 ~ N(0, 1) its exponential is measured."""

    def standard(x, sigma):
        return x / (1 + sigma**2)

    heeding = dps(standard, torch.exp, torch.full((100, 1), 2.0))
    x = sample(heeding, (100, 1), Karras(sigma_max=20).grid(60), heun, torch.randn_like)
    assert (x.exp() - 2).abs().median() < 0.01
    assert (torch.randn(100).exp() - 2).abs().median() > 0.5


def test_conjugate_gradients_solve_each_example():
    root = torch.randn(3, 6, 6, dtype=torch.float64)
    matrix, b = root @ root.mT + 0.5 * torch.eye(6), torch.randn(3, 6).double()
    b[1] = 0
    got = conjugate_gradients(lambda v: (matrix @ v[..., None])[..., 0], b, 30, 1e-9)
    torch.testing.assert_close(got, torch.linalg.solve(matrix, b))


@pytest.mark.parametrize("make", [dps, pigdm, mmps])
def test_mistakes(make):
    with pytest.raises(ValueError, match="noise must not be negative"):
        make(denoise, operator, Y[None], noise=-1.0)


def test_conjugate_gradients_stop_at_a_negative_matrix():
    b = torch.tensor([[1.0, 1.0], [1.0, 1.0]]).double()
    matrix = torch.tensor([[2.0, 4.0], [2.0, -4.0]]).double()
    got = conjugate_gradients(lambda v: matrix * v, b, 10)
    torch.testing.assert_close(got[0], torch.tensor([0.5, 0.25]).double())
    assert got[1].isfinite().all()
