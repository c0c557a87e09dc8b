"""Evaluation: metrics of generated media against real ones, written with the protocol that produced them."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torchmetrics import Metric

import mmdiff
from mmdiff.errors import DataError
from mmdiff.folder import Folder
from mmdiff.modality import Modality
from mmdiff.types import MediaSet

Examples = Iterable[tuple[Tensor, Mapping[str, Any]]]


def held_out(config: DictConfig, count: int) -> list[tuple[Tensor, dict[str, Any]]]:
    """Up to ``count`` examples that the run of a configuration kept out of training."""
    data = instantiate(config.data)
    return first(data.held_out, count)


def first(dataset: MediaSet, count: int) -> list[tuple[Tensor, dict[str, Any]]]:
    """The first ``count`` examples of a data set, or all."""
    return [dataset[i] for i in range(min(count, len(dataset)))]


def generated(folder: str | Path, modality: Modality, count: int) -> list[tuple[Tensor, dict[str, Any]]]:
    """Files of a folder; where it has a ``samples.jsonl``, those that it records, with their conditions."""
    files = Folder(folder, modality)
    record = Path(folder) / "samples.jsonl"
    if record.is_file():
        try:
            entries = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
            asked = {entry["file"]: entry["cond"] for entry in entries}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(record, "is not a record that mmdiff sample wrote") from error
        files.files = [path for path in files.files if path.name in asked]  # a preview may look like a sample
        files.conditions = [asked[path.name] for path in files.files]
        if not files.files:
            raise DataError(record, "names no file that is there")
    return first(files, count)


def measure(metrics: Mapping[str, Metric], real: Examples, fake: Examples) -> dict[str, float]:
    """Values of all metrics; a metric that computes several reports them as ``metric.value``."""
    for examples, is_real in ((real, True), (fake, False)):
        for media, cond in examples:
            for metric in metrics.values():
                metric.update(media[None], real=is_real, cond={name: [value] for name, value in cond.items()})
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        result = metric.compute()
        parts = result if isinstance(result, dict) else {"": result}
        values |= {f"{name}.{part}" if part else name: float(value) for part, value in parts.items()}
    return values


def write_report(values: Mapping[str, float], protocol: Mapping[str, Any], folder: Path) -> None:
    """Print the values and write them with their protocol to ``metrics.json``."""
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:{width}}  {value:.4g}")
    report = {
        "metrics": {name: value if math.isfinite(value) else None for name, value in values.items()},
        "protocol": {**protocol, "mmdiff": mmdiff.__version__, "torch": torch.__version__},
    }
    (folder / "metrics.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
