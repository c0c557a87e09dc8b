"""Captions of notes: instrument and pitch in varied words, some of which leave the pitch open."""

import numpy as np

from mmdiff.captions import choose

NAMES = {
    "flute": ("flute",),
    "reed": ("reed", "clarinet"),
    "organ": ("organ", "pipe organ"),
    "pluck": ("plucked string", "harp"),
}
LETTERS = ("C", "C sharp", "D", "D sharp", "E", "F", "F sharp", "G", "G sharp", "A", "A sharp", "B")
REGISTERS = {"low": range(60, 68), "middle": range(68, 77), "high": range(77, 85)}
"""MIDI note numbers that captions call by a word."""

WHOLE = (
    "a {name} note, {pitch}",
    "{name}, {pitch}",
    "{pitch} on the {name}",
    "the {name} plays {pitch}",
    "a single {register} note, {pitch}, of a {name}",
)
WHOLE_HELD_OUT = ("play {pitch} on a {name}", "{pitch}, a {name}", "a {name} that plays a {register} note: {pitch}")
VAGUE = ("a {register} {name} note", "{name}", "a {name} note", "a {register} note", "{pitch}", "a note, {pitch}")
VAGUE_HELD_OUT = ("the note of a {name}", "a {register} note on a {name}")


def caption(rng: np.random.Generator, pitch: int, timbre: str, *, split: str | None, complete: bool) -> str:
    """A phrase that tells the timbre and the pitch (a MIDI number); or, unless ``complete``, perhaps only a part."""
    vague = rng.random() < 0.4 and not complete
    wording = choose(rng, *((VAGUE, VAGUE_HELD_OUT) if vague else (WHOLE, WHOLE_HELD_OUT)), split)
    register = next(word for word, pitches in REGISTERS.items() if pitch in pitches)
    name = NAMES[timbre][rng.integers(len(NAMES[timbre]))]
    return wording.format(name=name, pitch=_spelled(rng, pitch), register=register).replace("a organ", "an organ")


def _spelled(rng: np.random.Generator, pitch: int) -> str:
    """``A4``, ``A sharp 4`` or ``MIDI 69``."""
    octave, step = divmod(pitch, 12)
    letter = LETTERS[step]
    return (f"{letter.replace(' sharp', '#')}{octave - 1}", f"{letter} {octave - 1}", f"MIDI {pitch}")[rng.integers(3)]
