"""Folders of files with what is said about them, and the batches made of them."""

import json
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

from conftest import Numbers
from mmdiff import DataError
from mmdiff.data import DataModule, Encoded, collate
from mmdiff.folder import Folder
from mmdiff.types import Example


@pytest.fixture
def root(tmp_path) -> Path:
    """Six files of numbers in two folders and one above them, and a file of another kind."""
    for i, name in enumerate(["a/0.txt", "a/1.txt", "b/c/2.txt", "b/c/3.TXT", "4.txt", "b/5.txt"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{i} {i} {i} {i}")
    (tmp_path / "a" / "notes.md").write_text("no numbers")
    return tmp_path


def values(folder: Folder) -> list[float]:
    return [folder[i][0][0, 0].item() for i in range(len(folder))]


# What a folder says


def test_labels_are_folder_names(root, numbers):
    folder = Folder(root, numbers)
    assert values(folder) == [4, 0, 1, 5, 2, 3]
    labels = {path.name: cond for path, cond in zip(folder.files, folder.conditions, strict=True)}
    assert labels["0.txt"] == labels["1.txt"] == {"label": "a"}
    assert labels["2.txt"] == labels["3.TXT"] == {"label": "b/c"}
    assert labels["5.txt"] == {"label": "b"}
    assert labels["4.txt"] == {}


class Counts(Numbers):
    """The same in files that do not end in .txt."""

    suffixes, suffix = (".num",), ".num"


def test_captions_beside_files(tmp_path):
    for name in ("a/1.num", "2.num", "3.num"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1 2 3 4")
    (tmp_path / "a" / "1.txt").write_text("  eine tiefe Note, 低い音\n", encoding="utf-8")
    (tmp_path / "3.txt").write_text("", encoding="utf-8")
    folder = Folder(tmp_path, Counts())
    assert folder.conditions == [{}, {"text": ""}, {"label": "a", "text": "eine tiefe Note, 低い音"}]
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a/1.num"}\n{"file_name": "2.num", "text": "t", "low": "x.npy"}\n'
    )
    told = Folder(tmp_path, Counts()).conditions
    assert told == [folder.conditions[2], {"text": "t", "low": str(tmp_path / "x.npy")}]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "3.txt").write_bytes("ü".encode("latin-1"))
    with pytest.raises(DataError, match=r"3\.txt: is not a text in UTF-8"):
        Folder(tmp_path, Counts())


def test_metadata_jsonl(root, numbers):
    rows = [{"file_name": "4.txt", "pitch": 60, "mood": "calm"}, {"file_name": "a/1.txt", "label": "mine", "on": True}]
    (root / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    folder = Folder(root, numbers)
    assert values(folder) == [4, 1]
    assert folder.conditions == [{"pitch": 60, "mood": "calm"}, {"label": "mine", "on": True}]


def test_metadata_csv(root, numbers):
    (root / "metadata.csv").write_text(
        'file_name,pitch,speed,mood\na/0.txt,60,1e-1,calm\na/1.txt,,2,"wild, loud"\n4.txt,62.5,3\n'
    )
    assert Folder(root, numbers).conditions == [
        {"label": "a", "pitch": 60.0, "speed": 0.1, "mood": "calm"},
        {"label": "a", "pitch": None, "speed": 2.0, "mood": "wild, loud"},
        {"pitch": 62.5, "speed": 3.0, "mood": None},
    ]


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("metadata.jsonl", '{"file_name": "4.txt"}\n{"mood": "calm"}\n', "row 2 has no file_name"),
        ("metadata.jsonl", '{"file_name": "4.txt"}\n"calm"\n', "row 2 has no file_name"),
        ("metadata.jsonl", '{"file_name": "4.txt"\n', "is not valid jsonl"),
        ("metadata.csv", "file_name,mood\n4.txt,calm\n,calm\n", "row 2 has no file_name"),
        ("metadata.csv", "name,mood\n4.txt,calm\n", "row 1 has no file_name"),
        ("metadata.csv", "file_name,mood\na/0.txt,calm\n4.txt,calm,1\n", "row 2 has more cells than the header"),
        ("metadata.csv", "", "holds no file"),
        ("metadata.jsonl", '{"file_name": 4}\n', "row 1 has no file_name"),
    ],
)
def test_bad_metadata(name, text, named, root, numbers):
    (root / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(named)) as caught:
        Folder(root, numbers)
    assert str(root) in str(caught.value)


# Bad files


