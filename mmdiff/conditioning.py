"""Conditions: raw values by name (a label, a number) become the `Context` that a network reads.

An unknown value is ``None``. Dropping a condition in training, leaving it out at sampling and the unconditional
branch of guidance are the same thing: its value becomes ``None``, which every embedder maps to a learned vector.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmdiff.errors import DataError
from mmdiff.nn.embed import FourierFeatures
from mmdiff.types import Context


class Embedder(nn.Module, ABC):
    """Encodes one named condition of a batch.

    Args:
        drop: probability of dropping the condition of an example while training.
    """

    def __init__(self, drop: float = 0.1):
        super().__init__()
        if not 0 <= drop <= 1:
            raise ValueError(f"an embedder's drop must lie in [0, 1], got {drop:g}.")
        self.drop = drop

    @abstractmethod
    def forward(self, values: Sequence[Any]) -> Context:
        """Context of one raw value per example; ``None`` is unknown.

        Raises:
            ValueError: for a value that the embedder does not know, naming the allowed ones.
        """

    @classmethod
    def fit(cls, values: Sequence[Any]) -> dict[str, Any]:
        """Constructor arguments learned from the values of the training data, known ones only."""
        return {}


class ClassEmbedder(Embedder):
    """A learned vector per label, of unit variance (an `nn.Linear`'s default would be drowned by the noise embedding).

    Args:
        features: size of the vector.
        classes: the allowed labels.
    """

    def __init__(self, features: int, classes: Sequence[str | int], drop: float = 0.1):
        super().__init__(drop)
        self.classes = list(classes)
        self.index = {str(label): i for i, label in enumerate(self.classes)}
        self.table = nn.Embedding(len(self.classes) + 1, features)

    def forward(self, values: Sequence[Any]) -> Context:
        unknown = [v for v in values if v is not None and str(v) not in self.index]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(map(str, self.classes))}")
        index = [len(self.classes) if v is None else self.index[str(v)] for v in values]
        return Context(vector=self.table(torch.tensor(index, device=self.table.weight.device)))

    @classmethod
    def fit(cls, values: Sequence[Any]) -> dict[str, Any]:
        return {"classes": sorted({str(value): value for value in values}.values(), key=str)}


class NumberEmbedder(Embedder):
    """Fourier features of a standardized number, then a linear map.

    Args:
        features: size of the vector.
        mean: mean of the number over the training data.
        std: its standard deviation.
        bandwidth: the finest detail resolved, in cycles per standard deviation.
    """

    def __init__(self, features: int, mean: float, std: float, bandwidth: float = 2.0, drop: float = 0.1):
        super().__init__(drop)
        if std <= 0:
            raise ValueError(f"a NumberEmbedder's std must be positive, got {std:g}.")
        self.mean = mean
        self.std = std
        self.fourier = FourierFeatures(features, bandwidth)
        self.linear = nn.Linear(features, features)
        self.null = nn.Parameter(torch.randn(features))

    def forward(self, values: Sequence[Any]) -> Context:
        try:
            numbers = [float("nan") if v is None else (float(v) - self.mean) / self.std for v in values]
        except (TypeError, ValueError) as error:
            raise ValueError(f"expected numbers, got {list(values)!r}") from error
        number = self.null.new_tensor(numbers)
        known = ~number.isnan()
        vector = self.linear(self.fourier(number.nan_to_num()))
        return Context(vector=torch.where(known[:, None], vector, self.null))

    @classmethod
    def fit(cls, values: Sequence[Any]) -> dict[str, Any]:
        number = torch.tensor([float(v) for v in values], dtype=torch.float64)
        return {"mean": number.mean().item(), "std": number.std(correction=0).clamp(min=1e-6).item()}


class DenseEmbedder(Embedder):
    """A signal aligned with the data, as it is, and a last channel that is 1 where it is known.

    The network needs as many more input channels (``network.dense``). Values are tensors, arrays, or .npy files.

    Args:
        shape: of a signal, (channels, *size), with the size of the data in model space, or 1 along a dimension.
    """

    blank: Tensor

    def __init__(self, shape: Sequence[int], drop: float = 0.1):
        super().__init__(drop)
        self.register_buffer("blank", torch.zeros(*shape), persistent=False)

    def forward(self, values: Sequence[Any]) -> Context:
        rows = [self.blank if value is None else self.blank.new_tensor(read_array(value)) for value in values]
        wrong = next((row for row in rows if row.shape != self.blank.shape), None)
        if wrong is not None:
            raise ValueError(f"expected signals of shape {tuple(self.blank.shape)}, got {tuple(wrong.shape)}")
        known = self.blank.new_tensor([value is not None for value in values])
        mark = known.reshape(-1, *[1] * self.blank.ndim).expand(-1, 1, *self.blank.shape[1:])
        return Context(dense=torch.cat([torch.stack(rows), mark], 1))

    @classmethod
    def fit(cls, values: Sequence[Any]) -> dict[str, Any]:
        return {"shape": list(read_array(values[0]).shape)}


def read_array(value: Any) -> np.ndarray:
    """A signal, from a .npy file if a path is given.

    Raises:
        DataError: for a file that cannot be read.
    """
    if not isinstance(value, str | os.PathLike):
        return np.asarray(value)
    try:
        return np.load(value)
    except (OSError, ValueError) as error:
        raise DataError(value, "is not a .npy file that can be read") from error


class Conditioner(nn.Module):
    """Embeds every condition and merges the results into one context.

    Args:
        features: size of the context's vector, for the network to know.
        embedders: one per condition, by the name the condition has in a batch; none for an unconditional model.
        drop: probability of dropping all conditions of an example while training, beside those that its embedders
            drop one by one. Guidance compares with what is learned then, and samples of which nothing is asked are it.
    """

    def __init__(self, features: int, embedders: Mapping[str, Embedder] | None = None, drop: float = 0.1):
        super().__init__()
        if not 0 <= drop <= 1:
            raise ValueError(f"conditioner.drop must lie in [0, 1], got {drop:g}.")
        self.features = features
        self.drop = drop
        self.embedders = nn.ModuleDict(embedders or {})

    def forward(self, cond: Mapping[str, Sequence[Any]], count: int) -> Context:
        """Context of ``count`` examples. Conditions not named are unknown; while training some are dropped.

        Raises:
            ValueError: for a condition without an embedder or a value that its embedder does not know.
        """
        surplus = set(cond) - set(self.embedders)
        if surplus:
            allowed = ", ".join(self.embedders) or "none: the model is unconditional"
            raise ValueError(f"cond.{min(surplus)} is not a condition of this model; its conditions are {allowed}.")
        silent = torch.rand(count) < self.drop if self.training else torch.zeros(count, dtype=torch.bool)
        contexts = []
        for name, embedder in self.embedders.items():
            assert isinstance(embedder, Embedder)
            values = list(cond.get(name, [None] * count))
            if len(values) != count:
                raise ValueError(f"cond.{name} has {len(values)} values for {count} examples.")
            if self.training:
                dropped = silent | (torch.rand(count) < embedder.drop)
                values = [None if d else v for d, v in zip(dropped.tolist(), values, strict=True)]
            try:
                contexts.append(embedder(values))
            except ValueError as error:
                raise ValueError(f"cond.{name}: {error}.") from error
        return merge(contexts)

    def null(self, count: int) -> Context:
        """The context in which nothing is said."""
        return merge([embedder([None] * count) for embedder in self.embedders.values()])


def unmix(
    cond: Mapping[str, Sequence[Any]], count: int
) -> tuple[list[dict[str, list[Any]]], Float[Tensor, "mixed count"]]:
    """Take mixtures apart: values that are mappings from value to weight, for some examples or all.

    Returns:
        Conditions without mixtures, as many as the largest one has parts, and the weights of these parts for each
        example, which add up to 1.

    Raises:
        ValueError: for weights that are not positive numbers.
    """
    if not any(isinstance(value, Mapping) for values in cond.values() for value in values):
        return [{name: list(values) for name, values in cond.items()}], torch.ones(1, count)
    rows = [
        [tuple(zip(*parts, strict=True)) for parts in product(*(_parts(name, v[i]) for name, v in cond.items()))]
        for i in range(count)
    ]
    most = max(map(len, rows))
    weights = torch.zeros(most, count)
    conds: list[dict[str, list[Any]]] = [{name: [] for name in cond} for _ in range(most)]
    for i, row in enumerate(rows):
        for k in range(most):
            values, shares = row[min(k, len(row) - 1)]
            weights[k, i] = prod(shares) if k < len(row) else 0
            for name, value in zip(cond, values, strict=True):
                conds[k][name].append(value)
    return conds, weights


def _parts(name: str, value: Any) -> list[tuple[Any, float]]:
    if not isinstance(value, Mapping):
        return [(value, 1.0)]
    weights = list(value.values())
    if not weights or not all(isinstance(w, int | float) and w > 0 for w in weights):
        raise ValueError(f"cond.{name}: a mixture needs positive weights, {{VALUE: WEIGHT}}; got {dict(value)}.")
    return [(part, weight / sum(weights)) for part, weight in value.items()]


def merge(contexts: Sequence[Context]) -> Context:
    """Join contexts: vectors add (scaled to keep unit variance), tokens and dense signals are concatenated."""
    vectors = [c.vector for c in contexts if c.vector is not None]
    tokens = [c.tokens for c in contexts if c.tokens is not None]
    masks = [
        torch.ones_like(c.tokens[..., 0], dtype=torch.bool) if c.token_mask is None else c.token_mask
        for c in contexts
        if c.tokens is not None
    ]
    dense = [c.dense for c in contexts if c.dense is not None]
    return Context(
        vector=torch.stack(vectors).sum(0) / len(vectors) ** 0.5 if vectors else None,
        tokens=torch.cat(tokens, 1) if tokens else None,
        token_mask=torch.cat(masks, 1) if masks else None,
        dense=torch.cat(dense, 1) if dense else None,
    )
