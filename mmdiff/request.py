"""What ``mmdiff sample`` and ``mmdiff edit`` are both asked: a model, conditions, prompts and given files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import Tensor

from mmdiff import prompts
from mmdiff.checkpoint import Model, load, to_dict
from mmdiff.generation import override, spread
from mmdiff.recognition import recognize


class Request(NamedTuple):
    """What is asked of a model.

    Attributes:
        model: with the choices of the command over its own, on the CPU.
        conds: conditions of each sample, as they were told.
        against: those that guidance moves away from; empty if nothing is said.
        paths: of the given files.
        given: what they hold.
        infer: names of the conditions to read off what is given.
    """

    model: Model
    conds: list[dict[str, Any]]
    against: list[dict[str, Any]]
    paths: list[Path]
    given: list[Tensor]
    infer: list[str]

    def completed(self, kept: str | None) -> list[dict[str, Any]]:
        """Conditions with those that the model reads off the kept parts of what is given."""
        return recognize(self.model, self.infer, self.conds, self.given, kept)


def read(config: DictConfig, count: Callable[[int, int], int], *, infers: bool) -> Request:
    """Read the checkpoint, the prompts and the files that a command names.

    Args:
        config: of the command.
        count: of samples where it is left open, for so many prompts and files.
        infers: whether to read what the checkpoint says off given files, unless told what to read.

    Raises:
        ValueError: for a value that the model does not take.
        DataError: for a file that cannot be used.
    """
    asked = to_dict(config)
    rows, negatives = (prompts.read_prompts(asked[word], word) for word in ("prompt", "negative"))
    paths = [Path(path) for path in ([config.given] if isinstance(config.given, str) else config.given or [])]
    samples = count(len(rows), len(paths)) if config.count is None else config.count
    model = override(load(config.checkpoint), config)
    conds, against = prompts.told(model, spread(asked["cond"] or {}, samples), rows, negatives)
    given = [model.modality.read(path) for path in paths]
    infer = model.config.get("infer") if infers and given and config.infer is None else config.infer
    return Request(model, conds, against, paths, given, [infer] if isinstance(infer, str) else list(infer or []))
