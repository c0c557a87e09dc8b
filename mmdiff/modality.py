"""All that the core knows about a kind of data."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, UInt8
from torch import Generator, Tensor
from torchmetrics import Metric


class Modality(ABC):
    """Files, their natural form ("media") and their form in model space.

    Media are tensors of the modality's own shape and units; a batch of media is their stack. The arguments of the
    constructor are the whole state: what `fit` learns from data is passed in like any other argument, so a saved
    configuration describes the modality completely.

    Attributes:
        shape: of one example in model space, channels first.
        suffixes: of the files it reads, in lower case with the dot.
        suffix: of the files it writes.
    """

    shape: tuple[int, ...]
    suffixes: Sequence[str]
    suffix: str

    @abstractmethod
    def read(self, path: Path, generator: Generator | None = None) -> Tensor:
        """Media from a file: a clip at a random place if a generator is given, else the clip at the beginning.

        Raises:
            DataError: if the file cannot be used.
        """

    @abstractmethod
    def write(self, media: Tensor, path: Path) -> None:
        """Write the media of one example."""

    @abstractmethod
    def encode(self, media: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Media to model space, standard deviation near 1 per channel. Leading batch dimensions pass through.

        Media smaller than the model's shape are padded; `mask` tells where.
        """

    @abstractmethod
    def decode(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Model space to media. Leading batch dimensions pass through."""

    @abstractmethod
    def preview(self, media: Tensor) -> UInt8[Tensor, "3 h w"]:
        """A picture of the media of one example."""

    def mask(self, media: Tensor) -> Bool[Tensor, "*d"] | None:
        """The elements of ``encode(media)`` that are data rather than padding; None if all are."""
        return None

    def metrics(self) -> dict[str, Metric]:
        """Metrics by name; each has ``update(media, real=bool, cond={name: values})`` for batches of media."""
        return {}

    def fit(self, media: Iterable[Tensor]) -> dict[str, Any]:
        """Arguments of the constructor learned from training data, for instance scales, as plain numbers and lists."""
        return {}
