"""Batches of examples of similar size: what is in them, and that a run with them resumes like any other."""

from collections import Counter
from itertools import chain

import pytest
import torch

from conftest import Numbers
from mmdiff.data import DataModule, extents, trimmed
from mmdiff.streams import Buckets, Order
from mmdiff.types import Example
from runs import ADVICE, Ragged, assert_same_state, fit

pytestmark = pytest.mark.filterwarnings(
    *ADVICE, "ignore:.*use of fork:DeprecationWarning", "ignore:.*DistributedSampler"
)

FULL, BATCH = 32, 4
SIZES = torch.randint(1, FULL + 1, (96,), generator=torch.Generator().manual_seed(0))
WINDOW = 8 * 2 * BATCH


def read(batches: int, *, rank: int = 0, world: int = 1, seen: int = 0, turns: int = 2) -> list[list[tuple[int, int]]]:
    buckets = Buckets(SIZES, FULL, BATCH, turns, depth=8)
    return list(Order(96, BATCH, batches, seed=3, seen=lambda: seen, rank=rank, world=world, buckets=buckets))


def padded(batches: list[list[tuple[int, int]]]) -> float:
    """Share of the places of padded batches that hold no data."""
    sizes = [SIZES[[index for index, _ in batch]] for batch in batches]
    return 1 - sum(float(s.sum()) for s in sizes) / sum(float(s.max()) * len(s) for s in sizes)


def whole(batches: list[list[tuple[int, int]]], count: int) -> list[list[tuple[int, int]]]:
    """The first batches, which together hold so many examples."""
    total = 0
    for n, batch in enumerate(batches, 1):
        total += len(batch)
        if total == count:
            return batches[:n]
    raise AssertionError(f"no batch ends after {count} examples")


def test_three_windows_are_two_passes():
    batches = whole(read(200), 3 * WINDOW)
    assert Counter(index for index, _ in chain(*batches)) == dict.fromkeys(range(96), 2)
    seeds = [seed for _, seed in chain(*batches)]
    assert len(set(seeds)) == len(seeds)


def test_batches_fill_the_room_of_full_ones():
    batches = whole(read(200), 3 * WINDOW)
    rooms = [len(batch) * int(SIZES[[index for index, _ in batch]].max()) for batch in batches]
    assert max(rooms) <= FULL * BATCH
    assert sum(rooms) > 0.7 * FULL * BATCH * len(rooms)
    keys = list(Order(96, BATCH, 48, seed=3))
    plain = [keys[i : i + BATCH] for i in range(0, len(keys), BATCH)]
    assert padded(batches) < 0.15 < 0.3 < padded(plain)
    assert len(batches) < 0.75 * len(plain)


def test_processes_take_turns():
    one = whole(read(200), 3 * WINDOW)
    two = [read(len(one) // 2, rank=rank, world=2) for rank in range(2)]
    assert list(chain(*zip(*two, strict=True))) == one
    for a, b in zip(*two, strict=True):
        assert len(a) == len(b)


def test_groups_are_not_in_the_order_of_their_sizes():
    largest = [int(SIZES[[index for index, _ in batch]].max()) for batch in whole(read(200), WINDOW)]
    assert largest not in (sorted(largest), sorted(largest)[::-1])


def test_a_run_goes_on_where_a_step_ended():
    batches = read(40)
    for done in (0, 2, 14, 30):
        seen = sum(map(len, batches[:done]))
        assert read(40 - done, seen=seen) == batches[done:]
    with pytest.raises(ValueError, match=r"data\.bucket goes on with the same data.* .*accumulate_grad_batches"):
        read(1, seen=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed(workers, tmp_path):
    expected = fit(tmp_path / "whole", 12, keep=(5,), dataset=Ragged(), bucket=3)
    got = fit(tmp_path / "rest", 12, resume=tmp_path / "whole" / "5.ckpt", dataset=Ragged(), bucket=3, workers=workers)
    assert_same_state(got, expected)
    counts = {len(ids) for ids, *_ in expected["seen"][0]}
    assert len(counts) > 2


def test_two_processes_are_one(tmp_path):
    one = fit(tmp_path / "one", 6, dataset=Ragged(), bucket=3, accumulate=2)
    two = fit(tmp_path / "two", 6, dataset=Ragged(), bucket=3, processes=2)
    turns = list(chain(*zip(*two["seen"], strict=True)))
    assert [batch[:2] for batch in turns] == [batch[:2] for batch in one["seen"][0]]
    assert [loss for *_, loss in turns] == pytest.approx([loss for *_, loss in one["seen"][0]], rel=1e-6)


def test_trimmed():
    mask = torch.arange(8) < torch.tensor([[3], [0]])
    examples = [Example(torch.ones(2, 8), {"a": i}, m.expand(2, 8)) for i, m in enumerate(mask)]
    assert extents(examples, -1, 1) == [3, 1]
    assert extents(examples, -1, 4) == [4, 4]
    assert extents(examples, -1, 5) == [5, 5]
    assert extents([Example(torch.ones(2, 8), {})], -1, 4) == [8]
    batch = trimmed(examples, -1, 2)
    assert (batch.x.shape, batch.mask.shape, batch.cond) == ((2, 2, 4), (2, 2, 4), {"a": [0, 1]})
    frames = Example(torch.ones(3, 4, 2, 2), {}, (torch.arange(4) < 2).reshape(1, 4, 1, 1).expand(3, 4, 2, 2))
    assert trimmed([frames], -3, 1).x.shape == (1, 3, 2, 2, 2)
    assert trimmed([Example(torch.ones(2, 8), {})], -1, 4).mask is None


def test_a_modality_of_one_size(numbers):
    class Square(Numbers):
        ragged = None

    with pytest.raises(ValueError, match=r"data\.bucket=2: the examples of Square are all of one size"):
        DataModule(Ragged(), Square(), bucket=2)
    with pytest.raises(ValueError, match=r"data\.bucket must be a whole number of at least 0, got -1"):
        DataModule(Ragged(), numbers, bucket=-1)
