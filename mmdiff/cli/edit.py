"""``mmdiff edit``: files kept in part, varied, blended, carried over to another condition, or restored."""

import sys
from typing import Any

from omegaconf import DictConfig

from mmdiff.cli.app import from_checkpoint, run


def edit(config: DictConfig) -> None:
    """Edit the given files and write what comes of them to the output folder."""
    from pathlib import Path

    from hydra.utils import instantiate

    from mmdiff import request
    from mmdiff.checkpoint import to_dict
    from mmdiff.cli.device import choose
    from mmdiff.editing import Edit, edit_files
    from mmdiff.generation import plain
    from mmdiff.prompts import text_condition

    device = choose(config.device)
    chosen = {name: config[name] for name in ("strength", "method", "jump", "repeats", "refine", "noise")}
    words: dict[str, Any] = {name: str(config[name]) for name in ("keep", "measured") if config[name] is not None}
    asked = request.read(
        config, lambda prompts, files: 8 if config.toward else max(prompts, files), infers="keep" in words
    )
    if not asked.given:
        raise ValueError("given must name at least one file.")
    model = asked.model
    source = to_dict(config)["source"]
    if isinstance(source, str):
        source = {text_condition(model.denoiser.conditioner): source}
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
    model.denoiser.to(device)
    conds = asked.completed(words.get("keep"))
    said = edit_files(
        model,
        conds,
        asked.paths,
        asked.given,
        wanted,
        config.output,
        seed=config.seed,
        batch_size=config.batch_size,
        against=asked.against,
        record={**words, **toward, **carried, **inverse, "strength": config.strength},
    )
    print(f"wrote {len(conds)} to {config.output}: {said}")


if __name__ == "__main__":
    sys.argv[1:] = from_checkpoint("edit", sys.argv[1:])
    run("edit", edit)
