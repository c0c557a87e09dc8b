"""``mmdiff edit`` as a user types it, with a tiny model of sound."""

import json

import pytest
import soundfile
import torch


@pytest.fixture(scope="module")
def sounds(checkpoint, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    ran = command("sample", f"checkpoint={checkpoint}", "count=2", "steps=1", f"output={folder}", folder=folder)
    assert ran.status == 0, ran.err
    return [folder / "00000.wav", folder / "00001.wav"]


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


EDITS = {
    "keep=seconds::0.1": ("repaint", 1, "resampling (RePaint)"),
    "keep='not seconds:0.1:0.2 or hertz:1000:'": ("repaint", 1, "resampling (RePaint)"),
    "keep=seconds::0.1 method=levels": ("levels, untrained", 1, "with which the model was not trained"),
    "strength=0.4": ("varied", 1, "noised part of the way"),
    "toward=LAST count=3": ("blended", 3, "their noise is blended"),
    "source={pitch:60} cond={pitch:72}": ("carried over", 1, "drawn under others"),
    "measured=hertz::1000 noise=0.1": ("restored", 1, "agree with what was measured"),
    "measured='not seconds:0.1:0.2' inverse=dps inverse.scale=0.5": ("restored", 1, "agree with what was measured"),
}


@pytest.mark.parametrize("options", EDITS)
def test_every_edit(options, checkpoint, sounds, command, tmp_path):
    import shlex

    how, count, said = EDITS[options]
    arguments = shlex.split(options.replace("LAST", str(sounds[1])))
    ran = command(
        "edit", f"checkpoint={checkpoint}", f"given={sounds[0]}", "steps=2", "repeats=2", *arguments, folder=tmp_path
    )
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"wrote {count} to edited: ")
    assert said in ran.out
    record = lines(tmp_path / "edited")
    assert [line["edit"] for line in record] == [how] * count
    assert record[0]["given"] == str(sounds[0])
    made = torch.from_numpy(soundfile.read(tmp_path / "edited" / "00000.wav")[0])
    assert made.isfinite().all()
    assert (tmp_path / "edited" / "preview.png").is_file()
    if "inverse=dps" in options:
        assert record[0]["inverse"] == {"name": "dps", "scale": 0.5}


def test_files_in_turn_and_values_of_the_modality(checkpoint, sounds, command, tmp_path):
    given = ",".join(map(str, sounds))
    ran = command(
        "edit", f"checkpoint={checkpoint}", f"given=[{given}]", "strength=0.5", "steps=1", "count=3",
        "representation.iterations=3", folder=tmp_path,
    )  # fmt: skip
    assert (ran.status, ran.err) == (0, "")
    assert [line["given"] for line in lines(tmp_path / "edited")] == [str(sounds[i]) for i in (0, 1, 0)]


def test_what_is_kept_tells_its_class(checkpoint, sounds, command, tmp_path):
    options = ["keep=seconds::0.1", "infer=timbre", "steps=1", "repeats=1"]
    ran = command("edit", f"checkpoint={checkpoint}", f"given={sounds[0]}", *options, folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert lines(tmp_path / "edited")[0]["cond"]["timbre"] in ("flute", "organ", "pluck", "reed")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["keep=middle"], "'middle' names no part; parts are seconds:FROM:TO, hertz:FROM:TO, joined by and, or, not."),
        (["keep=seconds:9:"], "'seconds:9:' holds nothing; seconds go from 0 to 0.288"),
        ([], "nothing is asked for: give keep=, strength= below 1, toward=, source= or measured=."),
        (["strength=2"], "strength must lie above 0 and be at most 1, got 2"),
        (["keep=seconds::0.1", "toward=x.wav"], "x.wav: "),
        (
            ["strength=0.5", "prompt=a low note"],
            "prompt and negative need a model with one condition that is a text; its ",
        ),
        (["keep=seconds::0.1", "infer=pitch"], "infer=pitch: the conditions of this model with classes are timbre."),
        (["inverse=magic"], "inverse=magic does not exist; inverse takes dps, mmps, pigdm"),
        (["measured=all", "given=missing.wav"], "missing.wav: "),
        (["strength=0.5", "given=[]"], "given must name at least one file."),
    ],
)
def test_mistakes(options, named, checkpoint, sounds, command, tmp_path):
    given = [] if any(o.startswith("given") for o in options) else [f"given={sounds[0]}"]
    ran = command("edit", f"checkpoint={checkpoint}", *given, *options, folder=tmp_path)
    assert ran.status == 1
    assert ran.err.startswith(f"mmdiff edit: {named}")
    assert len(ran.err.splitlines()) == 2
