"""``mmdiff train experiment=audio/folder`` on files as people have them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mmdiff.checkpoint import load_dict

GOOD = {
    "anna/a.wav": "sox speech.wav {}",
    "anna/b.flac": "sox speech.wav -r 44100 -c 2 {}",
    "anna/c.WAV": "sox speech.wav -t wav -b 24 -r 48000 {}",
    "anna/short.wav": "sox speech.wav {} trim 0 0.2",
    "ben/d.mp3": "ffmpeg -nostdin -loglevel error -i speech.wav -ar 32000 -ac 2 {}",
    "ben/e.ogg": "ffmpeg -nostdin -loglevel error -i speech.wav -c:a libvorbis -ar 22050 {}",
    "ben/f.opus": "ffmpeg -nostdin -loglevel error -i speech.wav -c:a libopus {}",
    "ben/g.m4a": "ffmpeg -nostdin -loglevel error -i speech.wav -c:a aac -ar 11025 {}",
}
BAD = ("empty.wav", "text.wav", "cut.mp3")


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """Speech in many formats, rates and channel counts, and three files that are broken."""
    missing = [tool for tool in ("espeak-ng", "sox", "ffmpeg") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} to make sound files")
    place = tmp_path_factory.mktemp("files")
    root = place / "root"
    subprocess.run(
        ["espeak-ng", "-w", "speech.wav", "One two three four five, once I caught a fish."], cwd=place, check=True
    )
    for name, line in GOOD.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(line.format(root / name), shell=True, cwd=place, check=True, capture_output=True)
    (root / "empty.wav").touch()
    (root / "ben" / "text.wav").write_text("no sound at all\n" * 100)
    whole = (root / "ben" / "d.mp3").read_bytes()
    (root / "anna" / "cut.mp3").write_bytes(whole[: len(whole) // 3])
    (root / "readme.txt").write_text("not a sound file, and no file that says it is")
    return root


@pytest.mark.parametrize(("workers", "bucket"), [(0, 0), (2, 0), (2, 3)])
def test_a_folder_of_real_files(workers, bucket, speech, tiny_folder, command, tmp_path):
    options = [f"data.root={speech}", f"data.num_workers={workers}", f"data.bucket={bucket}", "data.held_out=2"]
    ran = command("train", *tiny_folder, *options, "hydra.run.dir=run", folder=tmp_path)
    assert ran.status == 0, ran.err
    lines = ran.err.splitlines()
    assert len(lines) == len(BAD), ran.err
    for name in BAD:
        assert sum(bool(re.match(rf"warning: skipped {speech}/.*{re.escape(name)}: ", line)) for line in lines) == 1
    content = load_dict(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert content["global_step"] == 2
    assert content["config"]["conditioner"]["embedders"]["label"]["classes"] == ["anna", "ben"]
    assert f"{len(GOOD) + len(BAD) - 2} examples" in ran.out
    ran = command("sample", "checkpoint=run/checkpoints/last.ckpt", "count=1", "cond={label: ben}", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")


def test_a_folder_with_nothing_readable(tiny_folder, command, tmp_path):
    (tmp_path / "sounds").mkdir()
    for name in ("a.wav", "b.mp3"):
        (tmp_path / "sounds" / name).write_text("no sound")
    ran = command("train", *tiny_folder, "data.root=sounds", folder=tmp_path)
    assert ran.status == 1
    errors = [line for line in ran.err.splitlines() if not line.startswith("warning: skipped sounds/")]
    assert errors[0] == "mmdiff train: sounds: none of its 2 files can be read"
    assert len(errors) <= 2
    assert "Traceback" not in ran.err
