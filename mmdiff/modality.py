"""All that the core knows about a kind of data."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Generator, Tensor
from torchmetrics import Metric

from mmdiff.regions import region


class Modality(ABC):
    """Files, their natural form ("media") and their form in model space.

    Media are tensors of the modality's own shape and units; a batch of media is their stack. The arguments of the
    constructor are the whole state: what `fit` learns from data is passed in like any other argument, so a saved
    configuration describes the modality completely. Workers that load data get a pickled copy.

    Attributes:
        shape: of one example in model space, channels first.
        suffixes: of the files it reads, in lower case with the dot.
        suffix: of the files it writes.
        time: dimension of media, counted from the end, along which a sample can be continued; None if there is none.
        ragged: dimension of an example, counted from the end, along which `mask` may end early; None if none does.
    """

    shape: tuple[int, ...]
    suffixes: Sequence[str]
    suffix: str
    time: int | None = None
    ragged: int | None = None

    @abstractmethod
    def read(self, path: Path, generator: Generator | None = None) -> Tensor:
        """Media from a file: a clip at a random place if a generator is given, else the clip at the beginning.

        All randomness is the generator's.

        Raises:
            DataError: if the file cannot be used.
        """

    @abstractmethod
    def write(self, media: Tensor, path: Path) -> None:
        """Write the media of one example."""

    def restore(self, media: Tensor, path: Path) -> Tensor:
        """Media of one example in the units of a file, for a modality whose `read` normalizes each file by itself."""
        return media

    @abstractmethod
    def encode(self, media: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Media to model space, standard deviation near 1 per channel. Leading batch dimensions pass through.

        Media smaller than the model's shape are padded; `mask` tells where.
        """

    @abstractmethod
    def decode(self, x: Float[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Model space to media. Leading batch dimensions pass through."""

    @abstractmethod
    def preview(self, media: Tensor) -> UInt8[Tensor, "3 h w"]:
        """A picture of the media of one example, of any size."""

    def mask(self, media: Tensor) -> Bool[Tensor, "*d"] | None:
        """The elements of ``encode(media)`` that are data rather than padding; None if all are."""
        return None

    def place(self, media: Tensor, known: str | None = None) -> tuple[Float[Tensor, "*d"], Bool[Tensor, "*parts"]]:
        """Given media in model space, and which elements generation keeps, with one channel.

        A modality whose channels may be known each by itself keeps them in a dimension of their own: (1, channels, n).

        Args:
            media: of one example.
            known: words for the parts to keep (see `part` and `mmdiff.regions`); None keeps all that is data rather
                than padding.

        Raises:
            ValueError: for a word that the modality does not know, naming those that it knows.
        """
        x, data = self.encode(media), self.mask(media)
        kept = torch.ones_like(x[:1], dtype=torch.bool) if data is None else data.all(0, keepdim=True)
        return x, kept if known is None else kept & region(str(known), lambda word: self.part(word, media))

    def part(self, word: str, media: Tensor) -> Bool[Tensor, "*parts"]:
        """The elements of ``encode(media)`` that a word names, broadcastable against them with one channel.

        Raises:
            ValueError: for a word that the modality does not know, naming those that it knows.
        """
        raise ValueError(f"known={word} means nothing to {type(self).__name__}; leave it out to keep all given.")

    def confine(self, media: Tensor, known: str) -> Callable[[Float[Tensor, "*d"]], Float[Tensor, "*d"]] | None:
        """A function that moves the new elements of a prediction out of the parts that are kept, and leaves the others.

        Points can move; samples and pixels have their places, for which None stands.

        Args:
            media: of the given example.
            known: words for the parts of it that are kept.
        """
        return None

    def operator(self, measured: str, media: Tensor) -> Callable[[Float[Tensor, "b *d"]], Float[Tensor, "b *m"]]:
        """What a damaged file still tells: a differentiable function of model space, whose value for it is reliable.

        Args:
            measured: words for parts (see `part`) whose elements are measured, ``all`` for every element; or a word of
                the modality for another function.
            media: of one example.

        Raises:
            ValueError: for a word that the modality does not know, naming those that it knows.
        """
        known = self.place(media, None if measured == "all" else measured)[1]
        return lambda x: x * known.to(x)

    def metrics(self) -> dict[str, Metric]:
        """Metrics by name; each has ``update(media, real=bool, cond={name: values})`` for batches of media.

        One whose ``higher_is_better`` is False is a distance: its value, the unnamed one of several, is larger for
        corrupted media.
        """
        return {}

    def fit(self, media: Iterable[Tensor]) -> dict[str, Any]:
        """Arguments of the constructor learned from training data, for instance scales, as plain numbers and lists."""
        return {}
