"""``mmdiff sample``: files, a picture and a record of what was asked."""

import sys

from omegaconf import DictConfig

from mmdiff.cli.app import from_checkpoint, run


def sample(config: DictConfig) -> None:
    """Draw ``count`` samples and write them to the output folder."""
    from collections import deque
    from pathlib import Path

    from mmdiff import prompts
    from mmdiff.checkpoint import load, to_dict
    from mmdiff.cli.device import choose, launch
    from mmdiff.cli.train import quiet
    from mmdiff.generation import override, produce, spread
    from mmdiff.recognition import recognize

    quiet()
    asked = to_dict(config)
    rows, negatives = (prompts.read_prompts(asked[word], word) for word in ("prompt", "negative"))
    count = (len(rows) if len(rows) > 1 else prompts.COUNT) if config.count is None else config.count
    model = override(load(config.checkpoint), config)
    conds, against = prompts.told(model, spread(asked["cond"] or {}, count), rows, negatives)
    paths = [Path(path) for path in ([config.given] if isinstance(config.given, str) else config.given or [])]
    given = [model.modality.read(path) for path in paths]
    trainer = config.get("trainer")
    fabric = launch(trainer) if trainer else None
    model.denoiser.to(fabric.device if fabric else choose(config.device))
    infer = model.config.get("infer") if given and config.infer is None else config.infer
    conds = recognize(model, [infer] if isinstance(infer, str) else infer or [], conds, given, config.known)
    written = produce(
        model,
        conds,
        config.output,
        seed=config.seed,
        batch_size=config.batch_size,
        against=against,
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
