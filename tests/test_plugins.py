"""How an installed package becomes options of the command line, and what happens when it cannot."""

import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import mmdiff
from mmdiff import plugins

MODALITY = """
import torch
from mmdiff.modality import Modality

class Pairs(Modality):
    suffixes, suffix, shape = (".txt",), ".txt", (1, 2)

    def read(self, path, generator=None):
        return torch.tensor([float(path.read_text())] * 2)

    def write(self, media, path):
        path.write_text(str(media.tolist()))

    def encode(self, media):
        return media[..., None, :]

    def decode(self, x):
        return x[..., 0, :]

    def preview(self, media):
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

class Network(torch.nn.Module):
    def __init__(self, shape, features):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(shape))

    def forward(self, x, noise, context):
        return self.scale * x
"""
EXPERIMENT = """# @package _global_
defaults: [override /modality: pairs/pairs, override /data: pairs/files, override /network: pairs/scale]
"""
DATA = """
_target_: mmdiff.data.folder
root: ???
modality: ${modality}
"""


def install(place: Path, package: str, name: str, **files: str) -> None:
    """Write a package with the metadata of an installed distribution; ``__`` in a file's name is a folder."""
    for file, text in files.items():
        path = place / package / file.replace("__", "/").replace("_yaml", ".yaml").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    metadata = place / f"{package}-1.2.3.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.2.3\n")
    (metadata / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{name} = {package}\n")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder on the search path of Python, where packages can be installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_entry_points(place):
    assert [plugin.value for plugin in plugins.plugins() if plugin.name == "audio"] == ["mmdiff_audio"]
    install(place, "mmdiff_aaa", "aaa")
    install(place, "mmdiff_zzz", "zzz")
    names = [plugin.name for plugin in plugins.plugins()]
    assert (names[0], names[-1]) == ("aaa", "zzz")
    assert "mmdiff_zzz" not in sys.modules


def test_conf_of_a_plugin(place):
    audio = next(plugin for plugin in plugins.plugins() if plugin.name == "audio")
    assert plugins.plugin_conf(audio).joinpath("modality/audio").is_dir()
    install(place, "mmdiff_bare", "bare")
    for value in ("mmdiff_bare", "mmdiff_nowhere", "mmdiff_nowhere.deep", "json.tool"):
        assert plugins.plugin_conf(EntryPoint("some", value, plugins.GROUP)) is None


def test_options_join_those_of_the_core(place):
    before = plugins.options("solver")
    assert before == ["ancestral", "dpmpp_2m", "euler", "heun"]
    install(place, "mmdiff_more", "more", conf__solver__more__best_yaml="", conf__mood__calm_yaml="")
    assert plugins.options("solver") == [*before, "more/best"]
    assert plugins.options("mood") == ["calm"]
    assert "mood" in plugins.groups()
    assert "hydra" not in plugins.groups()
    assert plugins.options("nosuch") == []


def test_core_conf_in_a_source_tree_and_in_a_wheel(tmp_path, monkeypatch):
    assert plugins.core_conf() == Path(mmdiff.__file__).parents[1] / "conf"
    package = tmp_path / "mmdiff"
    monkeypatch.setattr(mmdiff, "__file__", str(package / "__init__.py"))
    (tmp_path / "conf").mkdir()
    assert plugins.core_conf() == tmp_path / "conf"
    (package / "conf").mkdir(parents=True)
    assert plugins.core_conf() == package / "conf"


def test_a_new_modality_trains_and_samples(place, command, tmp_path):
    """From nothing but a package and its entry point."""
    confs = {
        "conf__experiment__pairs__files_yaml": EXPERIMENT,
        "conf__modality__pairs__pairs_yaml": "_target_: mmdiff_pairs.Pairs",
        "conf__network__pairs__scale_yaml": "{_target_: mmdiff_pairs.Network, _partial_: true}",
        "conf__data__pairs__files_yaml": DATA,
    }
    install(place, "mmdiff_pairs", "pairs", **confs)
    (place / "mmdiff_pairs" / "__init__.py").write_text(MODALITY)
    for i in range(8):
        path = tmp_path / "files" / ("low", "high")[i % 2] / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(i))
    made = ["experiment=pairs/files", "debug=fast", "data.root=files", "hydra.run.dir=run"]
    ran = command("train", *made, folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    last = "run/checkpoints/last.ckpt"
    ran = command("sample", f"checkpoint={last}", "count=2", "cond={label: high}", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert {path.name for path in (tmp_path / "samples").glob("*.txt")} == {"00000.txt", "00001.txt"}


def test_info_survives_a_broken_plugin(place, command, tmp_path):
    install(place, "mmdiff_broken", "broken", conf__solver__broken__best_yaml="")
    (place / "mmdiff_broken" / "__init__.py").write_text("import a_module_that_is_not_there")
    install(place, "mmdiff_gone", "gone")
    shutil.rmtree(place / "mmdiff_gone", ignore_errors=True)
    install(place, "mmdiff_bare", "bare")
    (place / "mmdiff_bare").mkdir()
    (place / "mmdiff_bare" / "__init__.py").touch()
    ran = command("info", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert "mmdiff_broken (mmdiff-broken 1.2.3): BROKEN, ModuleNotFoundError" in ran.out
    assert "mmdiff_gone (mmdiff-gone 1.2.3): BROKEN, ModuleNotFoundError" in ran.out
    assert "mmdiff_bare (mmdiff-bare 1.2.3): ok, but it has no conf folder" in ran.out
    assert "mmdiff_audio (mmdiff " in ran.out
    assert "broken/best" in ran.out
