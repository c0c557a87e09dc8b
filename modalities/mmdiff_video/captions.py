"""Captions of moving shapes: kind, color, direction and speed in varied words, some of which leave a part open."""

import numpy as np

from mmdiff.captions import choose

ADVERBS = {"slow": ("slowly", "at low speed"), "fast": ("fast", "quickly", "at high speed")}
CORNERS = {"up": "upper", "down": "lower"}

WHOLE = (
    "a {color} {kind} moves {where}, {adverb}",
    "a {color} {kind} moving {where} {adverb}",
    "{color} {kind}, {adverb}, {where}",
    "a {kind} that is {color} moves {adverb} and {where}",
)
WHOLE_HELD_OUT = (
    "{adverb} a {color} {kind} moves {where}",
    "a {kind}, {color}, {where}, {adverb}",
    "moving {where} {adverb}: a {color} {kind}",
)
VAGUE = ("a {color} {kind}", "a {kind} moves {where}", "a {kind} moving {adverb}", "a {color} {kind} moves {where}")
VAGUE_HELD_OUT = ("{where} moves a {kind}", "{color} {kind}")


def caption(
    rng: np.random.Generator,
    *,
    kind: str,
    color: str,
    direction: str,
    speed: str,
    split: str | None = None,
    complete: bool = True,
) -> str:
    """A phrase that says all four; or, unless ``complete``, perhaps only some."""
    vague = not complete and rng.random() < 0.3
    wording = choose(rng, *((VAGUE, VAGUE_HELD_OUT) if vague else (WHOLE, WHOLE_HELD_OUT)), split)
    adverb = ADVERBS[speed][rng.integers(len(ADVERBS[speed]))]
    return wording.format(color=color, kind=kind, where=_where(rng, direction), adverb=adverb)


def _where(rng: np.random.Generator, direction: str) -> str:
    vertical, _, side = direction.rpartition("-")
    if vertical:
        words = (
            f"{vertical} and to the {side}",
            f"towards the {CORNERS[vertical]} {side}",
            f"diagonally {vertical}-{side}",
        )
    elif side in ("left", "right"):
        words = (f"to the {side}", f"{side}wards", f"from {'right' if side == 'left' else 'left'} to {side}")
    else:
        words = (side, f"{side}wards", f"straight {side}")
    return words[rng.integers(len(words))]
