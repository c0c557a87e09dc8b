"""``mmdiff sample``: files, a picture and a record of what was asked."""

import sys

from omegaconf import DictConfig

from mmdiff.cli.app import run, unset_groups


def sample(config: DictConfig) -> None:
    """Draw ``count`` samples and write them to the output folder."""
    from mmdiff.checkpoint import load
    from mmdiff.cli.device import choose
    from mmdiff.generation import generate, override, spread

    model = load(config.checkpoint, choose(config.device))
    override(model.config, config)
    generate(
        model, spread(config.cond or {}, config.count), config.output, seed=config.seed, batch_size=config.batch_size
    )


if __name__ == "__main__":
    sys.argv[1:] = unset_groups(sys.argv[1:])
    run("sample", sample)
