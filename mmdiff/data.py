"""Data: the loaders that turn examples into batches.

A data set is any map-style data set whose items are pairs (media, cond): media as its modality reads them, cond a
dictionary of raw values by name.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from itertools import chain
from typing import Any, overload

import lightning as L
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from mmdiff.errors import DataError, check_at_least
from mmdiff.folder import Folder
from mmdiff.modality import Modality
from mmdiff.shards import Shards, has_shards
from mmdiff.streams import Buckets, Order, seeded
from mmdiff.types import Batch, Example, MediaSet


class Encoded(Dataset):
    """Examples in model space, encoded from a data set of media.

    A key is an index and the seed of the random choices made for the example; an index alone is a seed as well. A list
    of keys gives a list of examples.

    Args:
        media: the data set of (media, cond).
        modality: encodes them.
        cache: keep every encoded example in memory, for data sets without random crops that fit there.
        max_bad: examples with values that are not finite that may be named in a warning and replaced by the next one.

    Raises:
        DataError: when there are more of them.
    """

    def __init__(self, media: MediaSet, modality: Modality, cache: bool = False, max_bad: int = 100):
        self.media = media
        self.modality = modality
        self.cache: dict[int, Example] | None = {} if cache else None
        self.max_bad = max_bad
        self.bad = torch.zeros(len(media), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.media)

    @overload
    def __getitem__(self, key: int | tuple[int, int]) -> Example: ...
    @overload
    def __getitem__(self, key: list[tuple[int, int]]) -> list[Example]: ...
    def __getitem__(self, key: int | tuple[int, int] | list[tuple[int, int]]) -> Example | list[Example]:
        if isinstance(key, list):
            return [self[one] for one in key]
        index, seed = key if isinstance(key, tuple) else (key, key)
        for i in chain(range(index, len(self)), range(index)):
            if self.cache is not None and i in self.cache:
                return self.cache[i]
            if not self.bad[i]:
                example = self._encode(i, seed)
                if example.x.isfinite().all():
                    if self.cache is not None:
                        self.cache[i] = example
                    return example
                self._pass_over(i)
        raise IndexError(index)

    def _encode(self, index: int, seed: int) -> Example:
        with seeded(seed):
            media, cond = self.media[index]
            example = Example(self.modality.encode(media), cond, self.modality.mask(media))
        if example.x.shape != self.modality.shape:
            raise ValueError(
                f"example {index} has shape {tuple(example.x.shape)} in model space, "
                f"its modality says {self.modality.shape}."
            )
        return example

    def _pass_over(self, index: int) -> None:
        self.bad[index] = True
        name = name_of(self.media, index)
        if self.bad.sum() > self.max_bad or self.bad.all():
            raise DataError(name, f"holds nan or infinite values, as {int(self.bad.sum()) - 1} examples before it did")
        warnings.warn(f"skipped {name}: holds nan or infinite values", stacklevel=2)


def name_of(media: MediaSet, index: int) -> str:
    """The file of an example where a data set has files, else its index."""
    if isinstance(media, Subset):
        return name_of(media.dataset, media.indices[index])  # type: ignore[arg-type]
    return str(media.files[index]) if isinstance(media, Folder) else f"example {index}"


def collate(examples: Sequence[Example]) -> Batch:
    """A batch; conditions that an example lacks are None, masks that it lacks are all true."""
    x = torch.stack([e.x for e in examples])
    names = sorted({name for e in examples for name in e.cond})
    cond = {name: [e.cond.get(name) for e in examples] for name in names}
    if all(e.mask is None for e in examples):
        return Batch(x, cond)
    masks = [torch.ones(e.x.shape, dtype=torch.bool) if e.mask is None else e.mask for e in examples]
    return Batch(x, cond, torch.stack(masks))


def trimmed(examples: Sequence[Example], dim: int, multiple: int) -> Batch:
    """A batch without what is padding in all of its examples, at the end of a dimension counted from the last."""
    x, cond, mask = collate(examples)
    size = max(extents(examples, dim, multiple))
    return Batch(x.narrow(dim, 0, size), cond, None if mask is None else mask.narrow(dim, 0, size))


def extents(examples: Sequence[Example], dim: int, multiple: int) -> list[int]:
    """Up to where each example is data, along a dimension counted from the last, rounded up to a multiple."""
    return [_extent(example.x.shape[dim], example.mask, dim, multiple) for example in examples]


def _extent(full: int, mask: Tensor | None, dim: int, multiple: int) -> int:
    if mask is None:
        return full
    there = mask.movedim(dim, -1).flatten(0, -2).any(0).nonzero()
    end = int(there.max()) + 1 if len(there) else 1
    return min(-(-end // multiple) * multiple, full)


class DataModule(L.LightningDataModule):
    """Loaders over one data set, of which a fixed part is held out for validation and evaluation.

    Args:
        dataset: of (media, cond).
        modality: encodes the media.
        batch_size: examples per process.
        held_out: examples held out; a fraction if below 1. At least one where the data set has two.
        num_workers: worker processes of each loader.
        cache: keep encoded examples in memory (see `Encoded`).
        max_bad: examples that may be passed over because they hold nan (see `Encoded`).
        bucket: put training examples of similar size together, without padding beyond the largest of a batch and with
            as many as take the room of ``batch_size`` of full size. They are sorted among the examples of so many
            steps; 0 does not. Every example is read once before training, to know its size.
        multiple: to which such a size is rounded up, for networks that ask for it.
    """

    def __init__(
        self,
        dataset: MediaSet,
        modality: Modality,
        *,
        batch_size: int = 32,
        held_out: float = 0.05,
        num_workers: int = 0,
        cache: bool = False,
        max_bad: int = 100,
        bucket: int = 0,
        multiple: int = 1,
    ):
        super().__init__()
        check_at_least(1, **{"data.batch_size": batch_size, "data.multiple": multiple})
        check_at_least(0, **{"data.bucket": bucket})
        if bucket and modality.ragged is None:
            raise ValueError(f"data.bucket={bucket}: the examples of {type(modality).__name__} are all of one size.")
        self.dataset = dataset
        self.modality = modality
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.cache = cache
        self.max_bad = max_bad
        self.bucket, self.multiple = bucket, multiple
        count = len(dataset)
        held = min(max(round(held_out * count if held_out < 1 else held_out), 1), count // 2)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        self.train: MediaSet = Subset(dataset, order[held:])  # type: ignore[arg-type]
        self.held_out: MediaSet = Subset(dataset, order[:held])  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches, as many as a pass over the data has for all processes; the next pass uses what is left.

        They begin where the trained module is in its run (see `mmdiff.streams`).
        """
        trainer = self.trainer
        module: Any = trainer.lightning_module if trainer else None
        world, accumulated = (trainer.world_size, trainer.accumulate_grad_batches) if trainer else (1, 1)
        batch_size = min(self.batch_size, len(self.train))
        buckets = self._buckets(batch_size, world * accumulated) if self.bucket else None
        self.order = Order(
            len(self.train),
            batch_size,
            max(len(self.train) // (batch_size * world * accumulated), 1) * accumulated,
            seed=module.seed if module else torch.initial_seed(),
            seen=lambda: module.seen if module else 0,
            rank=trainer.global_rank if trainer else 0,
            world=world,
            buckets=buckets,
        )
        if buckets is None:
            return self._loader(self.examples, collate, sampler=self.order, batch_size=batch_size)
        join = partial(trimmed, dim=self._ragged, multiple=self.multiple)
        return self._loader(self.examples, join, sampler=self.order, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Batches of the held-out examples, in order."""
        return self._loader(self._encoded(self.held_out), collate, batch_size=self.batch_size)

    @cached_property
    def examples(self) -> Encoded:
        """For training."""
        return self._encoded(self.train)

    @cached_property
    def sizes(self) -> Int[Tensor, "n"]:
        """Of every training example (see `extents`), each of which is read once."""
        measure = partial(extents, dim=self._ragged, multiple=self.multiple)
        loader = self._loader(self.examples, measure, batch_size=self.batch_size)
        quiet = self.trainer is not None and not self.trainer.is_global_zero
        return torch.tensor([size for sizes in tqdm(loader, "sizes", leave=False, disable=quiet) for size in sizes])

    @property
    def _ragged(self) -> int:
        assert self.modality.ragged is not None
        return self.modality.ragged

    def _buckets(self, batch_size: int, turns: int) -> Buckets:
        return Buckets(self.sizes, self.modality.shape[self._ragged], batch_size, turns, self.bucket)

    def _encoded(self, media: MediaSet) -> Encoded:
        return Encoded(media, self.modality, self.cache, self.max_bad)

    def _loader(self, examples: Encoded, join: Callable[[Sequence[Example]], Any], **options: Any) -> DataLoader:
        return DataLoader(
            examples,
            collate_fn=join,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **options,
        )

    def names(self, place: int, count: int) -> list[str]:
        """Of the training examples from a place of the run on: files where there are any."""
        return [name_of(self.train, self.order.index(i)) for i in range(place, place + count)]

    @cached_property
    def conditions(self) -> dict[str, list[Any]]:
        """Known values of every condition: of all examples if the data set lists them, else of the first 1024."""
        listed = getattr(self.dataset, "conditions", None)
        if listed is None:
            listed = [self.dataset[i][1] for i in range(min(len(self.dataset), 1024))]
        names = sorted({name for cond in listed for name in cond})
        return {name: [c[name] for c in listed if c.get(name) is not None] for name in names}

    def media(self, count: int) -> Iterable[Tensor]:
        """Media of up to ``count`` training examples."""
        return (self.train[i][0] for i in range(min(count, len(self.train))))


def folder(root: str | os.PathLike[str], modality: Modality, **options: Any) -> DataModule:
    """Loaders over a `Folder`, or over the shards in it; ``options`` are those of `DataModule`."""
    return DataModule(open_folder(root, modality), modality, **options)


def open_folder(root: str | os.PathLike[str], modality: Modality) -> Folder:
    """The files in a folder; or in the shards in it or behind an address, if there are such (see `mmdiff.shards`)."""
    if has_shards(root):
        return Shards(root, modality)
    if "://" in str(root):
        raise DataError(root, "has no shards.jsonl; only what mmdiff shard packed is read from an address")
    return Folder(root, modality)
