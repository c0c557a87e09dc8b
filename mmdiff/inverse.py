"""Inverse problems: a denoiser that heeds a measurement, made from one that does not.

A measurement is y = A x0 + noise, with A any differentiable function of clean data; its transpose comes from automatic
differentiation. The gradient of log p(y | x), times sigma squared, is added to the estimate of x0, so every solver
can be used (Tweedie's formula for the conditional score).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.denoiser import expand_sigma
from mmdiff.types import Denoise

Operator = Callable[[Float[Tensor, "b *d"]], Float[Tensor, "b *m"]]


def dps(
    denoise: Denoise, operator: Operator, y: Float[Tensor, "b *m"], *, noise: float = 0.0, scale: float = 1.0
) -> Denoise:
    """Diffusion posterior sampling: Chung et al. 2023, algorithm 1, whose step becomes a change of the estimate.

    The gradient of ||y - A(D(x))|| is divided by that norm as there; measured in root mean squares, so that ``scale``
    means the same for measurements of any size.

    Args:
        denoise: the denoiser, its conditions bound.
        operator: A.
        y: what was measured.
        noise: standard deviation of its error; the residual is not pressed below.
        scale: of the gradient (the paper's zeta').
    """
    if noise < 0 or scale <= 0:
        raise ValueError(f"noise must not be negative and inverse.scale positive, got {noise:g} and {scale:g}.")

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            x0 = denoise(state, sigma)
            residual = y - operator(x0)
            # of elements that A leaves out, and that are 0 on both sides, nothing is measured
            mean_square = residual.square().flatten(1).sum(1) / _measured(residual)
            size = mean_square.clamp(min=max(noise, 1e-6) ** 2).sqrt()
            (gradient,) = torch.autograd.grad((residual.square().flatten(1).sum(1) / (2 * size.detach())).sum(), state)
        return x0.detach() - scale * expand_sigma(sigma, x) ** 2 * gradient

    return guided


def _measured(residual: Tensor) -> Tensor:
    return (residual != 0).flatten(1).sum(1).clamp(min=1)


def pigdm(
    denoise: Denoise,
    operator: Operator,
    y: Float[Tensor, "b *m"],
    *,
    noise: float = 0.0,
    spread: float = 1.0,
    iterations: int = 20,
) -> Denoise:
    """Pseudoinverse-guided diffusion: Song et al. 2023, equations 7 and 8.

    p(x0 | x) is taken for a Gaussian of variance r^2 = s^2 sigma^2 / (s^2 + sigma^2) around the estimate, which makes
    E[x0 | x, y] exact for data N(m, s^2 I). A r^2 A^T + noise^2 is solved by conjugate gradients. An operator that is
    not linear counts as its tangent at the estimate (as in the extended Kalman filter), so the estimate must be near:
    begin below the highest levels, from what was measured.

    Args:
        denoise: the denoiser, its conditions bound.
        operator: A, differentiable.
        y: what was measured.
        noise: standard deviation of its error.
        spread: standard deviation s of the data.
        iterations: of conjugate gradients, at most.
    """
    if noise < 0 or spread <= 0:
        raise ValueError(f"noise must not be negative and inverse.spread positive, got {noise:g} and {spread:g}.")

    def spread_out(v: Tensor, sigma: Tensor, pull: Callable[[Tensor], Tensor]) -> Tensor:
        return spread**2 * sigma**2 / (spread**2 + sigma**2) * v

    return _projected(denoise, operator, y, noise, iterations, spread_out)


def mmps(
    denoise: Denoise, operator: Operator, y: Float[Tensor, "b *m"], *, noise: float = 0.0, iterations: int = 3
) -> Denoise:
    """Moment-matching posterior sampling: Rozet et al. 2024.

    As `pigdm`, with the covariance of p(x0 | x) from the denoiser's own Jacobian J, sigma^2 J (Tweedie), which makes
    E[x0 | x, y] exact for every Gaussian, so what parts of an example have to do with each other counts. An iteration
    costs a pass back through the network.

    Args:
        denoise: the denoiser, its conditions bound.
        operator: A, differentiable (see `pigdm`).
        y: what was measured.
        noise: standard deviation of its error, at least 1e-3: the Jacobian of a network is not quite symmetric.
        iterations: of conjugate gradients, at most; for the same reason more can be worse.
    """
    if noise < 0:
        raise ValueError(f"noise must not be negative, got {noise:g}.")

    def pulled(v: Tensor, sigma: Tensor, pull: Callable[[Tensor], Tensor]) -> Tensor:
        return sigma**2 * pull(v)

    return _projected(denoise, operator, y, max(noise, 1e-3), iterations, pulled)


def _projected(
    denoise: Denoise,
    operator: Operator,
    y: Tensor,
    noise: float,
    iterations: int,
    covariance: Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor],
) -> Denoise:
    """D' = D + sigma^2 J^T A^T (A V A^T + noise^2)^-1 (y - A(D)), with V = ``covariance`` of p(x0 | x)."""

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = expand_sigma(sigma, x)
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            x0 = denoise(state, sigma)
            clean = x0.detach().requires_grad_()
            predicted = operator(clean)
            weights = torch.zeros_like(predicted, requires_grad=True)
            (transposed,) = torch.autograd.grad(predicted, clean, weights, create_graph=True)
        residual = y - predicted.detach()

        def pull(v: Tensor) -> Tensor:
            return torch.autograd.grad(x0, state, v, retain_graph=True)[0]

        def back(v: Tensor) -> Tensor:
            return torch.autograd.grad(predicted, clean, v, retain_graph=True)[0]

        def forth(v: Tensor) -> Tensor:
            return torch.autograd.grad(transposed, weights, v, retain_graph=True)[0]

        def matrix(v: Tensor) -> Tensor:
            return forth(covariance(back(v), sigma, pull)) + noise**2 * v

        with torch.no_grad():
            solved = back(conjugate_gradients(matrix, residual, iterations))
        return x0.detach() + sigma**2 * pull(solved)

    return guided


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], b: Float[Tensor, "b *m"], iterations: int, tolerance: float = 1e-5
) -> Float[Tensor, "b *m"]:
    """Solve matrix(u) = b for each example: Hestenes & Stiefel 1952, for a symmetric matrix that is not negative.

    An example stops where its matrix is found negative after all, as a network's may be.
    """

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).flatten(1).sum(1).reshape(-1, *[1] * (b.ndim - 1))

    u, residual = torch.zeros_like(b), b
    direction, square = residual, dot(residual, residual)
    goal = tolerance**2 * square
    goes = square > 0
    for _ in range(iterations):
        moved = matrix(direction)
        curvature = dot(direction, moved)
        goes = goes & (square > goal) & (curvature > 0)
        if not goes.any():
            break
        step = torch.where(goes, square / torch.where(goes, curvature, 1), 0)
        u, residual = u + step * direction, residual - step * moved
        before, square = square, dot(residual, residual)
        direction = residual + square / before.clamp(min=1e-30) * direction
    return u
