"""`mmdiff check` as a user types it, and the plugins that ship."""

import pytest

from mmdiff.testing import check_plugin, plugin
from mmdiff.testing.plugin import Result
from test_configs import base


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audio", "video", "pointcloud"])
def test_a_plugin_that_ships_passes(name):
    small = [option.replace("data.dataset.points", "modality.points") for option in base(name)]
    check_plugin(name, *(option for option in small if option != "debug=fast"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "one NAME must be given, got 0; usage: mmdiff check NAME"),
        (["audio", "video"], "one NAME must be given, got 2"),
        (["audio", "factor=ten"], "factor must be a number, got 'ten'."),
        (["adio"], "'adio' is not an installed plugin; did you mean audio?"),
    ],
)
def test_mistake(arguments, named, command, tmp_path):
    ran = command("check", *arguments, folder=tmp_path)
    assert (ran.status, ran.out) == (1, "")
    assert named in ran.err
    assert len(ran.err.splitlines()) <= 2


def test_what_is_printed(command, tmp_path, monkeypatch):
    found = [Result("package", {}, None), Result("waves: network", {"loss lowered": 12.345, "steps": 40.0}, None)]
    asked = []

    def results(*arguments):
        asked.append(arguments)
        return iter(found)

    monkeypatch.setattr(plugin, "results", results)
    ran = command("check", "waves", "network.width=8", "factor=2", folder=tmp_path)
    assert asked == [("waves", ["network.width=8"], 2.0)]
    assert (ran.status, ran.err) == (0, "")
    first, second, last = ran.out.splitlines()
    assert first == "ok      package"
    assert second.split(maxsplit=3) == ["ok", "waves:", "network", "loss lowered 12.35, steps 40"]
    assert last == "all 2 checks passed"

    found.append(Result("waves: training", {}, "expected: this; seen: that; documented in there"))
    ran = command("check", "waves", folder=tmp_path)
    assert (ran.status, ran.err) == (1, "")
    told = [line.strip() for line in ran.out.splitlines()[2:]]
    assert told == [
        "FAILED  waves: training",
        "expected: this",
        "seen: that",
        "documented in there",
        "1 of 3 checks failed",
    ]
