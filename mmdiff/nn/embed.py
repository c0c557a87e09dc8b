"""Embeddings of numbers."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """Cosines of random frequencies and phases, of unit variance: Tancik et al. 2020; Karras et al. 2024, equation 76.

    Args:
        features: how many.
        bandwidth: standard deviation of the frequencies, in cycles per unit.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int, bandwidth: float = 1.0):
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * bandwidth * torch.randn(features))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features))

    def forward(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s f"]:
        """Features of each element of ``x``, in a new last dimension."""
        return math.sqrt(2) * torch.cos(x[..., None] * self.frequencies + self.phases)


class PlaceEmbedding(nn.Module):
    """Features of the places along one dimension, fine enough to tell neighbors apart."""

    def __init__(self, features: int):
        super().__init__()
        self.fourier = FourierFeatures(features, bandwidth=1 / 8)
        self.linear = nn.Linear(features, features)

    def forward(self, length: int) -> Float[Tensor, "{length} f"]:
        """One row for each of ``length`` places."""
        weight = self.linear.weight
        return self.linear(self.fourier(torch.arange(length, device=weight.device, dtype=weight.dtype)))
