"""``mmdiff sample``: files, a picture and a record of what was asked."""

import sys

from omegaconf import DictConfig

from mmdiff.cli.app import from_checkpoint, run


def sample(config: DictConfig) -> None:
    """Draw ``count`` samples and write them to the output folder."""
    from collections import deque
    from pathlib import Path

    from mmdiff.checkpoint import load
    from mmdiff.cli.device import choose, launch
    from mmdiff.cli.train import quiet
    from mmdiff.generation import override, produce, spread

    quiet()
    model = override(load(config.checkpoint), config)
    conds = spread(config.cond or {}, config.count)
    paths = [Path(path) for path in ([config.given] if isinstance(config.given, str) else config.given or [])]
    given = [model.modality.read(path) for path in paths]
    trainer = config.get("trainer")
    fabric = launch(trainer) if trainer else None
    model.denoiser.to(fabric.device if fabric else choose(config.device))
    written = produce(
        model,
        conds,
        config.output,
        seed=config.seed,
        batch_size=config.batch_size,
        toward=config.toward,
        given=given,
        paths=paths,
        known=config.known,
        extend=config.extend,
        resume=config.resume,
        processes=fabric,
    )
    deque(written, maxlen=0)


if __name__ == "__main__":
    sys.argv[1:] = from_checkpoint("sample", sys.argv[1:])
    run("sample", sample)
