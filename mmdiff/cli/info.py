"""``mmdiff info``: what is installed and what can be chosen."""

import sys
from importlib.metadata import PackageNotFoundError, version

from omegaconf import DictConfig

from mmdiff import __version__, plugins
from mmdiff.cli.app import run

PACKAGES = ("torch", "lightning", "hydra-core", "torchaudio", "av", "trimesh")


def info(config: DictConfig) -> None:
    """Print versions, devices, plugins, and the options of every group."""
    import torch

    print(f"mmdiff {__version__}, Python {sys.version.split()[0]}")
    print("  " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = f"{torch.accelerator.device_count()} x {accelerator}" if accelerator else "none"
    print(f"  accelerators: {devices}; CPU threads: {torch.get_num_threads()}")
    print("\nplugins")
    for plugin in plugins.plugins():
        distribution = f"{plugin.dist.name} {plugin.dist.version}" if plugin.dist else "unknown distribution"
        print(f"  {plugin.name:12} {plugin.value} ({distribution}): {_state(plugin)}")
        folder = plugins.plugin_conf(plugin)
        if folder:
            for group in plugins.groups_in(folder):
                print(f"  {'':12}   {group}: {', '.join(plugins.options_in(folder, group))}")
    clashes = plugins.clashes()
    if clashes:
        print("\noptions that several packages bring (the first one's is taken)")
    for option, packages in clashes.items():
        print(f"  {option}: {', '.join(packages)}")
    print("\noptions (group=option)")
    for group in plugins.groups():
        print(f"  {group:12} {', '.join(plugins.options(group))}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _state(plugin: plugins.EntryPoint) -> str:
    problem = plugins.problem(plugin)
    if problem:
        return f"BROKEN, {problem}"
    return "ok" if plugins.plugin_conf(plugin) else "ok, but it has no conf folder"


if __name__ == "__main__":
    run("info", info)
