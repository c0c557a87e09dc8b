"""The pages under docs/: what they show runs, what they name exists, and what they link to is there."""

import doctest
import re
import shlex
from pathlib import Path
from pydoc import locate

import pytest
import yaml

from mmdiff import plugins
from tutorial import WRITTEN, blocks, path_of

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCS}
TUTORIAL = "docs/tutorial.md"
OTHERS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("modalities/*/README.md")]
}
COMMANDS = [
    line
    for page, text in TEXTS.items()
    if page != TUTORIAL
    for kind, block in blocks(text)
    if kind == "sh"
    for line in block.splitlines()
    if line.strip()
]


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if ">>>" in text])
def test_what_a_page_shows_is_what_python_says(page, run_folder, tmp_path, monkeypatch):
    (tmp_path / "run").symlink_to(run_folder)
    monkeypatch.chdir(tmp_path)
    shown = "\n".join(block for kind, block in blocks(TEXTS[page]) if kind == "pycon")
    assert shown.count(">>>") == TEXTS[page].count(">>>")
    test = doctest.DocTestParser().get_doctest(shown, {"__name__": "page"}, page, page, 0)
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert (result.failed, "".join(said)) == (0, "")


@pytest.mark.parametrize("line", COMMANDS)
def test_command_of_a_page_composes(line, command, tmp_path):
    program, name, *arguments = shlex.split(line, comments=True)
    assert program == "mmdiff"
    ran = command(name, *arguments, "--cfg", "job", folder=tmp_path)
    assert ran.status == 0, ran.err


def anchors(text: str) -> set[str]:
    """Those of the headings, as renderers of Markdown make them."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    found = [re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles]
    found += re.findall(r"^::: ([\w.]+)$", without_code, re.MULTILINE)
    assert len(found) == len(set(found)), found
    return set(found)


@pytest.mark.parametrize("page", [*TEXTS, *OTHERS])
def test_links_lead_somewhere(page):
    text = (TEXTS | OTHERS)[page]
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", TEXTS)
def test_names_of_mmdiff_exist(page):
    """Dotted names, and options written as code."""
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    for name in set(re.findall(r"`(mmdiff(?:\.\w+)+)`", prose)) | set(re.findall("^::: (.*)$", prose, re.MULTILINE)):
        assert locate(name) is not None, name
    groups = plugins.groups()
    for group, option in re.findall(r"`(\w+)=(\w+)`", prose):
        assert group not in groups or option in plugins.options(group), f"{group}={option}"


def test_every_page_is_in_the_menu():
    listed = re.findall(r"[\w/]+\.md", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert sorted(f"docs/{page}" for page in listed) == sorted(TEXTS)


def test_every_module_is_in_the_reference():
    """But for the command line, whose words are its interface, and what a plugin is made from."""
    named = {name for text in TEXTS.values() for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)}
    files = [path.relative_to(ROOT) for path in (ROOT / "mmdiff").rglob("*.py")]
    modules = {".".join(path.with_suffix("").parts) for path in files if not {"cli", "template"} & set(path.parts)}
    public = {name.removesuffix(".__init__") for name in modules if not name.endswith(".__main__")}
    assert named <= public
    for name in sorted(public - named):
        assert any(name.startswith(f"{package}.") for package in named), f"{name} is in no page of docs/api"


def test_the_tutorial_has_what_can_be_followed():
    """`make wheel` follows it; here that it names its files, trains, samples, and ends with a check."""
    shown = blocks(TEXTS[TUTORIAL])
    files = [path_of(text) for kind, text in shown if kind in WRITTEN]
    assert len(set(files)) == len(files) >= 4
    lines = [line.split() for kind, text in shown if kind == "sh" for line in text.splitlines()]
    used = [words[1] for words in lines if words[0] == "mmdiff"]
    assert used[:2] == ["info", "new"]
    assert {"train", "sample", "evaluate", "check", "export"} < set(used)
    assert lines[-2] == ["mmdiff", "check", "tides"]
