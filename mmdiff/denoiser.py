"""The denoiser: network + scaling + conditioner, an estimate of x0 at any noise level, and its training loss."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmdiff.conditioning import Conditioner
from mmdiff.scaling import Scaling
from mmdiff.types import Context
from mmdiff.weighting import Weighting


def expand_sigma(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Give sigma as many dimensions as x, on its device and in its dtype.

    Args:
        sigma: one level for all (scalar), one per example (b,), or one per part of an example: any shape with as
            many dimensions as x that broadcasts against it, for instance (b, 1, frames, 1, 1).
        x: the state, (b, *d).

    Raises:
        ValueError: if the shapes do not fit.
    """
    sigma = torch.as_tensor(sigma, device=x.device, dtype=x.dtype)
    if sigma.ndim == 0 or (sigma.ndim == 1 and len(sigma) == len(x)):
        return sigma.expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))
    if sigma.ndim == x.ndim and all(s in (1, n) for s, n in zip(sigma.shape, x.shape, strict=True)):
        return sigma.expand(len(x), *sigma.shape[1:])
    raise ValueError(
        f"sigma of shape {tuple(sigma.shape)} does not fit a state of shape {tuple(x.shape)}: "
        f"give a scalar, ({len(x)},), or {x.ndim} dimensions of size 1 or the state's own."
    )


class Denoiser(nn.Module):
    """Estimates clean data: D(x, sigma, context) = skip x + out F(input x, noise, context).

    Args:
        network: called as ``network(x, noise, context)`` with x (b, *d) and noise (b,), or noise with the dimensions
            of x where levels differ within an example; returns a tensor like x. It treats the examples of a batch
            each by itself, leaves x as it is, and uses all its parameters.
        scaling: the prediction type.
        conditioner: turns raw conditions into the context.
    """

    def __init__(self, network: nn.Module, scaling: Scaling, conditioner: Conditioner):
        super().__init__()
        self.network = network
        self.scaling = scaling
        self.conditioner = conditioner

    def forward(self, x: Float[Tensor, "b *d"], sigma: Tensor | float, context: Context) -> Float[Tensor, "b *d"]:
        """Posterior mean of the data given the state ``x`` at noise level ``sigma`` (see `expand_sigma`)."""
        c = self.scaling(expand_sigma(sigma, x))
        dtype = next(self.network.parameters()).dtype
        noise = c.noise.to(dtype)
        prediction = self.network(
            (c.input * x).to(dtype), noise.flatten() if noise.numel() == len(x) else noise, context
        )
        if prediction.shape != x.shape:
            raise ValueError(f"the network returned shape {tuple(prediction.shape)} for input {tuple(x.shape)}.")
        return c.skip * x + c.out * prediction.to(x.dtype)

    def loss(
        self,
        x0: Float[Tensor, "b *d"],
        sigma: Tensor | float,
        noise: Float[Tensor, "b *d"],
        context: Context,
        *,
        mask: Bool[Tensor, "b *d"] | None = None,
        weighting: Weighting | None = None,
    ) -> Float[Tensor, "b"]:
        """Weighted squared error of x0, averaged over the noisy, unmasked elements of each example.

        Args:
            x0: clean data.
            sigma: noise levels (see `expand_sigma`); parts at 0 are given, not learned, and carry no loss.
            noise: unit Gaussian noise.
            context: encoded conditions.
            mask: elements that are data; the others (padding) carry no loss.
            weighting: weight of each level; the prediction type's own (unit weight for F) when None.
        """
        sigma = expand_sigma(sigma, x0)
        noisy = sigma > 0
        safe = torch.where(noisy, sigma, 1)
        weight = weighting(safe) if weighting else self.scaling(safe).out ** -2
        error = weight * (self(x0 + sigma * noise, sigma, context) - x0) ** 2
        counted = noisy.expand_as(x0) if mask is None else noisy & mask
        return torch.where(counted, error, 0).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)
