"""The record of a run: ``metrics.csv``, which is always there, and pictures in those that show them."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread


class Metrics(CSVLogger):
    """``metrics.csv`` in a folder. A run that goes on there keeps the rows of the steps before.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path):
        super().__init__(str(folder), name="", version="")
        self.path = Path(folder) / "metrics.csv"

    def go_on(self, step: int) -> None:
        """Keep what was recorded before a step; to be called before training."""
        rows = [row for row in _rows(self.path) if int(row["step"]) < step]
        self.experiment.metrics.extend(rows)  # Lightning removes the file here
        self.save()


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return [{key: value for key, value in row.items() if value} for row in rows if row.get("step")]


def log_picture(logger: Logger, name: str, path: Path, step: int) -> None:
    """Show the picture in a file in a logger that shows pictures; others get nothing."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, imread(path), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [str(path)], step)
