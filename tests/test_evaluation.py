"""What of a folder is evaluated."""

import json

import pytest

from mmdiff import DataError
from mmdiff.evaluation import generated


def test_only_recorded_files_are_samples(numbers, tmp_path):
    """A preview may have the suffix of the samples."""
    for name in ("00000.txt", "00001.txt", "preview.txt"):
        (tmp_path / name).write_text("1\n2\n3\n4")
    assert len(generated(tmp_path, numbers, 10)) == 3
    entries = [{"file": f"0000{i}.txt", "cond": {"kind": kind}} for i, kind in enumerate(("high", "low"))]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert [cond["kind"] for _, cond in generated(tmp_path, numbers, 10)] == ["high", "low"]
    assert len(generated(tmp_path, numbers, 1)) == 1


def test_a_record_of_something_else(numbers, tmp_path):
    (tmp_path / "00000.txt").write_text("1\n2\n3\n4")
    (tmp_path / "samples.jsonl").write_text('{"name": "00000.txt"}\n')
    with pytest.raises(DataError, match=r"samples.jsonl: is not a record that mmdiff sample wrote"):
        generated(tmp_path, numbers, 10)
    (tmp_path / "samples.jsonl").write_text('{"file": "00001.txt", "cond": {}}\n')
    with pytest.raises(DataError, match=r"samples.jsonl: names no file that is there"):
        generated(tmp_path, numbers, 10)
