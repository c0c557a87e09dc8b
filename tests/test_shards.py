"""Shards hold what the folder held, and an epoch over them loses and repeats nothing, whoever reads it."""

import json
import math
import os
import re
import tarfile
import warnings
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch.utils.data import DataLoader

from mmdiff import DataError
from mmdiff.data import Encoded, collate, open_folder
from mmdiff.folder import Folder
from mmdiff.shards import Shards, pack
from mmdiff.streams import Order

COUNT, BATCH = 53, 4


@pytest.fixture
def root(tmp_path):
    """Files of numbers in two folders, one of them linked to, and a file of another kind."""
    root = tmp_path / "files"
    for i in range(COUNT):
        path = root / ("low" if i < 20 else "high") / f"{i:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{i} 1 2 {i * i}" + "\n" * i)
    os.link(root / "low" / "00.txt", root / "hard.TXT")
    (root / "soft.txt").symlink_to(root / "low" / "01.txt")
    (root / "notes.md").write_text("no numbers")
    return root


@pytest.fixture
def shards(root, tmp_path):
    """The same packed into several shards."""
    assert pack(root, tmp_path / "shards", size=300)[0] == COUNT + 3
    return tmp_path / "shards"


def same(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(a[i][0], b[i][0]) and a[i][1] == b[i][1] for i in range(len(a)))


def test_shards_are_read_as_the_folder_is(root, shards, numbers):
    folder, packed = open_folder(root, numbers), open_folder(shards, numbers)
    assert (type(folder), type(packed)) == (Folder, Shards)
    assert len(packed) == COUNT + 2
    assert same(packed, folder)
    assert {tuple(cond.items()) for cond in packed.conditions} == {(), (("label", "low"),), (("label", "high"),)}


def test_shards_are_plain_archives_of_the_same_bytes(root, shards, tmp_path):
    archives = sorted(shards.glob("*.tar"))
    assert len(archives) > 5
    for archive in archives:
        with tarfile.open(archive) as tar:
            assert sum(member.size for member in tar) <= 300
            tar.extractall(tmp_path / "out", filter="data")
    files = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    out = tmp_path / "out"
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == files


def test_metadata_are_packed(root, numbers, tmp_path):
    rows = [{"file_name": f"low/{i:02d}.txt", "size": i, "mood": "très calme\u2028"} for i in (3, 1, 3)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pack(root, tmp_path / "packed")
    packed = open_folder(tmp_path / "packed", numbers)
    assert same(packed, open_folder(root, numbers))
    assert [cond["size"] for cond in packed.conditions] == [3, 1, 3]


def read(shards, numbers, batches, *, rank, world, seen=0):
    """What a process with two workers reads in so many batches, by its place in the run."""
    data = Encoded(Shards(shards, numbers), numbers)
    order = Order(len(data), BATCH, batches, seed=7, seen=lambda: seen, rank=rank, world=world)
    found = {}
    for i, batch in enumerate(DataLoader(data, BATCH, sampler=order, num_workers=2, collate_fn=collate)):
        first = seen + (i * world + rank) * BATCH
        found |= {first + k: tuple(x) for k, x in enumerate(batch.x[:, 0].tolist())}
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # with workers, on one core
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 2)])
def test_an_epoch_interrupted_is_an_epoch(before, after, shards, numbers):
    first = [read(shards, numbers, 3, rank=rank, world=before) for rank in range(before)]
    seen = 3 * BATCH * before
    more = math.ceil((COUNT + 2 - seen) / (BATCH * after))
    rest = [read(shards, numbers, more, rank=rank, world=after, seen=seen) for rank in range(after)]
    places = list(chain(*first, *rest))
    assert sorted(places) == list(range(seen + more * BATCH * after))
    examples = dict(chain(*(part.items() for part in (*first, *rest))))
    expected = Counter((i, 1.0, 2.0, float(i * i)) for i in [*range(COUNT), 0, 1])
    assert Counter(examples[place] for place in range(COUNT + 2)) == expected


# Behind an address


class Ranges(SimpleHTTPRequestHandler):
    """A server of files that, like an object store, gives the bytes it is asked for."""

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            content = content[int(asked[1]) : int(asked[2]) + 1]
        self.server.asked.append(len(content))
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(shards):
    """The shards at an address."""
    serving = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=shards))
    serving.asked = []
    Thread(target=serving.serve_forever, daemon=True).start()
    yield serving
    serving.shutdown()
    serving.server_close()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # with workers, on one core
