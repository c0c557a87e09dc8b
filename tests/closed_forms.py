"""Problems with known answers, written without any of mmdiff's formulas, and what measures errors against them."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.special import ndtr
from torch import Tensor, nn

from mmdiff.types import Context

SIZES = {2: (5,), 3: (2, 5), 4: (2, 3, 4), 5: (2, 2, 3, 2)}
"""Sizes of one example by the number of dimensions of a batch."""


class Mixture:
    """A mixture of isotropic Gaussians: its exact posterior mean, samples, and end points of its probability flow."""

    def __init__(self, means: Sequence[Sequence[float]], stds: Sequence[float], weights: Sequence[float]):
        self.means = torch.tensor(means, dtype=torch.float64)
        self.stds = torch.tensor(stds, dtype=torch.float64)
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x0 | x0 + sigma eps = x] for x (b, d) and a sigma that is scalar or (b, 1)."""
        y = x.double()[:, None]
        noise = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1) ** 2
        variance = self.stds[:, None] ** 2 + noise
        size = self.means.shape[1]
        log_likelihood = -((y - self.means) ** 2).sum(-1) / (2 * variance[..., 0]) - size / 2 * variance[..., 0].log()
        share = torch.softmax(log_likelihood + self.weights.log(), 1)[..., None]
        posterior = (self.means * noise + self.stds[:, None] ** 2 * y) / variance
        return (share * posterior).sum(1).to(x.dtype)

    def draw(self, n: int) -> Tensor:
        component = torch.multinomial(self.weights, n, replacement=True)
        return self.means[component] + self.stds[component, None] * torch.randn(n, self.means.shape[1]).double()

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """Of a mixture in one dimension."""
        each = ndtr((x[..., None] - self.means[:, 0].numpy()) / self.stds.numpy())
        return (each * self.weights.numpy()).sum(-1)

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """Where the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma takes x; end = 0 to about 1e-12."""

        def slope(sigma: float, flat: np.ndarray) -> np.ndarray:
            state = torch.from_numpy(flat.reshape(x.shape))
            return ((state - self(state, sigma)) / sigma).numpy().ravel()

        span = (start, max(end, 1e-6))
        path = solve_ivp(slope, span, x.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-12)
        return torch.from_numpy(path.y[:, -1].reshape(x.shape))


LINE = Mixture([[-1.5], [0.4], [1.2]], [0.5, 0.3, 0.6], [0.3, 0.2, 0.5])
PLANE = Mixture([[-1.0, 0.5], [1.0, 1.0], [0.3, -1.2]], [0.6, 0.4, 0.5], [0.5, 0.2, 0.3])


class Correlated:
    """A random mixture of Gaussians with full covariances, of mean 0 and variance 1 (averaged over the dimensions).

    Args:
        size: dimensions.
        seed: of the mixture.
        components: of the mixture.
    """

    def __init__(self, size: int, *, seed: int, components: int = 8):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.weights = torch.softmax(normal(components) / 2, 0)
        means = normal(components, size)
        means -= self.weights @ means
        variance, self.axes = torch.linalg.eigh(torch.stack([torch.cov(normal(size, 2 * size)) for _ in means]))
        total = (self.weights @ (means**2 + WITHIN * variance)).mean()
        self.means, self.variance = means / total.sqrt(), WITHIN * variance / total

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x0 | x0 + sigma eps = x] for x (b, d) and one sigma."""
        noise = float(torch.as_tensor(sigma).max()) ** 2
        return x + noise * self.score(x, noise).to(x.dtype)

    def score(self, x: Tensor, noise: float) -> Tensor:
        """Gradient of the log density of x0 + sigma eps at x (b, d), with noise = sigma^2."""
        along = (x.double() - self.means[:, None]) @ self.axes
        variance = (self.variance + noise)[:, None]
        log_likelihood = -((along**2 / variance).sum(-1) + variance.log().sum(-1)) / 2
        share = torch.softmax(log_likelihood + self.weights.log()[:, None], 0)[..., None]
        return -(share * (along / variance) @ self.axes.mT).sum(0)

    def flow(self, x: Tensor, start: float) -> Tensor:
        """Where the probability flow takes x from sigma = start to 0, to about 1e-9.

        In the angle atan(sigma) the flow is regular at both ends: y = x cos has the slope cos eps - sin x0.
        """

        def slope(angle: float, flat: np.ndarray) -> np.ndarray:
            sigma = math.tan(angle)
            state = torch.from_numpy(flat.reshape(x.shape)) / math.cos(angle)
            score = self.score(state, sigma**2)
            return -(math.cos(angle) * sigma * score + math.sin(angle) * (state + sigma**2 * score)).numpy().ravel()

        first = (x * math.cos(math.atan(start))).numpy().ravel()
        path = solve_ivp(slope, (math.atan(start), 0.0), first, method="DOP853", rtol=1e-9, atol=1e-9)
        return torch.from_numpy(path.y[:, -1].reshape(x.shape))


WITHIN = 0.5
"""Variance within a component beside that of the means."""


def two_bumps(x: Tensor, sigma: Tensor | float) -> Tensor:
    """Exact denoiser of elements that are independent, each N(-1, 1/4) or N(1, 1/4); any sigma that broadcasts."""
    variance = 0.25 + sigma**2
    return 0.25 / variance * x + sigma**2 / variance * torch.tanh(x / variance)


def gaussian_flow(x: Tensor, start: float, end: float, mean: float, std: float) -> Tensor:
    """End point of the probability flow of N(mean, std^2)."""
    return mean + (x - mean) * math.sqrt((std**2 + end**2) / (std**2 + start**2))


def order(error: Callable[[int], float], steps: Sequence[int]) -> float:
    """Order of convergence: minus the slope of log error over log steps."""
    slope, _ = np.polyfit(np.log(steps), np.log([error(n) for n in steps]), 1)
    return -slope


class Elementwise(nn.Module):
    """A network that treats elements alike; it remembers what it was called with."""

    def __init__(self, gain: float = 0.3, bias: float = 0.7):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.bias = nn.Parameter(torch.tensor(bias))
        self.calls: list[tuple[Tensor, Tensor, Context]] = []

    def forward(self, x: Tensor, noise: Tensor, context: Context) -> Tensor:
        self.calls.append((x, noise, context))
        if noise.ndim == 1:
            noise = noise.reshape(-1, *[1] * (x.ndim - 1))
        return self.gain * torch.tanh(x) + self.bias * torch.sin(noise)
