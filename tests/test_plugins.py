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


def install(place: Path, package: str, name: str, needs: str = "mmdiff", **files: str) -> None:
    """Write a package with the metadata of an installed distribution; ``__`` in a file's name is a folder."""
    for file, text in files.items():
        path = place / package / file.replace("__", "/").replace("_yaml", ".yaml").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    metadata = place / f"{package}-1.2.3.dist-info"
    metadata.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.2.3\nRequires-Dist: {needs}\n"
    (metadata / "METADATA").write_text(text)
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
    assert before == sorted(before)
    assert {"ancestral", "dpmpp_2m", "euler", "heun"} < set(before)
    install(place, "mmdiff_more", "more", conf__solver__more__best_yaml="", conf__mood__calm_yaml="")
    assert plugins.options("solver") == sorted([*before, "more/best"])
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


def lines(text: str, start: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip().startswith(start)]


def test_info_tells_what_each_plugin_adds(place, command, tmp_path):
    install(place, "mmdiff_more", "more", conf__solver__more__best_yaml="", conf__mood__more__calm_yaml="")
    (place / "mmdiff_more" / "__init__.py").touch()
    ran = command("info", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    told = ran.out.partition("options (group")[0]
    assert "mmdiff_more (mmdiff-more 1.2.3): ok\n" in told
    assert lines(told, "solver:") == ["solver: more/best"]
    assert lines(told, "mood:") == ["mood: more/calm"]
    assert "network: audio/unet_base, audio/unet_small, audio/unet_tiny" in lines(told, "network:")
    assert "several packages" not in ran.out


def test_info_tells_clashes(place, command, tmp_path):
    for name in ("one", "two"):
        install(place, f"mmdiff_{name}", name, conf__solver__best_yaml="", conf__network__audio__unet_tiny_yaml="")
    install(place, "mmdiff_third", "third", conf__solver__heun_yaml="")
    ran = command("info", folder=tmp_path)
    assert ran.status == 0
    assert "options that several packages bring (the first one's is taken)" in ran.out
    assert lines(ran.out, "solver=best") == ["solver=best: mmdiff_one, mmdiff_two"]
    assert lines(ran.out, "solver=heun") == ["solver=heun: mmdiff, mmdiff_third"]
    assert lines(ran.out, "network=audio") == ["network=audio/unet_tiny: mmdiff_audio, mmdiff_one, mmdiff_two"]


NEWER = {
    "mmdiff>=99": "BROKEN, it needs mmdiff>=99, this is 0",
    "mmdiff (<0.0.1)": "BROKEN, it needs mmdiff<0.0.1, this is 0",
    "MMDIFF[audio]>=99; python_version > '3'": "BROKEN, it needs mmdiff>=99",
    "mmdiff>=": "BROKEN, its metadata have a requirement that is none: mmdiff>=",
    "mmdiff>=99; extra == 'dev'": "ok, but",
    "torch>=99": "ok, but",
}


@pytest.mark.parametrize("needs", NEWER)
def test_plugin_built_for_another_mmdiff(needs, place):
    install(place, "mmdiff_next", "next", needs, __init___py="")
    (place / "mmdiff_next").mkdir(exist_ok=True)
    (place / "mmdiff_next" / "__init__.py").touch()
    from mmdiff.cli.info import _state

    assert _state(plugins.find("next")).startswith(NEWER[needs])


@pytest.mark.parametrize("text", ["import sys; sys.exit(3)", "1 +", "raise RuntimeError('a\\nb')"])
def test_whatever_an_import_raises_is_told_in_one_line(text, place, tmp_path, command):
    install(place, "mmdiff_broken", "broken", conf__solver__broken__best_yaml="")
    (place / "mmdiff_broken" / "__init__.py").write_text(text)
    problem = plugins.problem(plugins.find("broken"))
    assert problem
    assert len(problem.splitlines()) == 1
    assert problem.startswith(("SystemExit: 3", "SyntaxError: ", "RuntimeError: a b"))


def test_find():
    assert plugins.find("audio").value == "mmdiff_audio"
    with pytest.raises(ValueError, match="'vidoe' is not an installed plugin; did you mean video"):
        plugins.find("vidoe")


def test_a_plugin_trains_beside_those_that_cannot(place, tiny, train, command, tmp_path):
    """Two that do not import (one by a package within a package), one with a clash, one for a later mmdiff."""
    install(place, "mmdiff_broken", "broken", conf__solver__broken__best_yaml="")
    (place / "mmdiff_broken" / "__init__.py").write_text("raise RuntimeError('broken')")
    (place / "mmdiff_nested-1.dist-info").mkdir()
    (place / "mmdiff_nested-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: nested\nVersion: 1\n")
    (place / "mmdiff_nested-1.dist-info" / "entry_points.txt").write_text(
        f"[{plugins.GROUP}]\nnested = mmdiff_broken.inner\n"
    )
    install(place, "mmdiff_zzz", "zzz", conf__network__audio__unet_tiny_yaml="{_target_: nowhere.Network}")
    install(place, "mmdiff_next", "next", "mmdiff>=99", conf__solver__next__best_yaml="")
    (place / "mmdiff_next" / "__init__.py").touch()
    assert train(*tiny, "callbacks.preview.count=0", folder=tmp_path).err == ""
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    ran = command("info", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert "mmdiff_broken (mmdiff-broken 1.2.3): BROKEN, RuntimeError: broken" in ran.out
    assert "mmdiff_broken.inner (nested 1): BROKEN, RuntimeError: broken" in ran.out
    assert "network=audio/unet_tiny: mmdiff_audio, mmdiff_zzz" in ran.out
    assert "mmdiff_next (mmdiff-next 1.2.3): BROKEN, it needs mmdiff>=99" in ran.out
    assert "mmdiff_audio (mmdiff " in ran.out