def test_bad_files_are_named_once_and_replaced(root, numbers):
    (root / "a" / "0.txt").write_text("no number")
    (root / "4.txt").write_text("nor this")
    folder = Folder(root, numbers)
    with pytest.warns(UserWarning, match="skipped") as caught:
        found = values(folder)
    assert sorted(re.search(r"(\w+\.txt): is not made of numbers", str(w.message))[1] for w in caught) == [
        "0.txt",
        "4.txt",
    ]
    assert found == [1, 1, 1, 5, 2, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert values(folder) == found
    # The condition is that of the file which took the place.
    assert folder[0][1] == {"label": "a"}


def test_a_missing_file_of_the_metadata_is_a_bad_file(root, numbers):
    (root / "metadata.jsonl").write_text('{"file_name": "nowhere.txt"}\n{"file_name": "4.txt"}\n')
    folder = Folder(root, numbers)
    with pytest.warns(UserWarning, match=r"nowhere\.txt"):
        assert values(folder) == [4, 4]


def test_nothing_to_read(root, numbers, tmp_path):
    for path in root.rglob("*.[tT][xX][tT]"):
        path.write_text("words")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(DataError, match="none of its 6 files can be read"):
        Folder(root, numbers)[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no file that ends in \.txt"):
        Folder(tmp_path / "empty", numbers)
    with pytest.raises(DataError, match=r"data\.root must name one"):
        Folder(tmp_path / "nowhere", numbers)


def test_bad_files_with_workers(root, numbers, capfd, monkeypatch):
    """Two processes share what they learn about the files: one warning per file and all examples are good ones."""
    (root / "a" / "0.txt").write_text("no number")
    data = DataModule(Folder(root, numbers), numbers, batch_size=1, held_out=1, num_workers=2)
    data.train.indices = list(range(6)) * 4
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: print(message, file=sys.stderr))
        seen = [batch.x[0, 0, 0].item() for _ in range(2) for batch in data.train_dataloader()]
    assert len(seen) == 48
    assert set(seen) == {1, 2, 3, 4, 5}
    named = capfd.readouterr().err.count("0.txt: is not made of numbers")
    assert 1 <= named <= 2  # two workers may meet it at the same moment


# Batches


def test_encoded(root, numbers):
    data = Encoded(Folder(root, numbers), numbers)
    assert len(data) == 6
    assert data[1].x.tolist() == [[0.0, 0.0, 0.0, 0.0]]
    assert (data[1].cond, data[1].mask) == ({"label": "a"}, None)
    (root / "4.txt").write_text("7")
    assert data[0].x.tolist() == [[7.0, 0.0, 0.0, 0.0]]
    assert data[0].mask.tolist() == [[True, False, False, False]]


def test_encoded_keeps_what_it_is_told_to(root, numbers):
    kept = Encoded(Folder(root, numbers), numbers, cache=True)
    fresh = Encoded(Folder(root, numbers), numbers)
    assert kept[0].x[0, 0] == fresh[0].x[0, 0] == 4
    (root / "4.txt").write_text("8 8 8 8")
    assert (kept[0].x[0, 0], fresh[0].x[0, 0]) == (4, 8)


def test_a_shape_that_is_not_the_modalitys(root, numbers):
    numbers.shape = (1, 5)
    with pytest.raises(ValueError, match=r"example 2 has shape \(1, 4\) in model space, its modality says \(1, 5\)"):
        Encoded(Folder(root, numbers), numbers)[2]


def test_collate():
    x, mask = torch.ones(1, 3), torch.tensor([[True, False, False]])
    batch = collate([Example(x, {"a": 1}), Example(2 * x, {"b": "two"}, mask), Example(x, {})])
    assert batch.x[:, 0, 0].tolist() == [1, 2, 1]
    assert batch.cond == {"a": [1, None, None], "b": [None, "two", None]}
    assert batch.mask.tolist() == [[[True] * 3], mask.tolist(), [[True] * 3]]
    assert collate([Example(x, {}), Example(x, {})]).mask is None


@pytest.mark.parametrize(("held_out", "expected"), [(0.05, 5), (0.001, 1), (7, 7), (1, 1), (0, 1), (500, 50)])
def test_held_out_examples(held_out, expected, numbers):
    examples = [(torch.full((1, 4), float(i)), {}) for i in range(100)]
    first, again = (DataModule(examples, numbers, held_out=held_out) for _ in range(2))
    assert len(first.held_out) == expected
    assert first.held_out.indices == again.held_out.indices
    assert sorted(first.held_out.indices + first.train.indices) == list(range(100))
    seen = torch.cat([batch.x[:, 0, 0] for batch in first.val_dataloader()])
    assert seen.int().tolist() == first.held_out.indices


def test_one_example_is_for_training(numbers):
    data = DataModule([(torch.ones(1, 4), {})], numbers, held_out=0.5)
    assert (len(data.train), len(data.held_out)) == (1, 0)
    assert len(list(data.train_dataloader())) == 1


def test_only_whole_batches_unless_there_is_one(numbers):
    examples = [(torch.ones(1, 4), {})] * 11
    assert [len(b.x) for b in DataModule(examples, numbers, batch_size=4, held_out=1).train_dataloader()] == [4, 4]
    assert [len(b.x) for b in DataModule(examples, numbers, batch_size=99, held_out=1).train_dataloader()] == [10]
    with pytest.raises(ValueError, match=r"data\.batch_size must be a whole number of at least 1, got 0"):
        DataModule(examples, numbers, batch_size=0)


def test_conditions(numbers):
    examples = [(torch.ones(1, 4), cond) for cond in ({"a": 1, "b": None}, {"a": 2}, {"b": "x"})]
    assert DataModule(examples, numbers).conditions == {"a": [1, 2], "b": ["x"]}
