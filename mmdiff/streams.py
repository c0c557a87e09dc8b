"""What comes when in a run: the order of its examples, and the random numbers of each of them and of each batch.

The examples of a run form one sequence, whatever the number of processes: shuffled passes over the data, one after
another. A position in it, with the seed of the run, decides which example stands there, where that is cropped, and
what noise a batch that begins there is given. So the state of all randomness of a run is one number, the examples it
has seen, and a run that goes on from it is the run that was never cut.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int
from numpy.random import SeedSequence
from torch import Generator, Tensor
from torch.utils.data import DistributedSampler

PASS, EXAMPLE, BATCH, WINDOW = range(4)


def derive(seed: int, purpose: int, place: int) -> int:
    """A seed for one purpose (PASS, EXAMPLE, BATCH, WINDOW) at one place of a run; those of others look unrelated."""
    low, high = SeedSequence([seed, purpose, place]).generate_state(2)
    return int(high) << 32 | int(low)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the CPU's random numbers are those of a seed; outside they go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Order(DistributedSampler):
    """The keys of one process, (index, seed of the random choices), from the place that a run has reached.

    With buckets they come as a list for each batch. The sequence is cut into batches that the processes take in turn.
    That it is a `DistributedSampler` tells Lightning that the processes share the data already.

    Args:
        count: examples of the data set.
        batch_size: examples of a batch of one process.
        batches: number of batches until the loader starts anew, from the place reached by then.
        seed: of the run.
        seen: tells how many examples all processes have used.
        rank: index of this process.
        world: number of processes.
        buckets: puts examples of similar size beside each other and says how many make a batch.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        batches: int,
        *,
        seed: int,
        seen: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
        buckets: "Buckets | None" = None,
    ):
        super().__init__(range(count), num_replicas=world, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.count, self.batch_size, self.batches, self.seen, self.buckets = count, batch_size, batches, seen, buckets
        self._pass = lru_cache(2)(self._shuffled)
        self._window = lru_cache(2)(self._sorted)

    def __len__(self) -> int:
        return self.batches * (1 if self.buckets else self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        start = self.seen()
        for _ in range(self.batches):
            count = self._batch(start)
            first = start + self.rank * count
            keys = [(self.index(place), derive(self.seed, EXAMPLE, place)) for place in range(first, first + count)]
            yield from [keys] if self.buckets else keys
            start += self.num_replicas * count

    def index(self, place: int) -> int:
        """Of the example at a place of the run."""
        if self.buckets is None:
            return self._drawn(place)
        number, offset = divmod(place, self.buckets.window)
        return self._window(number)[0][offset]

    def _drawn(self, place: int) -> int:
        number, offset = divmod(place, self.count)
        return int(self._pass(number)[offset])

    def _shuffled(self, number: int) -> Tensor:
        return torch.randperm(self.count, generator=torch.Generator().manual_seed(derive(self.seed, PASS, number)))

    def _batch(self, place: int) -> int:
        """Examples of each of the batches that begin at a place."""
        if self.buckets is None:
            return self.batch_size
        number, offset = divmod(place, self.buckets.window)
        try:
            return self._window(number)[1][offset]
        except KeyError:
            raise ValueError(
                "a run with data.bucket goes on with the same data, data.batch_size and number of processes times "
                "trainer.accumulate_grad_batches: elsewhere batches begin at other examples."
            ) from None

    def _sorted(self, number: int) -> tuple[list[int], dict[int, int]]:
        """The examples of a window by their places in it, and the batches' sizes by the places where they begin."""
        assert self.buckets is not None
        first = number * self.buckets.window
        drawn = [self._drawn(place) for place in range(first, first + self.buckets.window)]
        generator = torch.Generator().manual_seed(derive(self.seed, WINDOW, number))
        indices: list[int] = []
        sizes: dict[int, int] = {}
        for group, size in self.buckets.groups(drawn, generator):
            for start in range(0, len(group), self.num_replicas * size):
                sizes[len(indices) + start] = size
            indices += group
        return indices, sizes


class Buckets:
    """Cuts windows of a run's sequence into groups of batches with examples of similar size.

    All batches of a group, those that the processes take in one step, have as many examples: what fits into the room
    of ``batch_size`` examples of full size when all are padded to the largest of the group.

    Args:
        sizes: of each example.
        full: size of an example without padding.
        batch_size: examples of full size in a batch of one process.
        turns: batches of a step.
        depth: steps of full size in a window: more sort better, fewer mix better.
    """

    def __init__(self, sizes: Int[Tensor, "n"], full: int, batch_size: int, turns: int, depth: int):
        self.sizes = sizes
        self.room = batch_size * full
        self.turns = turns
        self.window = depth * turns * batch_size

    def groups(self, indices: Sequence[int], generator: Generator) -> list[tuple[list[int], int]]:
        """The examples of a window in groups, in random order; and of each group how many make a batch."""
        chosen = torch.tensor(indices)
        rest = chosen[self.sizes[chosen].argsort(descending=True, stable=True)].tolist()
        groups = []
        while rest:
            size = min(self.room // int(self.sizes[rest[0]]), len(rest) // self.turns)
            groups.append((rest[: size * self.turns], size))
            rest = rest[size * self.turns :]
        return [groups[i] for i in torch.randperm(len(groups), generator=generator)]
