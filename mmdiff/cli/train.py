"""``mmdiff train``: compose, build, fit."""

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from mmdiff import plugins
from mmdiff.cli.app import run

if TYPE_CHECKING:
    import lightning as L

LOST = r"DataLoader worker|connection (closed|reset)|peer|nccl|broken pipe"


def train(config: DictConfig) -> None:
    """Train, or with ``resume=PATH|auto`` go on training; everything is written to the run's folder."""
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
    if config.resume == "auto":
        config.resume = find_checkpoint(config.output)
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
    if config.compile:
        module.denoiser.network.compile(**({} if config.compile is True else config.compile))
    trainer = build_trainer(config)
    output = make_folder(config.output)
    (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    size = sum(p.numel() for p in module.parameters())
    print(
        f"{size / 1e6:.1f} M parameters, {len(data.train)} examples of shape {data.modality.shape}, writing to {output}"
    )
    if config.resume:
        continue_logs(trainer, config.resume)
    with processes(trainer.world_size):
        trainer.fit(module, datamodule=data, ckpt_path=config.resume, weights_only=True)


def find_checkpoint(output: str) -> str | None:
    """What ``resume=auto`` goes on from: the newest whole checkpoint in the run's folder, said in a line."""
    from pathlib import Path

    from mmdiff.saving import newest

    folder = Path(output) / "checkpoints"
    path = newest(folder)
    print(f"resume=auto: going on from {path}" if path else f"resume=auto: no checkpoint in {folder}, starting anew")
    return str(path) if path else None


def continue_logs(trainer: "L.Trainer", checkpoint: str) -> None:
    """Let the loggers keep what was recorded before the checkpoint."""
    from pathlib import Path

    from mmdiff.checkpoint import load_dict
    from mmdiff.logs import Metrics

    step = load_dict(Path(checkpoint))["global_step"]
    for logger in trainer.loggers:
        if isinstance(logger, Metrics) and trainer.is_global_zero:
            logger.go_on(step)


@contextmanager
def processes(world: int) -> Iterator[None]:
    """Let Lightning start the processes of one job of a multirun, and put things back for the next one.

    Lightning starts them with the arguments of this one, which in a multirun are those of all jobs.

    Raises:
        OSError: instead of an error deep inside when a process of the run was lost.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import read_write
    from torch import distributed

    arguments, environment = sys.argv[:], os.environ.copy()
    if world > 1 and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        job: Any = HydraConfig.get()
        sys.argv[1:] = job.overrides.task
        with read_write(job):
            job.run.dir = job.runtime.output_dir
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        if not re.search(LOST, str(error), re.IGNORECASE):
            raise
        who = "DataLoader worker or rank: " if isinstance(error, ConnectionError) else ""
        raise OSError(f"a process of the run was lost, the last checkpoint is whole ({who}{error})") from error
    finally:
        sys.argv[:] = arguments
        for name in {"LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} - set(environment):
            os.environ.pop(name, None)
        if world > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


def build_trainer(config: DictConfig) -> "L.Trainer":
    """The trainer of a configuration.

    Raises:
        ValueError: for one that this machine cannot run.
    """
    from hydra.utils import instantiate
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from mmdiff.callbacks import ConfigInCheckpoint
    from mmdiff.checkpoint import to_dict
    from mmdiff.saving import AtomicIO

    describes_itself = ConfigInCheckpoint(to_dict(config))
    callbacks = [describes_itself, *(instantiate(callback) for callback in config.callbacks.values() if callback)]
    try:
        loggers = [instantiate(logger) for logger in (config.logger or {}).values()]
        return instantiate(config.trainer)(logger=loggers, callbacks=callbacks, plugins=AtomicIO())
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error


def quiet() -> None:
    """Silence Lightning's advice that does not concern a user of the command line."""
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning looks after its processes, too, and may end the first before it can say why.
    launcher = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")
    launcher.setLevel(logging.INFO)
    launcher.addFilter(_tell_of_loss)
    for advice in (
        "does not have many workers",
        "You requested to overfit",
        "The dirpath has changed",
        "Be aware that when using `ckpt_path`",
        "Experiment logs directory .* exists and is not empty",
        "The number of training batches",
        "Checkpoint directory .* exists and is not empty",
        "your dataloader is not resumable",  # it is, by the place that the module has reached
        "returned a view tensor",  # which nothing changes in place
        "`LeafSpec|`isinstance",
    ):
        warnings.filterwarnings("ignore", f".*{advice}.*")


def _tell_of_loss(record: logging.LogRecord) -> bool:
    record.msg, record.args = f"a process of the run was lost, the last checkpoint is whole ({record.getMessage()})", ()
    return True


def with_example(arguments: Sequence[str]) -> list[str]:
    """Let ``--help`` stand without ``experiment=``: it then shows the configuration of the first experiment."""
    asked = {"-h", "--help"} & set(arguments) and not any(a.startswith("experiment=") for a in arguments)
    return [*arguments, *(f"experiment={name}" for name in plugins.options("experiment")[:1] if asked)]


if __name__ == "__main__":
    sys.argv[1:] = with_example(sys.argv[1:])
    run("train", train)
