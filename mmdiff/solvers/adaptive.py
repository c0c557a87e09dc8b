"""Steps of a length that the error asks for."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.denoiser import expand_sigma
from mmdiff.solvers.steps import levels, ratio
from mmdiff.types import Denoise, Noise, Step

SHORTEST = 1e-4  # share of the way between two levels; such a step is taken whatever its error


def adaptive(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    tolerance: float = 1e-3,
) -> Iterator[Step]:
    """Ralston's method of order 3 with the midpoint method of order 2 inside it, in the angle atan(sigma).

    Ralston 1962, equation 6.5. Between two levels each example takes steps of its own, by its own error alone; with
    one step in the grid they are free to be as long as they can. Order 3; 3 evaluations per attempt.

    Args:
        denoise: the denoiser.
        x: initial state.
        sigmas: decreasing noise levels, where the state is reported.
        noise: not used.
        tolerance: root mean square error of a step, in units of the state divided by sqrt(1 + sigma^2).
    """
    if tolerance <= 0:
        raise ValueError(f"solver.tolerance must be positive, got {tolerance:g}.")
    for i, sigma, target in levels(sigmas, x):
        first, last = expand_sigma(sigma, x).atan(), expand_sigma(target, x).atan()
        done = torch.zeros(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        share = torch.full_like(done, 1.0)
        x0 = x
        while (done < 1).any():
            share = torch.minimum(share, 1 - done)
            start = torch.lerp(first, last, done)
            length = share * (last - first)
            slopes: list[Tensor] = []
            for node in (0, 1 / 2, 3 / 4):
                angle = start + node * length
                y = x * start.cos() + (node * length * slopes[-1] if slopes else 0)
                x0 = denoise(y / angle.cos(), angle.tan())
                slopes.append((y - x0 * angle.cos()) * ratio(angle.cos(), angle.sin(), at_zero=0) - x0 * angle.sin())
            change = length * (2 * slopes[0] + 3 * slopes[1] + 4 * slopes[2]) / 9
            error = (change - length * slopes[1]).square().flatten(1).mean(1).sqrt().reshape_as(done)
            accepted = ~(error > tolerance) | (share <= SHORTEST)
            end = torch.where(share >= 1 - done, last, start + length)
            moved = (start.cos() / end.cos()) * x + change / end.cos()
            x = torch.where(accepted & (length != 0), moved, x)
            left = 1 - done
            done = torch.where(accepted, torch.where(share >= left, 1.0, done + share), done)
            share = (share * (0.9 * (tolerance / error.clamp(min=1e-12)) ** (1 / 3)).clamp(0.2, 5)).clamp(min=SHORTEST)
        yield Step(i, target, x, x0)
