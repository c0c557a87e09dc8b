"""Prompts: what a command line or a file asks for in words becomes conditions of the samples."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from mmdiff.checkpoint import Model
from mmdiff.conditioning import Conditioner
from mmdiff.errors import DataError
from mmdiff.text import TextEmbedder

COUNT = 4
"""Samples where neither their number nor a list of prompts is given."""


def text_condition(conditioner: Conditioner) -> str:
    """Name of the condition that prompts are for.

    Raises:
        ValueError: if the model has none that is a text, or several.
    """
    names = [name for name, embedder in conditioner.embedders.items() if isinstance(embedder, TextEmbedder)]
    if len(names) == 1:
        return names[0]
    known = ", ".join(conditioner.embedders) or "none"
    raise ValueError(f"prompt and negative need a model with one condition that is a text; its conditions are {known}.")


def read_prompts(given: Any, key: str) -> list[dict[str, Any]]:
    """What ``prompt`` or ``negative`` (the key) was given, one row for each sample: {key: text} and what a file adds.

    A text that begins with [ or { is a list or a mixture in YAML.

    Raises:
        ValueError: for a list or a mixture that is none.
        DataError: for a file that is missing, empty or not made of such rows.
    """
    if isinstance(given, str) and given[:1] in ("[", "{"):
        try:
            given = yaml.safe_load(given)
        except yaml.YAMLError as error:
            raise ValueError(f"{key} is no list and no mixture: {error}") from error
    if isinstance(given, list):
        return [{key: text} for text in given]
    if not isinstance(given, str) or not given.endswith((".txt", ".jsonl")):
        return [{key: given}]
    path = Path(given)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [json.loads(line) if path.suffix == ".jsonl" else {key: line} for line in lines]
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(path, f"is not valid {path.suffix[1:]} in UTF-8: {error}") from error
    wrong = next((number for number, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
    if wrong or not rows:
        raise DataError(path, f"row {wrong} is not an object {{...}}" if wrong else f"holds no {key}")
    return rows


def told(
    model: Model,
    conds: Sequence[Mapping[str, Any]],
    prompts: Sequence[Mapping[str, Any]],
    negatives: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What `ask` gives for a model; nothing to move away from if nothing is said.

    Raises:
        ValueError: if the model has no condition that is a text, or its guidance no use for a negative prompt.
    """
    if not any(text is not None for row in (*prompts, *negatives) for text in row.values()):
        return [dict(cond) for cond in conds], []
    asked, against = ask(conds, prompts, negatives, text_condition(model.denoiser.conditioner))
    if not any(against):
        return asked, []
    check_negative(model.config.guidance)
    return asked, against


def ask(
    conds: Sequence[Mapping[str, Any]],
    prompts: Sequence[Mapping[str, Any]],
    negatives: Sequence[Mapping[str, Any]],
    name: str,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Conditions of each sample, and those that guidance moves away from.

    Args:
        conds: conditions of each sample.
        prompts: rows used in turn: ``prompt``, ``negative``, and conditions by name.
        negatives: rows used in turn: ``negative``.
        name: of the condition that prompts are for.
    """
    asked, against = [], []
    for i, cond in enumerate(conds):
        row = {**negatives[i % len(negatives)], **prompts[i % len(prompts)]}
        prompt, negative = row.pop("prompt", None), row.pop("negative", None)
        told = {} if prompt is None else {name: prompt}
        asked.append({**cond, **row, **told})
        against.append({} if negative is None else {name: negative})
    return asked, against


def check_negative(guidance: DictConfig) -> None:
    """Check that a guidance looks at what to move away from.

    Raises:
        ValueError: if it does not.
    """
    idle = guidance._target_ in ("mmdiff.guidance.conditional", "mmdiff.autoguidance.Autoguidance")
    if idle or guidance.get("scale") == 1:
        raise ValueError("negative has no effect with this guidance; add guidance=cfg guidance.scale=3.")
