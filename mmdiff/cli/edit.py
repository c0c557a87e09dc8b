"""``mmdiff edit``: files kept in part, varied, blended, carried over to another condition, or restored."""

import sys
from typing import Any

from omegaconf import DictConfig

from mmdiff.cli.app import from_checkpoint, run


def edit(config: DictConfig) -> None:
    """Edit the given files and write what comes of them to the output folder."""
    from pathlib import Path

    from hydra.utils import instantiate

    from mmdiff import prompts
    from mmdiff.checkpoint import load, to_dict
    from mmdiff.cli.device import choose
    from mmdiff.editing import Edit, edit_files
    from mmdiff.generation import override, plain, spread
    from mmdiff.recognition import recognize

    asked = to_dict(config)
    rows, negatives = (prompts.read_prompts(asked[word], word) for word in ("prompt", "negative"))
    paths = [Path(path) for path in ([config.given] if isinstance(config.given, str) else config.given)]
    model = override(load(config.checkpoint, choose(config.device)), config)
    count = config.count or (8 if config.toward else max(len(paths), len(rows)))
    conds, against = prompts.told(model, spread(asked["cond"] or {}, count), rows, negatives)
    chosen = {name: config[name] for name in ("strength", "method", "jump", "repeats", "noise")}
    words: dict[str, Any] = {name: str(config[name]) for name in ("keep", "measured") if config[name] is not None}
    source = asked["source"]
    if isinstance(source, str):
        source = {prompts.text_condition(model.denoiser.conditioner): source}
    carried: dict[str, Any] = {} if source is None else {"source": source}
    toward = {} if config.toward is None else {"toward": config.toward}
    inverse = {"inverse": plain(config.inverse), "noise": config.noise} if config.measured else {}
    wanted = Edit(
        toward=model.modality.read(Path(config.toward)) if toward else None,
        inverse=instantiate(config.inverse),
        **chosen,
        **words,
        **carried,
    )
    infer = model.config.get("infer") if config.keep and config.infer is None else config.infer
    given = [model.modality.read(path) for path in paths]
    conds = recognize(model, [infer] if isinstance(infer, str) else infer or [], conds, given, words.get("keep"))
    said = edit_files(
        model,
        conds,
        paths,
        given,
        wanted,
        config.output,
        seed=config.seed,
        batch_size=config.batch_size,
        against=against,
        record={**words, **toward, **carried, **inverse, "strength": config.strength},
    )
    print(f"wrote {count} to {config.output}: {said}")


if __name__ == "__main__":
    sys.argv[1:] = from_checkpoint("edit", sys.argv[1:])
    run("edit", edit)
