"""The data that travels between the parts, and the protocols that the parts accept.

Shapes: ``b`` examples, ``*d`` the dimensions of one example in model space (channels first), ``c`` features.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor


class Example(NamedTuple):
    """One training example in model space; ``mask`` marks the elements that are data rather than padding."""

    x: Float[Tensor, "*d"]
    cond: dict[str, Any]
    mask: Bool[Tensor, "*d"] | None = None


class Batch(NamedTuple):
    """Collated examples. ``cond`` maps a name to one raw value per example: a label, a number, ``None`` if unknown."""

    x: Float[Tensor, "b *d"]
    cond: dict[str, list[Any]]
    mask: Bool[Tensor, "b *d"] | None = None


class Context(NamedTuple):
    """Encoded conditions, ready for a network."""

    vector: Float[Tensor, "b c"] | None = None
    tokens: Float[Tensor, "b l e"] | None = None
    token_mask: Bool[Tensor, "b l"] | None = None
    dense: Float[Tensor, "b k *d"] | None = None


class Step(NamedTuple):
    """What a solver yields: the state ``x`` reached at level ``sigma``, and the estimate ``x0`` used for it."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a step
    sigma: Float[Tensor, "*s"]
    x: Float[Tensor, "b *d"]
    x0: Float[Tensor, "b *d"]


@runtime_checkable
class MediaSet(Protocol):
    """A map-style data set: media as their modality reads them, and raw condition values by name.

    An index gives the same example for the same seed of torch, in a pickled copy (a worker's) too.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, dict[str, Any]]: ...


@runtime_checkable
class Denoise(Protocol):
    """``denoise(x, sigma) -> x0``, the posterior mean of the data given the noisy state."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


@runtime_checkable
class DenoiseInContext(Protocol):
    """``denoise(x, sigma, context) -> x0``: a denoiser whose conditions are not bound yet."""

    def __call__(self, x: Tensor, sigma: Tensor, context: Context) -> Tensor: ...


@runtime_checkable
class Levels(Protocol):
    """``levels(sigma, x0, schedule)``: noise levels that differ within the examples, from one level for each (b,).

    One with an attribute ``dims`` lets them differ along these dimensions of an example (0 for the channels) alone.
    """

    def __call__(self, sigma: Tensor, x0: Tensor, schedule: Any) -> Tensor: ...


@runtime_checkable
class Coupling(Protocol):
    """``coupling(x0, noise)``: the same noise, matched to the data it is mixed with; its law stays the same."""

    def __call__(self, x0: Tensor, noise: Tensor) -> Tensor: ...


@runtime_checkable
class Noise(Protocol):
    """``noise(x)``: unit Gaussian noise of the shape, type and device of ``x``."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class Solver(Protocol):
    """A generator of the steps from ``sigmas[0]`` to ``sigmas[-1]``; ``sigmas`` has shape (steps + 1, *parts)."""

    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]: ...
