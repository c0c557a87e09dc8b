"""Captions of furniture: a phrase that is true, in varied words, and tells all that is known or only some of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmdiff.captions import choose

NAMES = {
    "chair": ("chair", "seat with a back", "chair with a back"),
    "stool": ("stool", "backless chair", "chair without a back"),
    "table": ("table",),
    "lamp": ("lamp", "lamp with a shade", "standing lamp"),
    "shelf": ("shelf", "bookcase", "set of shelves"),
    "vase": ("vase", "flower vase"),
}
NUMBERS = {3: "three", 4: "four", 6: "six"}
MIDDLE = {"chair": (0.9, 0.49), "stool": (0.57, 0.49), "table": (0.6, 1.0), "lamp": (1.15, 0.4)}
MIDDLE |= {"shelf": (1.2, 0.75), "vase": (0.65, 0.4)}
"""Height and width in the middle of their ranges: above are tall and wide things, below low and narrow ones."""

WHOLE = (
    "a {thing}, {height} cm high and {width} cm wide",
    "a {thing}, {width} cm wide, {height} cm high",
    "{thing}, {height} cm high, {width} cm wide",
)
WHOLE_HELD_OUT = ("{height} cm high and {width} cm wide, a {thing}", "a {thing}: {width} cm wide and {height} cm high")
VAGUE = (
    "a tall-or-low {thing}",
    "a wide-or-narrow {thing}",
    "a tall-or-low and wide-or-narrow {thing}",
    "a {thing}",
    "a {thing}, {height} cm high",
    "a {thing}, {width} cm wide",
)
VAGUE_HELD_OUT = ("{thing}, tall-or-low", "{height} cm high, a {thing}")


def caption(rng: np.random.Generator, cond: Mapping[str, Any], *, split: str | None, complete: bool) -> str:
    """A phrase for conditions by name, height and width in meters; unless ``complete`` it may leave some open."""
    kind = "stool" if cond["back"] == "no" else cond["kind"]
    vague = not complete and rng.random() < 0.4
    wording = choose(rng, *((VAGUE, VAGUE_HELD_OUT) if vague else (WHOLE, WHOLE_HELD_OUT)), split)
    tall, wide = (cond[name] > middle for name, middle in zip(("height", "width"), MIDDLE[kind], strict=True))
    wording = wording.replace("tall-or-low", "tall" if tall else "low")
    wording = wording.replace("wide-or-narrow", "wide" if wide else "narrow")
    thing = NAMES[kind][rng.integers(len(NAMES[kind]))]
    if legs := NUMBERS.get(cond["legs"]):
        forms = (f"{legs}-legged {thing}", f"{thing} on {legs} legs", thing)
        thing = forms[rng.integers(3 if vague else 2)]
    sizes = {name: f"{100 * cond[name]:.0f}" for name in ("height", "width")}
    return wording.format(thing=thing, **sizes)
