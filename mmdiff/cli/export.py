"""``mmdiff export``: weights without pickle."""

from omegaconf import DictConfig

from mmdiff.cli.app import run


def export(config: DictConfig) -> None:
    """Write ``model.safetensors`` and ``config.yaml``."""
    from mmdiff.checkpoint import export, load
    from mmdiff.generation import make_folder

    folder = make_folder(config.output)
    export(load(config.checkpoint), folder)
    print(f"wrote {folder}/model.safetensors and {folder}/config.yaml")


if __name__ == "__main__":
    run("export", export)
