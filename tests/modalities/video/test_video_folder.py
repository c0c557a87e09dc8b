"""``mmdiff train experiment=video/folder`` on films as people have them, and films from films."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mmdiff.checkpoint import load_dict
from mmdiff_video import media

SOURCE = "ffmpeg -nostdin -loglevel error -f lavfi -i testsrc2=size=96x72:rate={rate}:duration={seconds}"
GOOD = {
    "cats/a.mp4": f"{SOURCE} -c:v libx264 -pix_fmt yuv420p {{}}",
    "cats/b.webm": f"{SOURCE} -c:v libvpx-vp9 -b:v 200k {{}}",
    "cats/c.gif": f"{SOURCE} -vf fps=10 {{}}",
    "dogs/phone.mp4": f"{SOURCE} -c:v libx264 -pix_fmt yuv420p upright.mp4"
    " && ffmpeg -nostdin -loglevel error -i upright.mp4 -c copy -metadata:s:v rotate=90 {}",
    "dogs/variable.mkv": f"{SOURCE} -vf select='not(mod(n\\,3)*mod(n\\,2))' -fps_mode vfr -c:v libx264 {{}}",
    "dogs/picture.png": f"{SOURCE} -frames:v 1 {{}}",
    "dogs/short.mp4": SOURCE.replace("{seconds}", "0.4") + " -c:v libx264 -pix_fmt yuv420p {}",
}
BAD = ("cut.mp4", "sound.mp4")
TINY = [
    "experiment=video/folder",
    "debug=fast",
    "network.width=8",
    "network.multipliers=[1, 2]",
    "network.attention=[]",
    "network.temporal_attention=[1]",
    "conditioner.features=16",
    "modality.frames=8",
    "modality.height=16",
    "modality.width=24",
]


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """Films of many kinds, one corrupt and one without pictures."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg to make films")
    place = tmp_path_factory.mktemp("films")
    root = place / "root"
    for name, line in GOOD.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            line.format(root / name, rate=24, seconds=2), shell=True, cwd=place, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
    whole = (root / "cats" / "a.mp4").read_bytes()
    (root / "cats" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    sound = ["ffmpeg", "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", "sine=duration=2", "-c:a", "aac"]
    subprocess.run([*sound, root / "dogs" / "sound.mp4"], check=True)
    return root


@pytest.fixture(scope="module")
def run(films, command, tmp_path_factory) -> Path:
    """The folder of a run of two steps on them."""
    folder = tmp_path_factory.mktemp("run")
    ran = command("train", *TINY, f"data.root={films}", "data.held_out=2", "hydra.run.dir=run", folder=folder)
    assert ran.status == 0, ran.err
    lines = ran.err.splitlines()
    assert len(lines) == len(BAD), ran.err
    for name in BAD:
        assert sum(bool(re.match(rf"warning: skipped {films}/.*{re.escape(name)}: ", line)) for line in lines) == 1
    return folder / "run"


def test_a_folder_of_real_films(run):
    content = load_dict(run / "checkpoints" / "last.ckpt")
    assert content["global_step"] == 2
    assert content["config"]["conditioner"]["embedders"]["label"]["classes"] == ["cats", "dogs"]
    assert (run / "previews" / "step_0000002.png").is_file()
    assert media.probe(run / "previews" / "step_0000002" / "00000.mp4").frames == 8


@pytest.mark.parametrize(
    ("known", "kept"), [("first", [0]), ("last", [7]), ("both", [0, 7]), ("every:4", [0, 4]), ("first:5", range(5))]
)
def test_given_frames_come_out_as_they_went_in(known, kept, run, films, command, tmp_path):
    """Written without loss, so that the files can be compared."""
    from mmdiff.checkpoint import load
    from mmdiff.generation import batches

    model = load(run / "checkpoints" / "last.ckpt")
    given = model.modality.read(films / "cats" / "a.mp4")
    made = next(batches(model, [{}] * 2, seed=0, batch_size=2, given=[given], known=known))
    kept = list(kept)
    assert torch.equal(made[:, :, kept], given[:, kept].expand(2, *given[:, kept].shape))
    others = [i for i in range(8) if i not in kept]
    assert (made[0][:, others] != made[1][:, others]).float().mean() > 0.1
    ran = command(
        "sample",
        f"checkpoint={run}/checkpoints/last.ckpt",
        f"given={films}/cats/a.mp4",
        f"known={known}",
        "count=2",
        "modality.suffix=.gif",
        folder=tmp_path,
    )
    assert (ran.status, ran.err) == (0, "")
    record = [json.loads(line) for line in (tmp_path / "samples" / "samples.jsonl").read_text().splitlines()]
    assert [(r["file"], r["known"]) for r in record] == [("00000.gif", known), ("00001.gif", known)]


def test_a_picture_and_a_film_go_on(run, films, command, tmp_path):
    """From one picture, and for longer than a clip: 8 + 2 x 4 frames."""
    ran = command(
        "sample",
        f"checkpoint={run}/checkpoints/last.ckpt",
        f"given={films}/dogs/picture.png",
        "extend=2",
        "count=1",
        folder=tmp_path,
    )
    assert (ran.status, ran.err) == (0, "")
    assert media.probe(tmp_path / "samples" / "00000.mp4").frames == 16


def test_an_unknown_word(run, films, command, tmp_path):
    checkpoint = f"checkpoint={run}/checkpoints/last.ckpt"
    ran = command("sample", checkpoint, f"given={films}/cats/a.mp4", "known=middle", folder=tmp_path)
    assert ran.status == 1
    assert ran.err.startswith(
        "mmdiff sample: 'middle' names no part; parts are first, first:K, last, last:K, both, every:K, frames:"
    )


def test_evaluation_of_completions(run, films, command, tmp_path):
    checkpoint = f"checkpoint={run}/checkpoints/last.ckpt"
    ran = command(
        "evaluate", checkpoint, f"real={films}/cats", "count=4", "known=first", "ask=[label]", folder=tmp_path
    )
    assert ran.status == 0, ran.err
    report = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert report["protocol"]["known"] == "first"
    assert {"motion_distance", "untrained_conv3d_distance"} <= set(report["metrics"])
