"""Prompts on the command line and in files."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from mmdiff import DataError
from mmdiff.cli.app import in_words
from mmdiff.conditioning import ClassEmbedder, Conditioner
from mmdiff.prompts import ask, check_negative, read_prompts, text_condition
from mmdiff.text import ByteEmbedder
from mmdiff_audio.notes import Notes


def read(argument: str, key: str = "prompt") -> list[dict]:
    """As the command does: Hydra's parser, then ours."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    value = OverridesParser.create().parse_override(in_words(argument)).value()
    return read_prompts(OmegaConf.to_container(OmegaConf.create({"x": value}), resolve=True)["x"], key)


@pytest.mark.parametrize(
    "text",
    [
        "a low organ note, A#4",
        "it's 5:3 (a=b) {x} 50% \\ & ${y}",
        'she said "low"',
        "ends with a backslash \\",
        "quotes \\' and \\\\'",
        "низкая нота, 低い音 🎻",
        "true",
        "60",
    ],
)
def test_any_text_can_be_typed(text):
    assert read(f"prompt={text}") == [{"prompt": text}]


def test_other_arguments_are_left_alone():
    for argument in (
        "count=4",
        "cond={pitch: 60}",
        "prompt=null",
        "prompt=",
        "prompt='already, quoted'",
        "source={pitch:60}",
        "-m",
    ):
        assert in_words(argument) == argument
    assert read("prompt='already, quoted'") == [{"prompt": "already, quoted"}]
    assert read("prompt=") == [{"prompt": ""}]


def test_lists_and_mixtures():
    assert read("prompt=[a low note, 'one, two']") == [{"prompt": "a low note"}, {"prompt": "one, two"}]
    assert read("prompt={a flute: 0.7, 'C#4, organ': 1}") == [{"prompt": {"a flute": 0.7, "C#4, organ": 1}}]
    assert read("negative=[noise]", "negative") == [{"negative": "noise"}]
    with pytest.raises(ValueError, match="prompt is no list and no mixture"):
        read("prompt={a flute: 1")


def test_files(tmp_path):
    lines, rows = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_text("a low note\n\n  ein hoher Ton: ü \n", encoding="utf-8")
    assert read(f"prompt={lines}") == [{"prompt": "a low note"}, {"prompt": "ein hoher Ton: ü"}]
    given = [{"prompt": "a low note", "negative": "noise", "pitch": 60}, {"prompt": {"a": 1, "b": 2}}]
    rows.write_text("\n".join(map(json.dumps, given)), encoding="utf-8")
    assert read(f"prompt={rows}") == given


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.txt", None, "cannot be read"),
        ("empty.txt", b"\n \n", "holds no prompt"),
        ("latin.txt", "ü".encode("latin-1"), "is not valid txt in UTF-8"),
        ("bad.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "is not valid jsonl"),
        ("list.jsonl", b'{"prompt": "a"}\n[1]\n', "row 2 is not an object"),
    ],
)
def test_bad_files_are_named(name, content, reason, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: {reason}"):
        read_prompts(str(tmp_path / name), "prompt")


def test_prompts_join_other_conditions_and_are_used_in_turn():
    prompts = [{"prompt": "a", "negative": "x"}, {"prompt": "b", "timbre": "reed"}, {"negative": "z"}]
    asked, against = ask([{"pitch": 60}] * 4, prompts, [{"negative": "y"}, {"negative": None}], "text")
    assert asked == [
        {"pitch": 60, "text": "a"},
        {"pitch": 60, "text": "b", "timbre": "reed"},
        {"pitch": 60},
        {"pitch": 60, "text": "a"},
    ]
    assert against == [{"text": "x"}, {}, {"text": "z"}, {"text": "x"}]


def test_the_condition_that_prompts_are_for():
    text, kind = ByteEmbedder(4, width=8, depth=1), ClassEmbedder(4, ["a"])
    assert text_condition(Conditioner(4, {"kind": kind, "caption": text})) == "caption"
    for embedders in ({"kind": kind}, {"one": text, "two": text}):
        with pytest.raises(ValueError, match=f"its conditions are {', '.join(embedders)}"):
            text_condition(Conditioner(4, embedders))


def test_a_negative_prompt_needs_guidance():
    for name in ("guidance.conditional", "autoguidance.Autoguidance"):
        with pytest.raises(ValueError, match=r"add guidance=cfg guidance.scale=3"):
            check_negative(OmegaConf.create({"_target_": f"mmdiff.{name}"}))
    with pytest.raises(ValueError, match="no effect"):
        check_negative(OmegaConf.create({"_target_": "mmdiff.guidance.classifier_free", "scale": 1.0}))
    check_negative(OmegaConf.create({"_target_": "mmdiff.guidance.classifier_free", "scale": 2.0}))


@pytest.fixture(scope="module")
def told(tiny, train, tmp_path_factory):
    """The checkpoint of a run of two steps on captions."""
    folder = tmp_path_factory.mktemp("told")
    options = [o for o in tiny if not o.startswith("experiment=")]
    text = ["conditioner.embedders.text.width=8", "conditioner.embedders.text.tokens=true", "network.tokens=true"]
    ran = train("experiment=audio/notes_text", *options, *text, "callbacks.preview.count=1", folder=folder)
    assert ran.err == ""
    return folder / "run" / "checkpoints" / "last.ckpt"


def test_the_command(told, command, tmp_path):
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a flute, C4"}\n{"prompt": "ノート"}\n{"prompt": ""}\n', encoding="utf-8"
    )
    base = ["sample", f"checkpoint={told}", "steps=2", "guidance.scale=3"]

    def record(name: str, *options: str, said: str = "") -> list[dict]:
        ran = command(*base, *options, f"output={name}", folder=tmp_path)
        assert (ran.status, ran.err) == (0, said)
        return [json.loads(line) for line in (tmp_path / name / "samples.jsonl").read_text().splitlines()]

    one = record("one", "prompt=a low organ note, A#4", "negative=harp", "count=2")
    assert [row["cond"] for row in one] == [{"text": "a low organ note, A#4"}] * 2
    assert [row["against"] for row in one] == [{"text": "harp"}] * 2
    unknown = "warning: no word of 'ノート' was in the captions that the model learned from"
    assert [row["cond"]["text"] for row in record("file", "prompt=p.jsonl", said=unknown)] == [
        "a flute, C4",
        "ノート",
        "",
    ]
    mixed = record("mixed", "prompt={a flute: 3, an organ: 1}", "count=1")
    assert mixed[0]["cond"] == {"text": {"a flute": 3, "an organ": 1}}
    record("nothing", "prompt=", "count=1")
    record("unasked", "count=1")
    files = [(tmp_path / name / "00000.wav").read_bytes() for name in ("nothing", "unasked")]
    assert files[0] == files[1]


