"""``mmdiff sample``: files, a picture and a record of what was asked."""

import sys

from omegaconf import DictConfig

from mmdiff.cli.app import from_checkpoint, run


def sample(config: DictConfig) -> None:
    """Draw ``count`` samples and write them to the output folder."""
    from pathlib import Path

    from mmdiff.checkpoint import load
    from mmdiff.cli.device import choose
    from mmdiff.generation import generate, override, spread

    model = override(load(config.checkpoint, choose(config.device)), config)
    paths = [Path(path) for path in ([config.given] if isinstance(config.given, str) else config.given or [])]
    generate(
        model,
        spread(config.cond or {}, config.count),
        config.output,
        seed=config.seed,
        batch_size=config.batch_size,
        toward=config.toward,
        given=[model.modality.read(path) for path in paths],
        paths=paths,
        known=config.known,
        extend=config.extend,
    )


if __name__ == "__main__":
    sys.argv[1:] = from_checkpoint("sample", sys.argv[1:])
    run("sample", sample)
