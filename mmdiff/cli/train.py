"""``mmdiff train``: compose, build, fit."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from mmdiff import plugins
from mmdiff.cli.app import run

if TYPE_CHECKING:
    import lightning as L


def train(config: DictConfig) -> None:
    """Train, or with ``resume=PATH`` go on training; everything is written to the run's folder."""
    import lightning as L
    from hydra.utils import instantiate

    from mmdiff.autoguidance import check_guidance
    from mmdiff.checkpoint import build_denoiser, check_same_model, read_config, to_yaml
    from mmdiff.fitting import adopt, fit_config
    from mmdiff.generation import make_folder
    from mmdiff.module import DiffusionModule

    quiet()
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data)
    if config.resume:
        adopt(config, read_config(config.resume))
        check_same_model(config.resume, config)
    fit_config(config, data)
    check_guidance(config.guidance, config)
    module = DiffusionModule(
        build_denoiser(config, data.modality),
        data.modality,
        instantiate(config.train_schedule),
        instantiate(config.optimizer),
        lr=instantiate(config.lr),
        weighting=instantiate(config.get("weighting")),
        levels=instantiate(config.get("levels")),
        coupling=instantiate(config.get("coupling")),
    )
    trainer = build_trainer(config)
    output = make_folder(config.output)
    (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    size = sum(p.numel() for p in module.parameters())
    print(
        f"{size / 1e6:.1f} M parameters, {len(data.train)} examples of shape {data.modality.shape}, writing to {output}"
    )
    trainer.fit(module, datamodule=data, ckpt_path=config.resume, weights_only=True)


def build_trainer(config: DictConfig) -> "L.Trainer":
    """The trainer of a configuration.

    Raises:
        ValueError: for one that this machine cannot run.
    """
    from hydra.utils import instantiate
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from mmdiff.callbacks import ConfigInCheckpoint
    from mmdiff.checkpoint import to_dict

    describes_itself = ConfigInCheckpoint(to_dict(config))
    callbacks = [describes_itself, *(instantiate(callback) for callback in config.callbacks.values() if callback)]
    try:
        return instantiate(config.trainer)(logger=instantiate(config.logger), callbacks=callbacks)
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error


def quiet() -> None:
    """Silence Lightning's advice that does not concern a user of the command line."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in (
        "does not have many workers",
        "You requested to overfit",
        "The dirpath has changed",
        "Experiment logs directory .* exists and is not empty",
        "The number of training batches",
        "Checkpoint directory .* exists and is not empty",
        "`LeafSpec|`isinstance",
    ):
        warnings.filterwarnings("ignore", f".*{advice}.*")


def with_example(arguments: Sequence[str]) -> list[str]:
    """Let ``--help`` stand without ``experiment=``: it then shows the configuration of the first experiment."""
    asked = {"-h", "--help"} & set(arguments) and not any(a.startswith("experiment=") for a in arguments)
    return [*arguments, *(f"experiment={name}" for name in plugins.options("experiment")[:1] if asked)]


if __name__ == "__main__":
    sys.argv[1:] = with_example(sys.argv[1:])
    run("train", train)
