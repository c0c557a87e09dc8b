"""The commands as a user types them: what they print, write, refuse, and survive."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from mmdiff import cli, plugins
from mmdiff.checkpoint import load_dict
from mmdiff.cli import COMMANDS

PNG = b"\x89PNG\r\n\x1a\n"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.wav"))}


def sound(folder: Path, name: str) -> torch.Tensor:
    import soundfile

    return torch.from_numpy(soundfile.read(folder / name)[0])


# Help and information


def test_help_is_instant_and_imports_nothing_heavy(program, environment):
    def once() -> float:
        start = time.perf_counter()
        done = subprocess.run([program, "--help"], env=environment, capture_output=True, text=True, check=True)
        assert "mmdiff COMMAND" in done.stdout
        return time.perf_counter() - start

    assert min(once() for _ in range(3)) < 0.5
    code = "import sys; sys.argv = ['mmdiff', '--help']; from mmdiff.cli import main; main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "hydra", "numpy", "matplotlib"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, cli.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_go_to_sleep_unless_the_user_says_otherwise(given, spins, monkeypatch, capsys):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, given.get(name, ""))
        if name not in given:
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["mmdiff", "--version"])
    cli.main()
    assert capsys.readouterr().out.startswith("mmdiff ")
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_unknown_command(command, tmp_path):
    ran = command("trian", folder=tmp_path)
    assert ran.status == 2
    assert "'trian' is not a command" in ran.err
    assert "train" in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["train", "sample", "edit", "evaluate", "tune", "export", "shard", "info"])
def test_help_of_a_command(name, command, tmp_path):
    ran = command(name, "--help", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("mmdiff ")
    assert "== Groups (choose with group=option) ==" in ran.out
    assert "solver: adams_bashforth, adaptive, ancestral" in ran.out
    assert not list(tmp_path.iterdir())


def test_cfg_and_search_path(command, tmp_path):
    ran = command("train", "experiment=audio/notes", "solver=heun", "--cfg", "job", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert yaml.safe_load(ran.out)["solver"]["_target_"] == "mmdiff.solvers.heun"
    ran = command("train", "experiment=audio/notes", "--info", "searchpath", folder=tmp_path)
    assert ran.status == 0
    assert "mmdiff plugin audio" in ran.out
    assert not list(tmp_path.iterdir())


def test_shell_completion(command, tmp_path, monkeypatch):
    for line, expected in (
        ("mmdiff train solver=", " ".join(f"solver={name}" for name in plugins.options("solver")) + "\n"),
        ("mmdiff train experiment=audio/notes optimizer.l", "optimizer.lr=\n"),
    ):
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        assert command("train", "-sc", "query=bash", folder=tmp_path) == (0, expected, "")


@pytest.mark.parametrize(("line", "offered"), [("mmdiff ", COMMANDS), ("mmdiff new ", ()), ("mmdiff check au", ())])
def test_completion_knows_every_command(line, offered, command, tmp_path, monkeypatch):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    ran = command("-sc", "query=bash", folder=tmp_path)
    assert (ran.status, ran.out.split(), ran.err) == (0, list(offered), "")


def test_help_knows_every_command(command, tmp_path):
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__", "app", "device"}
    assert set(COMMANDS) == modules >= {"new", "check"}
    ran = command("--help", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines() if line.startswith("  ")][: len(modules)] == list(COMMANDS)


def test_info(command, tmp_path):
    ran = command("info", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert "torch " + torch.__version__.partition("+")[0] in ran.out
    assert "audio        mmdiff_audio (mmdiff " in ran.out
    assert "): ok" in ran.out
    assert "solver       adams_bashforth, adaptive, ancestral, angular, " in ran.out
    assert "experiment   audio/" in ran.out


def test_multirun_makes_one_run_per_value(tiny, command, tmp_path):
    ran = command("train", "-m", "seed=1,2", *tiny, "callbacks.preview.count=0", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    (sweep,) = tmp_path.glob("runs/audio/notes/*_sweep")
    runs = [sweep / "0", sweep / "1"]
    assert [yaml.safe_load((run / "config.yaml").read_text())["seed"] for run in runs] == [1, 2]
    assert all((run / "checkpoints" / "last.ckpt").is_file() for run in runs)


@pytest.mark.parametrize("options", ["compile=true", "compile={backend: aot_eager}"])
def test_a_compiled_network_trains_the_same(options, tiny, command, monkeypatch, tmp_path):
    """Without a compiler for the machine: what is checked is that the network is traced, and trains as it would."""
    asked = []
    compiled = torch.compile

    def with_aot(*arguments, backend="inductor", **others):
        asked.append(backend)
        return compiled(*arguments, backend="aot_eager", **others)

    monkeypatch.setattr(torch, "compile", with_aot)
    weights = []
    for folder, option in (("plain", "compile=false"), ("compiled", options)):
        ran = command("train", *tiny, option, "callbacks.preview.count=0", f"hydra.run.dir={folder}", folder=tmp_path)
        assert ran.status == 0, ran.err
        last = tmp_path / folder / "checkpoints" / "last.ckpt"
        weights.append(torch.load(last, weights_only=True)["current_model_state"])
    assert asked == ["inductor" if options == "compile=true" else "aot_eager"]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)


# A user's mistakes

MOOD = "+conditioner.embedders={mood: {_target_: mmdiff.conditioning.ClassEmbedder, classes: null}}"
TRAIN = {
    "unknown option": (["nosuch=1"], "nosuch"),
    "unknown option of a group": (["optimizer.lrr=1"], "optimizer.lrr is not an option; did you mean lr?"),
    "unknown group option": (["solver=hein"], "solver=hein does not exist; did you mean heun?"),
    "unknown experiment": (["experiment=audio/note"], "did you mean audio/notes?"),
    "steps": (["steps=0"], "steps"),
    "batch size": (["data.batch_size=0"], "data.batch_size"),
    "schedule": (["schedule.sigma_max=0"], "sigma_max"),
    "wrong shape": (["modality.mean=[1.0, 2.0]"], "modality.mean"),
    "syntax": (["solver"], "solver"),
    "no condition": (
        ["+conditioner.embedders.mood={_target_: mmdiff.conditioning.ClassEmbedder, classes: null}"],
        "mood",
    ),
    "output": (["output=file/run"], "output"),
    "missing checkpoint to resume": (["resume=nowhere.ckpt"], "nowhere.ckpt"),
}


def check_mistake(ran, named: str) -> None:
    assert ran.status in (1, 2), ran
    assert named in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) <= 3, ran.err


@pytest.mark.parametrize("mistake", TRAIN)
def test_mistake_in_training(mistake, tiny, command, tmp_path):
    (tmp_path / "file").touch()
    overrides, named = TRAIN[mistake]
    base = [o for o in tiny if o.partition("=")[0] != overrides[0].partition("=")[0]]
    check_mistake(command("train", *base, *overrides, folder=tmp_path), named)


def test_missing_choices(command, tmp_path):
    check_mistake(command("train", folder=tmp_path), "experiment must be given: add experiment=NAME, one of audio/")
    check_mistake(command("train", "experiment=audio/folder", folder=tmp_path), "data.root must be given")
    missing = command("train", "experiment=audio/folder", "data.root=nowhere", folder=tmp_path)
    check_mistake(missing, "nowhere: is not a folder; data.root must name one")
    (tmp_path / "empty").mkdir()
    check_mistake(
        command("train", "experiment=audio/folder", "data.root=empty", folder=tmp_path), "empty: holds no file"
    )


SAMPLE = {
    "checkpoint not given": (["~checkpoint"], "checkpoint"),
    "missing checkpoint": (["checkpoint=nowhere.ckpt"], "nowhere.ckpt: does not exist"),
    "corrupt checkpoint": (["checkpoint=corrupt.ckpt"], "corrupt.ckpt"),
    "truncated checkpoint": (["checkpoint=truncated.ckpt"], "truncated.ckpt"),
    "folder that is no export": (["checkpoint=folder"], "model.safetensors"),
    "unknown option": (["counts=1"], "did you mean count?"),
    "count": (["count=0"], "count must be"),
    "steps": (["steps=0"], "steps must be"),
    "batch size": (["batch_size=0"], "batch_size must be"),
    "seed": (["seed=-1"], "seed must be"),
    "device": (["device=tpu"], "device must be one of"),
    "unknown condition": (["cond={mood: 1}"], "cond.mood is not a condition"),
    "unknown value": (["cond={timbre: drum}"], "cond.timbre: 'drum' is not one of flute"),
    "value of a wrong kind": (["cond={pitch: high}"], "cond.pitch: expected numbers"),
    "no values": (["cond={pitch: []}"], "cond.pitch"),
    "unknown solver": (["solver=nosuch"], "solver=nosuch does not exist"),
    "unknown option of the solver": (["solver.eta=1"], "solver.eta is not an option of dpmpp_2m"),
    "output": (["output=file/samples"], "output"),
}


@pytest.mark.parametrize("mistake", SAMPLE)
def test_mistake_in_sampling(mistake, checkpoint, command, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "corrupt.ckpt").write_bytes(b"not a checkpoint at all")
    (tmp_path / "truncated.ckpt").write_bytes(checkpoint.read_bytes()[:-2000])
    overrides, named = SAMPLE[mistake]
    given = [] if "checkpoint" in overrides[0].partition("=")[0] else [f"checkpoint={checkpoint}"]
    overrides = [o for o in overrides if not o.startswith("~")]
    check_mistake(command("sample", *given, "count=1", *overrides, folder=tmp_path), named)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (["network.width=16"], "network.width is 8, here it is 16"),
        (["scaling=v"], "scaling._target_ is mmdiff.scaling.EDM"),
        (["modality.representation.mels=32"], "modality."),
    ],
)
def test_resuming_another_model_is_refused(other, named, tiny, checkpoint, command, tmp_path):
    ran = command("train", *tiny, f"resume={checkpoint}", *other, folder=tmp_path)
    check_mistake(ran, named)
    assert "holds another model" in ran.err


def test_traceback_on_demand(process, tmp_path):
    """By the installed command, without and with the variable that its last line names."""
    plain = process("sample", "checkpoint=nowhere.ckpt", folder=tmp_path)
    check_mistake(plain, "nowhere.ckpt: does not exist")
    assert "HYDRA_FULL_ERROR=1 shows the traceback" in plain.err
    full = process("sample", "checkpoint=nowhere.ckpt", folder=tmp_path, HYDRA_FULL_ERROR="1")
    assert full.status == 1
    assert "Traceback" in full.err
    assert "mmdiff.errors.DataError: nowhere.ckpt: does not exist" in full.err


# Sampling


def test_samples_on_disk(checkpoint, command, tmp_path):
    asked = ["count=3", "seed=5", "steps=3", "cond={pitch: [60, 72], timbre: organ}"]
    ran = command("sample", f"checkpoint={checkpoint}", *asked, "output=out", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    out = tmp_path / "out"
    names = ["00000.wav", "00001.wav", "00002.wav"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "preview.png", "samples.jsonl"]
    assert (out / "preview.png").read_bytes().startswith(PNG)
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == names
    assert [row["seed"] for row in rows] == [5, 6, 7]
    assert [row["cond"] for row in rows] == [{"pitch": pitch, "timbre": "organ"} for pitch in (60, 72, 60)]
    assert all(row["steps"] == 3 for row in rows)
    assert all(row["solver"] == {"name": "dpmpp_2m"} and row["guidance"] == {"name": "conditional"} for row in rows)
    assert rows[0]["schedule"]["name"] == "Karras"


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ancestral"])
def test_a_seed_is_a_sample_whatever_is_beside_it(solver, checkpoint, command, tmp_path):
    def sample(name: str, *options: str) -> dict[str, bytes]:
        given = [f"checkpoint={checkpoint}", f"solver={solver}", "steps=4", f"output={name}"]
        ran = command("sample", *given, *options, folder=tmp_path)
        assert (ran.status, ran.err) == (0, "")
        return files(tmp_path / name)

    four = sample("four", "count=4", "batch_size=2")
    assert len(set(four.values())) == 4
    assert sample("again", "count=4", "batch_size=2") == four
    # The same shape of batch, but other neighbors and another place in it: the same bytes.
    assert sample("two", "count=2", "batch_size=2")["00001.wav"] == four["00001.wav"]
    shifted = sample("shifted", "seed=1", "count=2", "batch_size=2")
    assert [shifted["00000.wav"], shifted["00001.wav"]] == [four["00001.wav"], four["00002.wav"]]
    # Another shape of batch: other sums of floating-point numbers.
    sample("one", "seed=2", "count=1", "batch_size=1")
    sample("wide", "count=4", "batch_size=16")
    expected = sound(tmp_path / "four", "00002.wav")
    torch.testing.assert_close(sound(tmp_path / "one", "00000.wav"), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(sound(tmp_path / "wide", "00002.wav"), expected, rtol=0, atol=1e-4)


def test_choices_left_out_come_from_the_checkpoint(tiny, command, train, tmp_path):
    train(*tiny, "solver=ancestral", "solver.eta=0.5", "guidance=cfg", "steps=3", folder=tmp_path)

    def chosen(*options: str) -> dict:
        ran = command("sample", "checkpoint=run/checkpoints/last.ckpt", "count=1", *options, folder=tmp_path)
        assert (ran.status, ran.err) == (0, "")
        return json.loads((tmp_path / "samples" / "samples.jsonl").read_text())

    saved = chosen()
    assert saved["solver"] == {"name": "ancestral", "eta": 0.5}
    assert saved["guidance"]["name"] == "classifier_free"
    assert (saved["guidance"]["scale"], saved["steps"]) == (2.0, 3)
    scaled = chosen("guidance.scale=3", "cond={pitch: 60}")
    assert scaled["guidance"] == saved["guidance"] | {"scale": 3}
    assert scaled["solver"] == saved["solver"]
    other = chosen("solver=heun", "schedule=flow", "schedule.shift=2", "steps=2")
    assert (other["solver"], other["steps"]) == ({"name": "heun"}, 2)
    assert (other["schedule"]["name"], other["schedule"]["shift"]) == ("Flow", 2)


VALUES = {"order": 2, "eta": 0.5, "scale": 3.0, "tolerance": 0.5}
"""Given to every option that takes one of them; ``tolerance`` so that an untrained model is sampled in time."""


def test_every_choice_samples_with_values_of_its_own(checkpoint, files, command, tmp_path):
    """Solvers, guidance and schedules side by side until each had its turn; tuned steps know one schedule only."""
    groups = {name: plugins.options(name) for name in ("solver", "guidance", "schedule")}
    groups["solver"].remove("tuned")
    turns = [
        {group: options[i % len(options)] for group, options in groups.items()}
        for i in range(max(map(len, groups.values())))
    ]
    for i, turn in enumerate([*turns, {"solver": "tuned", "guidance": "cfg", "schedule": "karras"}]):
        expected, words = {}, []
        for group, option in turn.items():
            words += [f"{group}={option}", *files.get(f"{group}={option}", [])]
            folders = [plugins.core_conf(), *filter(None, map(plugins.plugin_conf, plugins.plugins()))]
            path = next(path for folder in folders if (path := folder / group / f"{option}.yaml").is_file())
            expected[group] = {key: VALUES[key] for key in yaml.safe_load(path.read_text()) if key in VALUES}
            words += [f"{group}.{key}={value}" for key, value in expected[group].items()]
        given = [f"checkpoint={checkpoint}", "count=1", "steps=2", "cond={pitch: 60}", f"output=turn{i}"]
        ran = command("sample", *given, *words, folder=tmp_path)
        assert (ran.status, ran.err) == (0, ""), words
        row = json.loads((tmp_path / f"turn{i}" / "samples.jsonl").read_text())
        for group, values in expected.items():
            assert row[group].items() >= values.items(), words
        assert sound(tmp_path / f"turn{i}", "00000.wav").isfinite().all()


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_two_processes_make_what_one_makes_though_each_is_killed(checkpoint, command, program, environment, tmp_path):
    given = [f"checkpoint={checkpoint}", "count=50", "batch_size=4", "steps=10", "cond={pitch: [60, 64, 67]}"]
    assert command("sample", *given, "output=one", folder=tmp_path).status == 0
    two = [program, "sample", *given, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "resume=true"]
    out = tmp_path / "two"
    before: dict[Path, int] = {}
    for victim in (1, 0):
        enough = len(before) + 5
        with (tmp_path / "log").open("w") as log:
            running = subprocess.Popen([*two, "output=two"], cwd=tmp_path, env=environment, stdout=log, stderr=log)
            try:
                deadline = time.monotonic() + 400
                while len(list(out.glob("*.wav"))) < enough and running.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                (child,) = map(int, Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split())
                os.kill((running.pid, child)[victim], signal.SIGKILL)
                assert running.wait(100) != 0
            finally:
                running.kill()
        while alive(child) and time.monotonic() < deadline:
            time.sleep(0.1)
        now = {path: path.stat().st_mtime_ns for path in out.glob("*.wav")}
        assert enough <= len(now) < 50
        assert not (out / "samples.jsonl").exists()
        assert now.items() >= before.items()
        before = now
    done = subprocess.run([*two, "output=two"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    one = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == one
    assert len(one) == 52


# Evaluation and export


def test_evaluate(checkpoint, command, tmp_path):
    given = [f"checkpoint={checkpoint}", "count=4"]
    ran = command("evaluate", *given, "output=new", "steps=3", "solver=euler", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    report = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert set(report["metrics"]) >= {"kernel_distance", "notes.pitch", "notes.both"}
    protocol = report["protocol"]
    assert (protocol["fake_count"], protocol["real_count"]) == (4, 4)
    assert (protocol["steps"], protocol["solver"], protocol["seed"]) == (3, {"name": "euler"}, 0)
    assert {"mmdiff", "torch", "checkpoint", "guidance", "schedule"} <= set(protocol)
    assert all(math.isfinite(value) for value in report["metrics"].values())
    assert all(f"{value:.4g}" in ran.out for value in report["metrics"].values())
    samples = tmp_path / "new" / "samples"
    assert len(files(samples)) == 4

    ran = command("evaluate", *given, f"fake={samples}", f"real={samples}", "output=old", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    report = json.loads((tmp_path / "old" / "metrics.json").read_text())
    assert (report["protocol"]["real"], report["protocol"]["fake"]) == (str(samples), str(samples))
    assert math.isfinite(report["metrics"]["kernel_distance"])
    assert not (tmp_path / "old" / "samples").exists()


def test_export_samples_the_same(checkpoint, command, tmp_path):
    ran = command("export", f"checkpoint={checkpoint}", "output=model", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.yaml", "model.safetensors"]
    for source, output in ((checkpoint, "a"), ("model", "b")):
        command("sample", f"checkpoint={source}", "count=2", "cond={pitch: 64}", f"output={output}", folder=tmp_path)
    assert len(files(tmp_path / "a")) == 2
    assert files(tmp_path / "a") == files(tmp_path / "b")


# Interruption


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(tiny, program, environment, command, tmp_path):
    long = [o for o in tiny if o != "debug=fast"] + ["data.batch_size=2", "trainer.max_steps=1000000"]
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(
            [program, "train", *long, "hydra.run.dir=run"], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 120
        while "step/s" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) != 0
    finally:
        running.kill()
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log, log
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    step = load_dict(last)["global_step"]
    assert step > 0
    more = [*long[:-1], f"trainer.max_steps={step + 3}", f"resume={last}", "hydra.run.dir=more", "steps=2"]
    ran = command("train", *more, folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert load_dict(tmp_path / "more" / "checkpoints" / "last.ckpt")["global_step"] == step + 3


def test_bash_completes_the_line_as_typed(tmp_path):
    script = """
    eval "$(mmdiff -sc install=bash)"
    for COMP_LINE in "mmdiff ev" "mmdiff train solver=h" "mmdiff sample guidance=c"; do
        typed=($COMP_LINE); COMP_CWORD=$((${#typed[@]} - 1)); COMPREPLY=()
        hydra_bash_completion; echo "${COMPREPLY[@]}"
    done
    complete -p mmdiff
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    evaluate, solver, guidance, registered = done.stdout.splitlines()
    assert (evaluate, solver, guidance) == ("evaluate", "solver=heun", "guidance=cfg")
    assert registered.endswith("hydra_bash_completion mmdiff")
