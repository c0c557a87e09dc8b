"""What is learned from data before training starts becomes configuration.

Scales of a modality, labels of a class embedder and the range of a number are arguments of constructors. Where a
configuration leaves them null they are filled in here, and from then on the configuration describes the model
completely: the saved one needs no data.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, open_dict

from mmdiff.conditioning import Embedder
from mmdiff.data import DataModule

EXAMPLES = 512  # media read to learn a modality's scales


def fit_config(config: DictConfig, data: DataModule) -> None:
    """Fill the null arguments of ``config.modality`` and of the embedders, and give the data the fitted modality.

    Raises:
        ValueError: for an embedder whose condition the data do not have.
    """
    if any(value is None for value in config.modality.values()):
        _fill(config.modality, data.modality.fit(data.media(EXAMPLES)))
    data.modality = instantiate(config.modality)
    conditions = data.conditions
    if config.conditioner.embedders is None:
        with open_dict(config):
            config.conditioner.embedders = infer_embedders(conditions)
    for name, node in config.conditioner.embedders.items():
        if not conditions.get(name):
            known = ", ".join(conditions) or "none"
            raise ValueError(f"conditioner.embedders.{name}: the data have no such condition; they have {known}.")
        if any(value is None for value in node.values()):
            _fill(node, cast(type[Embedder], get_class(node._target_)).fit(conditions[name]))


def adopt(config: DictConfig, saved: DictConfig) -> None:
    """Fill the null arguments with what a saved configuration has learned: a resumed run does not learn anew."""
    _fill(config.modality, saved.modality)
    _fill(config.conditioner, saved.conditioner)
    for name, node in config.conditioner.embedders.items():
        _fill(node, saved.conditioner.embedders.get(name, {}))


def infer_embedders(conditions: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """One embedder per condition: numbers stay numbers, labels become classes, ``text`` is read, .npy files are dense.

    Other free text is left out with a warning.
    """
    embedders = {}
    for name, values in conditions.items():
        if all(isinstance(v, int | float) for v in values):
            embedders[name] = _embedder("conditioning.NumberEmbedder", mean=None, std=None)
        elif all(str(v).endswith(".npy") for v in values):
            embedders[name] = {"_target_": "mmdiff.conditioning.DenseEmbedder", "shape": None}
        elif name == "text":
            embedders[name] = _embedder("text.ByteEmbedder", words=None, numbers=None)
        elif len(set(map(str, values))) <= max(2, len(values) // 2):
            embedders[name] = _embedder("conditioning.ClassEmbedder", classes=None)
        else:
            warnings.warn(
                f"condition {name} is left out: its labels hardly repeat, so they are no classes (name captions text)",
                stacklevel=2,
            )
    return embedders


def _embedder(name: str, **unknown: None) -> dict[str, Any]:
    return {"_target_": f"mmdiff.{name}", "features": "${conditioner.features}", **unknown}


def _fill(node: DictConfig, learned: Mapping[str, Any]) -> None:
    with open_dict(node):
        for key, value in learned.items():
            if node.get(key) is None:
                node[key] = value
