"""``mmdiff train``: compose, build, fit."""

from omegaconf import DictConfig

from mmdiff.cli.app import run


def train(config: DictConfig) -> None:
    """Train, or with ``resume=PATH`` go on training; everything is written to the run's folder."""
    from pathlib import Path

    import lightning as L
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from mmdiff.callbacks import ConfigInCheckpoint
    from mmdiff.checkpoint import build_denoiser, check_same_model, to_yaml
    from mmdiff.fitting import fit_config
    from mmdiff.module import DiffusionModule

    quiet()
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data)
    fit_config(config, data)
    if config.resume:
        check_same_model(config.resume, config)
    module = DiffusionModule(
        build_denoiser(config, data.modality),
        data.modality,
        instantiate(config.train_schedule),
        instantiate(config.optimizer),
        lr=instantiate(config.lr),
        weighting=instantiate(config.get("weighting")),
    )
    describes_itself = ConfigInCheckpoint(OmegaConf.to_container(config, resolve=True))
    trainer = instantiate(config.trainer)(
        logger=instantiate(config.logger),
        callbacks=[describes_itself, *(instantiate(callback) for callback in config.callbacks.values() if callback)],
    )
    output = Path(config.output)
    (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    size = sum(p.numel() for p in module.parameters())
    print(
        f"{size / 1e6:.1f} M parameters, {len(data.train)} examples of shape {data.modality.shape}, writing to {output}"
    )
    trainer.fit(module, datamodule=data, ckpt_path=config.resume, weights_only=True)


def quiet() -> None:
    """Silence Lightning's advice that does not concern a user of the command line."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in (
        "does not have many workers",
        "Experiment logs directory .* exists and is not empty",
        "The number of training batches",
        "Checkpoint directory .* exists and is not empty",
        "`LeafSpec|`isinstance",
    ):
        warnings.filterwarnings("ignore", f".*{advice}.*")


if __name__ == "__main__":
    run("train", train)
