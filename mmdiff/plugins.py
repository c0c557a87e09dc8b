"""Plugins: installed packages that bring a modality, found by entry point and never imported to be listed.

A plugin is a Python package with a ``conf`` folder and one line in its distribution's metadata:

    [project.entry-points."mmdiff.plugins"]
    eeg = "mmdiff_eeg"

Its configurations join Hydra's search path after the core's, so ``experiment=eeg/sleep`` works once it is installed.
"""

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

import mmdiff

GROUP = "mmdiff.plugins"


def plugins() -> list[EntryPoint]:
    """Installed plugins, by name."""
    return sorted(entry_points(group=GROUP), key=lambda plugin: plugin.name)


def core_conf() -> Path:
    """The core's configurations: inside an installed package, beside it in a source tree."""
    package = Path(mmdiff.__file__).parent
    return next(folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir())


def plugin_conf(plugin: EntryPoint) -> Path | None:
    """A plugin's configurations; None if the package is missing or brings none."""
    try:
        spec = find_spec(plugin.value)
    except ImportError:
        return None
    folders = [Path(location) / "conf" for location in (spec and spec.submodule_search_locations) or ()]
    return next((folder for folder in folders if folder.is_dir()), None)


class PluginSearchPath(SearchPathPlugin):
    """Adds every plugin's configurations to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append them in order of name."""
        for plugin in plugins():
            folder = plugin_conf(plugin)
            if folder:
                search_path.append(provider=f"mmdiff plugin {plugin.name}", path=folder.as_uri())


def register() -> None:
    """Make Hydra see the plugins, in this program only."""
    Plugins.instance().register(PluginSearchPath)


def options(group: str) -> list[str]:
    """Names of a configuration group's options, the core's and the plugins'."""
    folders = [core_conf(), *filter(None, map(plugin_conf, plugins()))]
    found = {
        path.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders
        for path in (folder / group).rglob("*.yaml")
    }
    return sorted(found)


def groups() -> list[str]:
    """Names of the configuration groups."""
    folders = [core_conf(), *filter(None, map(plugin_conf, plugins()))]
    return sorted({path.name for folder in folders for path in folder.iterdir() if path.is_dir()} - {"hydra"})
