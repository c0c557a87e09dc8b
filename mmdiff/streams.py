"""What comes when in a run: the order of its examples, and the random numbers of each of them and of each batch.

The examples of a run form one sequence, whatever the number of processes: shuffled passes over the data, one after
another. A position in it, with the seed of the run, decides which example stands there, where that is cropped, and
what noise a batch that begins there is given. So the state of all randomness of a run is one number, the examples it
has seen, and a run that goes on from it is the run that was never cut.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from numpy.random import SeedSequence
from torch import Tensor
from torch.utils.data import DistributedSampler

PASS, EXAMPLE, BATCH = range(3)


def derive(seed: int, purpose: int, place: int) -> int:
    """A seed for one purpose (PASS, EXAMPLE or BATCH) at one place of a run; those of other places look unrelated."""
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

    The sequence is cut into batches that the processes take in turn. That it is a `DistributedSampler` tells Lightning
    that the processes share the data already.

    Args:
        count: examples of the data set.
        batch_size: examples of a batch of one process.
        batches: number of batches until the loader starts anew, from the place reached by then.
        seed: of the run.
        seen: tells how many examples all processes have used.
        rank: index of this process.
        world: number of processes.
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
    ):
        super().__init__(range(count), num_replicas=world, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.count, self.batch_size, self.batches, self.seen = count, batch_size, batches, seen
        self._pass = lru_cache(2)(self._shuffled)

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        start = self.seen()
        for batch in range(self.batches):
            first = start + (batch * self.num_replicas + self.rank) * self.batch_size
            for place in range(first, first + self.batch_size):
                yield self.index(place), derive(self.seed, EXAMPLE, place)

    def index(self, place: int) -> int:
        """Of the example at a place of the run."""
        number, offset = divmod(place, self.count)
        return int(self._pass(number)[offset])

    def _shuffled(self, number: int) -> Tensor:
        return torch.randperm(self.count, generator=torch.Generator().manual_seed(derive(self.seed, PASS, number)))
