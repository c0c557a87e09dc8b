"""Words for the parts of an example: ranges along named axes, joined by ``and``, ``or`` and ``not``."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import and_, or_

from jaxtyping import Bool, Real
from torch import Tensor

Mask = Bool[Tensor, "..."]


def region(words: str, part: Callable[[str], Mask]) -> Mask:
    """What several words mean together; ``or`` binds weakest, ``not`` strongest.

    Args:
        words: for instance ``seconds:0:0.5 and not hertz:200:400``.
        part: the mask of one word; masks broadcast against each other.
    """

    def one(word: str) -> Mask:
        return ~one(word[4:].strip()) if word.startswith("not ") else part(word)

    either = [[one(word.strip()) for word in re.split(r"\sand\s", both)] for both in re.split(r"\sor\s", words)]
    return reduce(or_, [reduce(and_, masks) for masks in either])


def span(word: str, axes: Mapping[str, Real[Tensor, "..."]], *others: str) -> Mask:
    """The elements named by ``AXIS:FROM:TO``, whose coordinate is at least FROM and below TO; either may be left empty.

    Args:
        word: the range.
        axes: coordinates of the elements, by the name of the axis.
        others: words that its modality knows beside ranges, for the message.

    Raises:
        ValueError: for a word that is no range along one of the axes, or one that holds no element.
    """
    axis, least, most = ends(word, axes, *others)
    place = axes[axis]
    inside = (least <= place) & (place < most)
    if not inside.any():
        known = place[~place.isnan()]
        raise ValueError(f"{word!r} holds nothing; {axis} go from {known.min():.4g} to {known.max():.4g}.")
    return inside


def ends(word: str, axes: Iterable[str], *others: str) -> tuple[str, float, float]:
    """Axis, least and most of ``AXIS:FROM:TO``; infinite where nothing is said. See `span`."""
    axis, _, rest = word.partition(":")
    low, colon, high = rest.partition(":")
    try:
        least, most = float(low or "-inf"), float(high or "inf")
    except ValueError:
        colon = ""
    if axis not in axes or not colon:
        words = ", ".join([*others, *(f"{name}:FROM:TO" for name in axes)])
        raise ValueError(f"{word!r} names no part; parts are {words}, joined by and, or, not.")
    return axis, least, most
