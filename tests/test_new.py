"""`mmdiff new`: what it writes and what it refuses. That it installs, passes and trains: `tests/tutorial.py`."""

import subprocess
import sys

import pytest

from mmdiff.cli.new import TEMPLATE

MISTAKES = {
    "no name": ([], "one NAME must be given, got 0; usage: mmdiff new NAME"),
    "two names": (["tides", "waves"], "one NAME must be given, got 2"),
    "capital": (["Tides"], "NAME must be lower-case letters, digits and _, beginning with a letter, got 'Tides'."),
    "dash": (["high-tides"], "got 'high-tides'"),
    "digit": (["3d"], "got '3d'"),
    "path": (["../tides"], "got '../tides'"),
    "keyword": (["class"], "got 'class'"),
    "taken": (["audio"], "audio is an installed plugin already; choose another NAME"),
    "existing folder": (["tides"], "mmdiff-tides exists already; choose another output=DIR"),
    "existing output": (["waves", "output=mmdiff-tides"], "mmdiff-tides exists already; choose another output=DIR"),
    "option": (["waves", "outptu=there"], "outptu is not an option; did you mean output?"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake, command, tmp_path):
    (tmp_path / "mmdiff-tides").mkdir()
    arguments, named = MISTAKES[mistake]
    ran = command("new", *arguments, folder=tmp_path)
    assert (ran.status, ran.out) == (1, "")
    assert named in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) <= 2
    assert [path.name for path in tmp_path.rglob("*")] == ["mmdiff-tides"]


def test_what_is_written(command, tmp_path):
    ran = command("new", "high_tides", "output=deep/tides", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert "mmdiff check high_tides" in ran.out
    files = {path.relative_to(tmp_path / "deep/tides").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"pyproject.toml", "README.md", "tests/test_high_tides.py"} < files
    assert {f"mmdiff_high_tides/{name}.py" for name in ("__init__", "modality", "network", "data")} < files
    options = {name.split("conf/")[1] for name in files if name.endswith(".yaml")}
    assert {option.split("/")[0] for option in options} == {"modality", "data", "network", "experiment"}
    assert all(option.split("/")[1] == "high_tides" for option in options)
    texts = [(tmp_path / "deep/tides" / name).read_text() for name in files]
    assert not any("plugin_name" in text or "PluginName" in text for text in [*texts, *files])
    assert "class HighTides(Modality)" in (tmp_path / "deep/tides/mmdiff_high_tides/modality.py").read_text()
    assert len(files) == sum(path.is_file() and path.suffix != ".pyc" for path in TEMPLATE.rglob("*"))


def test_help(command, tmp_path):
    for name in ("new", "check"):
        ran = command(name, "--help", folder=tmp_path)
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.startswith(f"usage: mmdiff {name} NAME")


def test_torch_is_not_needed(environment, tmp_path):
    code = "import sys; sys.argv = ['mmdiff', 'new', 'tides']; from mmdiff.cli import main; main(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert not {"torch", "lightning", "numpy"} & set(done.stdout.split())