EDITS = {
    "varied": (["strength=0.5", "prompt=a flute, C4", "negative=harp"], {"text": "a flute, C4"}),
    "carried over": (["source=a flute, C4", "prompt=an organ, C4"], {"text": "an organ, C4"}),
    "repaint": (["keep=seconds::0.1", "repeats=2", "prompt=[a flute, a reed]"], {"text": "a flute"}),
}


@pytest.mark.parametrize("how", EDITS)
def test_edits_in_words(how, told, command, tmp_path):
    options, cond = EDITS[how]
    ran = command("sample", f"checkpoint={told}", "count=1", "steps=1", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    base = ["edit", f"checkpoint={told}", "given=samples/00000.wav", "steps=2", "guidance.scale=3"]
    ran = command(*base, *options, folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    rows = [json.loads(line) for line in (tmp_path / "edited" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == (2 if how == "repaint" else 1)
    assert (rows[0]["edit"], rows[0]["cond"]) == (how, cond)
    assert rows[0].get("against") == ({"text": "harp"} if how == "varied" else None)
    assert rows[0].get("source") == ({"text": "a flute, C4"} if how == "carried over" else None)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["prompt=a note", "cond={pitch: 60}"], "cond.pitch is not a condition of this model; its conditions are text"),
        (["prompt=missing.txt"], "missing.txt: cannot be read"),
        (["prompt=a note", "negative=noise", "guidance=none"], "negative has no effect with this guidance"),
        (["prompt={a: -1, b: 2}"], "a mixture needs positive weights"),
    ],
)
def test_mistakes(options, named, told, command, tmp_path):
    ran = command("sample", f"checkpoint={told}", "count=1", "steps=1", *options, folder=tmp_path)
    assert ran.status == 1
    assert named in ran.err
    assert "Traceback" not in ran.err


def test_a_prompt_for_a_model_without_captions(checkpoint, command, tmp_path):
    ran = command("sample", f"checkpoint={checkpoint}", "prompt=a low note", folder=tmp_path)
    assert ran.status == 1
    assert (
        "prompt and negative need a model with one condition that is a text; its conditions are pitch, timbre"
        in ran.err
    )


def test_evaluation_on_held_out_wordings(told, command, tmp_path):
    options = ["count=4", "steps=2", "data.dataset.split=wordings", "data.dataset.complete=true"]
    ran = command("evaluate", f"checkpoint={told}", *options, folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    rows = [json.loads(line) for line in (tmp_path / "evaluation/samples/samples.jsonl").read_text().splitlines()]
    notes = Notes(size=12, seconds=0.3, split="wordings", complete=True)
    assert len(rows) == 4
    assert {row["cond"]["text"] for row in rows} <= {cond["text"] for _, cond in notes}
    protocol = json.loads((tmp_path / "evaluation/metrics.json").read_text())["protocol"]
    assert protocol["ask"] == ["text"]
    assert protocol["data"] == {"dataset": {"split": "wordings", "complete": True}}


def test_a_token_is_heard_by_the_network(told):
    from mmdiff.checkpoint import load

    denoiser = load(told).denoiser
    context = denoiser.conditioner({"text": ["a note", "a longer note"]}, 2)
    assert context.tokens.shape[:2] == context.token_mask.shape
    assert torch.is_tensor(denoiser.network.middle[0].words.out.weight)