def test_shards_behind_an_address(server, shards, numbers):
    address = f"http://127.0.0.1:{server.server_port}"
    data = open_folder(address, numbers)
    assert same(data, open_folder(shards, numbers))
    assert sorted(server.asked)[-2] <= max(length for *_, length in data.places)  # the largest is the index
    values = [batch.x.tolist() for batch in DataLoader(Encoded(data, numbers), 8, num_workers=2, collate_fn=collate)]
    local = Encoded(open_folder(shards, numbers), numbers)
    assert values == [batch.x.tolist() for batch in DataLoader(local, 8, collate_fn=collate)]
    with pytest.raises(DataError, match=rf"{address}/low: has no shards\.jsonl; only what mmdiff shard packed"):
        open_folder(f"{address}/low", numbers)
    next(shards.glob("*.tar")).unlink()
    with pytest.raises(DataError, match=rf"{address}/\d+\.tar: is missing or cut off: 0 of"):
        open_folder(address, numbers)


def test_an_address_of_no_known_kind(numbers):
    with pytest.raises(DataError, match=r"nothing://here: is an address of no known kind"):
        open_folder("nothing://here", numbers)


# What is broken


def test_a_missing_file_is_left_out_of_the_shards(root, numbers, tmp_path):
    (root / "metadata.csv").write_text("file_name,kind\nlow/00.txt,a\nlow/nowhere.txt,b\n")
    with pytest.warns(UserWarning, match=r"skipped .*nowhere\.txt: cannot be read \(No such file"):
        assert pack(root, tmp_path / "packed") == (1, 1)
    assert Shards(tmp_path / "packed", numbers).conditions == [{"label": "low", "kind": "a"}]


def test_a_bad_file_is_named_with_its_shard(root, numbers, tmp_path):
    (root / "low" / "03.txt").write_text("words")
    pack(root, tmp_path / "packed")
    packed = Shards(tmp_path / "packed", numbers)
    index = next(i for i, path in enumerate(packed.files) if path.name == "03.txt")
    with pytest.warns(UserWarning, match=re.escape("skipped") + r".*packed/00000\.tar/low/03\.txt: is not made of num"):
        assert packed[index][0][0, 0] == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert packed[index][0][0, 0] == 4


def test_damaged_shards(shards, numbers):
    shard = shards / "00003.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:700])
    with pytest.raises(DataError, match=r"00003\.tar: is missing or cut off: 700 of at least"):
        open_folder(shards, numbers)
    shard.unlink()
    with pytest.raises(DataError, match=r"00003\.tar: is missing or cut off: 0 of at least"):
        open_folder(shards, numbers)
    shard.write_bytes(whole)
    packed = open_folder(shards, numbers)
    shard.unlink()  # while it is in use
    with pytest.warns(UserWarning, match=r"00003\.tar: cannot be read"):
        assert len([packed[i] for i in range(len(packed))]) == COUNT + 2
    (shards / "shards.jsonl").write_text('{"file_name": "a.txt"}\n')
    with pytest.raises(DataError, match=r"shards\.jsonl: line 1 is not one of mmdiff shard"):
        open_folder(shards, numbers)


def test_mistakes(root, shards, command, tmp_path):
    for given, named in (
        ([f"data.root={root}"], "output must be given"),
        (["output=out"], "data.root must be given"),
        (["data.root=nowhere", "output=out"], "nowhere: is not a folder; data.root must name one"),
        ([f"data.root={root}", f"output={shards}"], "has shards already; choose another output=DIR"),
        ([f"data.root={root}", "output=out", "size=0"], "size must be a whole number of at least 1"),
    ):
        ran = command("shard", *given, folder=tmp_path)
        assert (ran.status, named in ran.err, len(ran.err.splitlines())) == (1, True, 2), ran.err
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file to pack"):
        pack(tmp_path / "empty", tmp_path / "out")


def test_training_reads_shards(tiny_folder, command, train, tmp_path):
    import soundfile

    for i in range(6):
        path = tmp_path / "sounds" / ("low", "high")[i % 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, torch.sin(torch.arange(8000) * 0.05 * (i + 1)).numpy(), 16000)
    ran = command("shard", "data.root=sounds", "output=packed", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == "packed 6 files into 1 shards; train with data.root=packed\n"
    for root in ("sounds", "packed"):
        assert train(*tiny_folder, f"data.root={root}", "seed=3", folder=tmp_path).err == ""
        (tmp_path / "run").rename(tmp_path / f"run_{root}")
    weights = [
        torch.load(tmp_path / f"run_{root}" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for root in ("sounds", "packed")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
