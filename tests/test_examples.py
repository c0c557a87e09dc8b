"""The plugins under examples/: each installs by pip, passes the checks, trains, and uses public names alone."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = {path.name.removeprefix("mmdiff-"): path for path in sorted((ROOT / "examples").glob("mmdiff-*"))}
NEEDS = {"image": ["PIL", "sklearn"]}
SMALL = {
    "image": ["experiment=image/digits", "network.width=8"],
    "timeseries": ["experiment=timeseries/tides", "network.width=8"],
    "molecule": ["experiment=molecule/built", "network.width=32", "data.dataset.size=32", "data.held_out=8"],
}


def imports(path: Path) -> list[str]:
    """Full names of everything that a file imports, and of what it takes from modules by attribute."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            names.append(node.attr)
    return names


def is_private(name: str) -> bool:
    return any(re.fullmatch(r"_(?!_).*", part) for part in name.split("."))


def test_there_are_three():
    assert set(EXAMPLES) == set(SMALL)


def test_what_counts_as_private(tmp_path):
    path = tmp_path / "code.py"
    path.write_text("import a._b\nfrom c import _d, e\nfrom .f import g\nh = e._i + e.j\nself._k = 1\ne.__class__\n")
    assert [name for name in imports(path) if is_private(name)] == ["a._b", "c._d", "_i"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_public_names_alone(name):
    files = sorted(EXAMPLES[name].rglob("*.py"))
    assert len(files) > 3
    used = {(path.name, imported) for path in files for imported in imports(path)}
    assert not [pair for pair in used if is_private(pair[1])]
    other = [
        path for path, imported in used if re.match(r"(mmdiff_|tests)", imported) and f"mmdiff_{name}" not in imported
    ]
    assert not other


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_a_distribution_says(name):
    folder = EXAMPLES[name]
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == folder.name
    assert project["entry-points"]["mmdiff.plugins"] == {name: f"mmdiff_{name}"}
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for experiment in (folder / f"mmdiff_{name}" / "conf" / "experiment" / name).glob("*.yaml"):
        assert f"experiment={name}/{experiment.stem}" in readme
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", readme):
        assert (folder / picture).is_file()
    assert f"({folder.name}/README.md)" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_installs_and_passes_the_checks(name, process, environment, tmp_path):
    """By pip, into a folder of its own; the checks train two steps and write samples."""
    missing = [module for module in NEEDS.get(name, []) if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed; mmdiff[dev] brings it")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", "site"]
    subprocess.run([*pip, str(EXAMPLES[name])], cwd=tmp_path, env=environment, check=True)
    path = [str(tmp_path / "site"), *filter(None, [environment.get("PYTHONPATH")])]
    ran = process("check", name, *SMALL[name], folder=tmp_path, PYTHONPATH=":".join(path))
    assert (ran.status, ran.err) == (0, ""), ran.out
    assert ran.out.endswith("all 9 checks passed\n")
    runner = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-c", os.devnull]
    own = [*runner, "--rootdir", str(tmp_path), "-k", "not conformance", str(EXAMPLES[name] / "tests")]
    tested = subprocess.run(
        own, cwd=tmp_path, env=environment | {"PYTHONPATH": ":".join(path)}, capture_output=True, text=True
    )
    assert tested.returncode == 0, tested.stdout
