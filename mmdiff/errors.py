"""Bad data and bad numbers, said in words a user can act on."""

from collections.abc import Sequence
from difflib import get_close_matches
from os import PathLike


class DataError(Exception):
    """A file (or folder) that cannot be used, and why.

    Args:
        path: the file.
        reason: what is wrong with it, in words a user can act on.
    """

    def __init__(self, path: str | PathLike[str], reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def allowed(given: str, options: Sequence[str], owner: str) -> str:
    """What ``owner`` takes instead of what was given, the nearest first."""
    close = get_close_matches(given, options, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}{owner} takes {', '.join(options) or 'none'}"


def check_at_least(least: int, **values: object) -> None:
    """Check that values are whole numbers of at least ``least``.

    Raises:
        ValueError: naming the value.
    """
    for name, value in values.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
