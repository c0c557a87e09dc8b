"""Plugins: installed packages that bring a modality, found by entry point and never imported to be listed.

A plugin is a Python package with a ``conf`` folder and one line in its distribution's metadata:

    [project.entry-points."mmdiff.plugins"]
    eeg = "mmdiff_eeg"

Its configurations join Hydra's search path after the core's, so ``experiment=eeg/sleep`` works once it is installed.
Every option begins with the plugin's name, so that those of two plugins cannot clash: Hydra takes the first it finds.
"""

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from packaging.requirements import InvalidRequirement, Requirement

import mmdiff
from mmdiff.errors import allowed

GROUP = "mmdiff.plugins"


def plugins() -> list[EntryPoint]:
    """Installed plugins, by name."""
    return sorted(entry_points(group=GROUP), key=lambda plugin: plugin.name)


def find(name: str) -> EntryPoint:
    """The plugin of that name.

    Raises:
        ValueError: if there is none, naming those that are installed.
    """
    found = {plugin.name: plugin for plugin in plugins()}
    if name not in found:
        raise ValueError(f"{name!r} is not an installed plugin; {allowed(name, list(found), 'NAME')}.")
    return found[name]


def problem(plugin: EntryPoint) -> str | None:
    """Why a plugin cannot be used: it does not import, or was built for another mmdiff; None if it can be used."""
    try:
        plugin.load()
    except (Exception, SystemExit) as error:  # whatever an import may raise
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    for line in (plugin.dist and plugin.dist.requires) or ():
        try:
            needed = Requirement(line)
        except InvalidRequirement:
            return f"its metadata have a requirement that is none: {line}"
        applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
        fits = needed.specifier.contains(mmdiff.__version__, prereleases=True)
        if needed.name.lower() == "mmdiff" and applies and not fits:
            return f"it needs mmdiff{needed.specifier}, this is {mmdiff.__version__}"
    return None


def core_conf() -> Path:
    """The core's configurations: inside an installed package, beside it in a source tree."""
    package = Path(mmdiff.__file__).parent
    return next(folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir())


def plugin_conf(plugin: EntryPoint) -> Path | None:
    """A plugin's configurations; None if the package is missing or brings none."""
    try:
        spec = find_spec(plugin.value)
    except Exception:  # of a nested package the outer one is imported
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
    return sorted({option for folder in _folders().values() for option in options_in(folder, group)})


def groups() -> list[str]:
    """Names of the configuration groups."""
    return sorted({group for folder in _folders().values() for group in groups_in(folder)})


def options_in(folder: Path, group: str) -> list[str]:
    """Names of the options that one folder of configurations adds to a group."""
    paths = (folder / group).rglob("*.yaml")
    return sorted(path.relative_to(folder / group).with_suffix("").as_posix() for path in paths)


def groups_in(folder: Path) -> list[str]:
    """Names of the groups in one folder of configurations."""
    return sorted({path.name for path in folder.iterdir() if path.is_dir()} - {"hydra"})


def clashes() -> dict[str, list[str]]:
    """Options that more than one package brings, as ``group=option``, with the packages; Hydra takes the first."""
    owners: dict[str, list[str]] = {}
    for package, folder in _folders().items():
        for group in groups_in(folder):
            for option in options_in(folder, group):
                owners.setdefault(f"{group}={option}", []).append(package)
    return {option: packages for option, packages in sorted(owners.items()) if len(packages) > 1}


def _folders() -> dict[str, Path]:
    """Configurations by package, in the order of the search path."""
    found = {plugin.value: plugin_conf(plugin) for plugin in plugins()}
    return {"mmdiff": core_conf()} | {package: folder for package, folder in found.items() if folder}
