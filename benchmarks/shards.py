"""Does a loader of shards lose or repeat an example when training is interrupted in the middle of an epoch?

    python benchmarks/shards.py [NAME ...]

101 examples in shards, batches of 4, 2 workers, 1 and 2 processes (gloo): one whole epoch, then an epoch that stops in
the middle and goes on in a new loader from the state that the library saves, with as many processes or with one.
Prints for each how many examples were lost, how many came twice, and whether the others came in the order in which
they would have come without the interruption (the examples of a step in the order of the processes).

Needs what it compares: `pip install webdataset litdata mosaicml-streaming`.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import islice, zip_longest
from pathlib import Path

import torch
import torch.distributed as dist

COUNT, BATCH, WORKERS, STOP = 101, 4, 2, 5
NAMES = ("webdataset", "litdata", "streaming", "mmdiff")


class WebDataset:
    """A stream. It has no state; the usual advice is to make the same stream again and to skip what was seen."""

    def __init__(self, folder: Path, rank: int, world: int):
        import webdataset as wds

        self.skipped = 0
        shards = sorted(map(str, folder.glob("*.tar")))
        split = {"nodesplitter": wds.split_by_node, "workersplitter": wds.split_by_worker}
        data = wds.WebDataset(shards, shardshuffle=len(shards), detshuffle=True, seed=0, empty_check=False, **split)
        data = data.map(lambda sample: (int(sample["txt"]),)).batched(BATCH, partial=True)
        self.loader = wds.WebLoader(data, batch_size=None, num_workers=WORKERS)

    @staticmethod
    def write(folder: Path) -> None:
        import webdataset as wds

        with wds.ShardWriter(f"{folder}/%03d.tar", maxcount=12, verbose=0) as shards:
            for i in range(COUNT):
                shards.write({"__key__": f"{i:05d}", "txt": str(i)})

    def state(self, batches: int) -> dict:
        return {"batches": batches, "world": dist.get_world_size()}

    def resume(self, state: dict) -> None:
        self.skipped = state["batches"] * state["world"] // dist.get_world_size()

    def __iter__(self):
        return (batch[0] for batch in islice(iter(self.loader), self.skipped, None))


class Stateful:
    """A library whose loader saves a state of its own."""

    def state(self, batches: int) -> dict:
        return self.loader.state_dict()

    def resume(self, state: dict) -> None:
        self.loader.load_state_dict(state)

    def __iter__(self):
        return (batch["id"] for batch in self.loader)


class LitData(Stateful):
    def __init__(self, folder: Path, rank: int, world: int):
        from litdata import StreamingDataLoader, StreamingDataset

        data = StreamingDataset(str(folder), shuffle=True, drop_last=False, seed=0)
        self.loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=WORKERS)

    @staticmethod
    def write(folder: Path) -> None:
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(folder), chunk_size=12)
        for i in range(COUNT):
            writer[i] = {"id": i}
        writer.done()
        writer.merge()


class Streaming(Stateful):
    def __init__(self, folder: Path, rank: int, world: int):
        from streaming import StreamingDataLoader, StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        data = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH, num_canonical_nodes=2)
        self.loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=WORKERS, drop_last=False)

    @staticmethod
    def write(folder: Path) -> None:
        from streaming import MDSWriter

        with MDSWriter(out=str(folder / "mds"), columns={"id": "int"}, size_limit=12 * 64) as writer:
            for i in range(COUNT):
                writer.write({"id": i})
        for path in (folder / "mds").iterdir():
            path.replace(folder / path.name)
        (folder / "mds").rmdir()


class Text:
    """A modality of texts."""

    suffixes = (".txt",)

    def read(self, path, generator=None):
        return int(path.read_text())


class Mmdiff:
    """Shards read by index, in the order of a sampler whose state is a number of examples."""

    def __init__(self, folder: Path, rank: int, world: int):
        from mmdiff.shards import Shards

        self.data, self.rank, self.world, self.seen = Shards(folder / "packed", Text()), rank, world, 0

    @staticmethod
    def write(folder: Path) -> None:
        from mmdiff.shards import pack

        (folder / "files").mkdir()
        for i in range(COUNT):
            (folder / "files" / f"{i:05d}.txt").write_text(str(i))
        pack(folder / "files", folder / "packed", size=12 * 1024)

    def state(self, batches: int) -> dict:
        return {"seen": batches * BATCH * self.world}

    def resume(self, state: dict) -> None:
        self.seen = state["seen"]

    def __iter__(self):
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).tolist()[self.seen :]
        whole = [order[i : i + BATCH] for i in range(0, len(order), BATCH)][self.rank :: self.world]
        return iter(
            torch.utils.data.DataLoader(
                self.data, batch_sampler=whole, num_workers=WORKERS, collate_fn=lambda pairs: [x for x, _ in pairs]
            )
        )


KINDS = dict(zip(NAMES, (WebDataset, LitData, Streaming, Mmdiff), strict=True))


def ids(batches) -> list[list[int]]:
    return [[int(i) for i in batch] for batch in batches]


def work(name: str, folder: Path, rank: int, world: int) -> None:
    """What one process does: an epoch, and an epoch in two parts; one of one process also the end of one of two."""
    dist.init_process_group("gloo", rank=rank, world_size=world)
    kind, told = KINDS[name], {}
    told["epoch"] = ids(kind(folder, rank, world))
    first = kind(folder, rank, world)
    batches = iter(first)
    told["first"] = ids(islice(batches, STOP))
    state = json.loads(json.dumps(first.state(STOP)))
    del batches
    second = kind(folder, rank, world)
    second.resume(state)
    told["second"] = ids(second)
    if world == 1:
        earlier = json.loads((folder / "of_two_0.json").read_text())
        other = kind(folder, rank, world)
        other.resume(earlier["state"])
        told["after two"] = ids(other)
    (folder / f"of_{'one' if world == 1 else 'two'}_{rank}.json").write_text(json.dumps(told | {"state": state}))
    dist.barrier()


def in_order(processes: Sequence[list[list[int]]]) -> list[int]:
    """Examples of all processes, step by step."""
    return [i for step in zip_longest(*processes, fillvalue=()) for batch in step for i in batch]


def verdict(seen: list[int], expected: list[int] | None = None) -> str:
    times = Counter(seen)
    same = "" if expected is None else f", {'same' if seen == expected else 'another'} order"
    return f"{COUNT - len(times)} lost, {len(seen) - len(times)} repeated{same}"


def prove(name: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        KINDS[name].write(folder)
        for world in (2, 1):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
            running = [
                subprocess.Popen(
                    [sys.executable, __file__, "work", name, root, str(rank), str(world)],
                    env=os.environ
                    | shared
                    | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)},
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for rank in range(world)
            ]
            for process in running:
                try:
                    _, error = process.communicate(timeout=240)
                except subprocess.TimeoutExpired:
                    for each in running:
                        each.kill()
                    print(f"{name:12} {world} processes: no end after 240 s")
                    continue
                if process.returncode:
                    print(f"{name:12} {world} processes: {error.strip().splitlines()[-1]}")
        told = {path.stem: json.loads(path.read_text()) for path in folder.glob("of_*.json")}
        one, two = told.get("of_one_0"), [told.get("of_two_0"), told.get("of_two_1")]
        for what, starts, ends, uninterrupted in (
            ("epoch of 1", [one], None, None),
            ("epoch of 2", two, None, None),
            ("1 -> 1", [one], [(one or {}).get("second")], [one]),
            ("2 -> 2", two, [(t or {}).get("second") for t in two], two),
            ("2 -> 1", two, [(one or {}).get("after two")], two),
        ):
            if all(starts) and (ends is None or all(ends)):
                epoch = in_order([t["epoch"] for t in uninterrupted or starts])
                seen = in_order([t["first"] for t in starts]) + in_order(ends) if ends else epoch
                print(f"{name:12} {what:12} {verdict(seen, epoch if ends else None)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        for name in sys.argv[1:] or NAMES:
            prove(name)
