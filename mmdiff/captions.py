"""Captions for data sets whose factors are known: which wordings and which combinations of factors training sees.

A data set that writes its own captions takes a ``split``:

- None: every wording and every combination;
- ``train``: all but what the other two hold out;
- ``wordings``: combinations that training draws, told in sentences that it never reads;
- ``combinations``: combinations that training never draws, told in sentences that it reads.
"""

from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "wordings", "combinations")
HELD_OUT = 10
"""One combination in so many is held out."""


def check_split(split: str | None) -> None:
    """Check the name of a split.

    Raises:
        ValueError: if there is none of that name.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)} or null, got {split!r}.")


def belongs(combination: int, split: str | None) -> bool:
    """Whether a combination of factors, by a number of it, is one of the split's."""
    return split is None or (combination % HELD_OUT == 0) == (split == "combinations")


def choose(rng: np.random.Generator, seen: Sequence[str], held_out: Sequence[str], split: str | None) -> str:
    """One of the wordings of the split."""
    allowed = [*seen, *held_out] if split is None else held_out if split == "wordings" else seen
    return allowed[int(rng.integers(len(allowed)))]
