"""Imputation measured: values of made-up tides are hidden, filled by a model, and compared with what they were.

python -m mmdiff_timeseries.imputation runs/.../checkpoints/last.ckpt
"""

import argparse
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from mmdiff.checkpoint import Model, load
from mmdiff.generation import batches
from mmdiff_timeseries.modality import interpolate
from mmdiff_timeseries.tides import Tides

SEED = 1
"""Of the data set: another one than the experiment trains on."""


def hide(series: Float[Tensor, "b c n"], run: int) -> Bool[Tensor, "b c n"]:
    """One run of hidden values in each channel, away from both ends so that lines between neighbors exist."""
    generator = Generator().manual_seed(0)
    start = torch.randint(1, series.shape[-1] - run, series.shape[:2], generator=generator)[..., None]
    place = torch.arange(series.shape[-1])
    return (place >= start) & (place < start + run)


def imputed(model: Model, series: Float[Tensor, "b c n"], hidden: Bool[Tensor, "b c n"], draws: int) -> Tensor:
    """``draws`` completions (draws, b, c, n) of series without their hidden values; no condition is told."""
    given = list(series.masked_fill(hidden, torch.nan))
    made = [
        torch.cat(list(batches(model, [{}] * len(given), seed=i * len(given), batch_size=64, given=given)))
        for i in range(draws)
    ]
    return torch.stack(made)


def rmse(guess: Tensor, series: Tensor, hidden: Tensor) -> float:
    """Root mean square error on the hidden values."""
    return (guess - series)[hidden].square().mean().sqrt().item()


def main(checkpoint: Path, count: int = 128, draws: int = 8) -> None:
    """Print a row for each length of the hidden runs."""
    model = load(checkpoint)
    data = Tides(size=count, length=model.modality.length, seed=SEED, missing=0)
    series = torch.stack([data[i][0] for i in range(count)])
    print(f"| hidden values in a row | straight line | one sample | mean of {draws} samples |\n|---|---|---|---|")
    for run in (4, 8, 16, 32):
        hidden = hide(series, run)
        line = interpolate(series.masked_fill(hidden, torch.nan))
        made = imputed(model, series, hidden, draws)
        values = [rmse(guess, series, hidden) for guess in (line, made[0], made.mean(0))]
        print(f"| {run} | {' | '.join(f'{value:.3f}' for value in values)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Error of imputation beside that of straight lines.")
    parser.add_argument("checkpoint", type=Path, help="of a model of experiment=timeseries/tides")
    main(parser.parse_args().checkpoint)
