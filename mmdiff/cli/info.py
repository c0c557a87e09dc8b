"""``mmdiff info``: what is installed, what can be chosen, and what training an experiment costs."""

import sys
from collections.abc import Sequence
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


def cost(config: DictConfig) -> None:
    """Print parameters, arithmetic, memory and communication of a training step on ``devices``."""
    from hydra.utils import get_class, instantiate

    from mmdiff.callbacks import EMA
    from mmdiff.checkpoint import build_denoiser
    from mmdiff.cost import measure, report
    from mmdiff.data import Encoded, collate
    from mmdiff.errors import check_at_least
    from mmdiff.fitting import fit_config
    from mmdiff.module import DiffusionModule

    devices = config.get("devices", 1)
    check_at_least(1, devices=devices)
    data = instantiate(config.data)
    fit_config(config, data)
    module = DiffusionModule(
        build_denoiser(config, data.modality),
        data.modality,
        instantiate(config.train_schedule),
        instantiate(config.optimizer),
        levels=instantiate(config.get("levels")),
    )
    examples = Encoded(data.train, data.modality)
    batch = collate([examples[i % len(examples)] for i in range(data.batch_size)])
    averaged = any(issubclass(get_class(node._target_), EMA) for node in config.callbacks.values() if node)
    measured = measure(
        module,
        batch,
        averaged=averaged,
        mixed="mixed" in str(config.trainer.precision),
        accumulated=config.trainer.accumulate_grad_batches,
    )
    print(f"a batch of {len(batch.x)} examples of shape {tuple(data.modality.shape)} on each device")
    print(report(measured, devices))


def with_devices(arguments: Sequence[str]) -> list[str]:
    """Arguments for the configuration of training, which says nothing of ``devices`` and whose runs have folders."""
    return ["hydra.run.dir=.", *(f"++{a}" if a.startswith("devices=") else a for a in arguments)]


if __name__ == "__main__":
    if any(argument.startswith("experiment=") for argument in sys.argv[1:]):
        sys.argv[1:] = with_devices(sys.argv[1:])
        run("info", cost, "train")
    else:
        run("info", info)
