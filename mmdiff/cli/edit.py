"""``mmdiff edit``: files kept in part, varied, blended, carried over to another condition, or restored."""

import sys

from omegaconf import DictConfig

from mmdiff.cli.app import from_checkpoint, run


def edit(config: DictConfig) -> None:
    """Edit the given files and write what comes of them to the output folder."""
    from pathlib import Path

    from hydra.utils import instantiate

    from mmdiff.checkpoint import load, to_dict
    from mmdiff.cli.device import choose
    from mmdiff.editing import Edit, edit_files
    from mmdiff.generation import override, plain, spread

    paths = [Path(path) for path in ([config.given] if isinstance(config.given, str) else config.given)]
    model = override(load(config.checkpoint, choose(config.device)), config)
    count = config.count or (8 if config.toward else len(paths))
    chosen = {name: config[name] for name in ("keep", "source", "measured", "strength", "method", "noise")}
    chosen |= {name: str(chosen[name]) for name in ("keep", "measured") if chosen[name] is not None}
    chosen |= {"jump": config.jump, "repeats": config.repeats, "source": config.source and to_dict(config.source)}
    said = edit_files(
        model,
        spread(config.cond or {}, count),
        paths,
        Edit(
            toward=config.toward and model.modality.read(Path(config.toward)),
            inverse=instantiate(config.inverse),
            **chosen,
        ),
        config.output,
        seed=config.seed,
        batch_size=config.batch_size,
        record={"toward": config.toward, "inverse": config.measured and plain(config.inverse), **chosen},
    )
    print(f"wrote {count} to {config.output}: {said}")


if __name__ == "__main__":
    sys.argv[1:] = from_checkpoint("edit", sys.argv[1:])
    run("edit", edit)
