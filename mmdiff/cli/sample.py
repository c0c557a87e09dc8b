"""``mmdiff sample``: files, a picture and a record of what was asked."""

import sys

from omegaconf import DictConfig

from mmdiff.cli.app import from_checkpoint, run


def sample(config: DictConfig) -> None:
    """Draw ``count`` samples and write them to the output folder."""
    from collections import deque

    from mmdiff import request
    from mmdiff.cli.device import choose, launch
    from mmdiff.cli.train import quiet
    from mmdiff.generation import produce
    from mmdiff.prompts import COUNT

    quiet()
    asked = request.read(config, lambda prompts, files: prompts if prompts > 1 else COUNT, infers=True)
    trainer = config.get("trainer")
    fabric = launch(trainer) if trainer else None
    asked.model.denoiser.to(fabric.device if fabric else choose(config.device))
    conds = asked.completed(config.known)
    written = produce(
        asked.model,
        conds,
        config.output,
        seed=config.seed,
        batch_size=config.batch_size,
        against=asked.against,
        toward=config.toward,
        given=asked.given,
        paths=asked.paths,
        known=config.known,
        extend=config.extend,
        resume=config.resume,
        processes=fabric,
    )
    deque(written, maxlen=0)


if __name__ == "__main__":
    sys.argv[1:] = from_checkpoint("sample", sys.argv[1:])
    run("sample", sample)
