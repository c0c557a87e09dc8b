"""Single musical notes, synthesized when asked for: a data set that needs no file and whose labels are exact.

A note is a sum of harmonics of its pitch under an envelope: silence up to the onset, a linear attack, an exponential
decay, and a short release before the end. With t in seconds after the onset and harmonics k below 0.95 Nyquist,

    wave(t) = attack(t) release(t) Re sum_k amplitude_k exp(i phase_k) (exp(-decay t) exp(2 pi i pitch t))^k

which is a polynomial in one complex number per sample. Harmonic k decays k times as fast as the first, so a decaying
note grows duller as it fades, like a string. The pitch, the timbre and a caption are the conditions; level, onset,
attack, decay, end and phases are drawn for each note and are not told.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.utils.data import Dataset

from mmdiff.captions import belongs, check_split
from mmdiff_audio.captions import caption

PITCHES = range(60, 85)
"""MIDI note numbers: two octaves, from C4 (261.6 Hz) to C6 (1046.5 Hz)."""

LEVEL_DB = (-14.0, -6.0)
"""Range of the peak of a note, in dB below full scale."""

LATEST_ONSET, LATEST_GAP, RELEASE = 0.05, 0.03, 0.05
"""Seconds: silence before the attack at most, silence after the release at most, length of the release."""

NOISE = 1e-4
"""Standard deviation of the background noise; full scale is 1."""


class Timbre(NamedTuple):
    """How an instrument sounds: ``amplitudes`` of harmonics 1, 2, ..., ranges of attack (s) and of decay (1/s)."""

    amplitudes: tuple[float, ...]
    attack: tuple[float, float]
    decay: tuple[float, float]


INSTRUMENTS = {
    "flute": Timbre((1.0, 0.12, 0.03), attack=(0.10, 0.16), decay=(0.0, 0.1)),
    "reed": Timbre(tuple(0.8 ** (k // 2) * (k % 2) for k in range(1, 15)), attack=(0.02, 0.04), decay=(0.0, 0.1)),
    "organ": Timbre((1.0, 0.8, 0.0, 0.6, 0.0, 0.0, 0.0, 0.4), attack=(0.003, 0.006), decay=(0.0, 0.1)),
    "pluck": Timbre(tuple(1 / k for k in range(1, 15)), attack=(0.002, 0.004), decay=(3.0, 4.0)),
}
TIMBRES = tuple(INSTRUMENTS)
"""The names of the instruments."""


class Notes(Dataset):
    """``size`` notes of ``seconds`` at ``rate`` samples per second; note i is a function of ``(seed, i)`` alone.

    Args:
        size: how many.
        seed: another one for other notes.
        rate: samples per second.
        seconds: length.
        split: of wordings and of pairs of pitch and timbre (see `mmdiff.captions`).
        complete: captions tell both pitch and timbre; otherwise some leave one of them open.
    """

    def __init__(
        self,
        *,
        size: int = 16384,
        seed: int = 0,
        rate: int = 8000,
        seconds: float = 1.0,
        split: str | None = None,
        complete: bool = False,
    ):
        check_split(split)
        shortest = LATEST_ONSET + LATEST_GAP + RELEASE + max(timbre.attack[1] for timbre in INSTRUMENTS.values())
        slowest = math.ceil(2 * hertz(PITCHES[-1]) / 0.95)
        if rate < slowest:
            raise ValueError(f"rate must be at least {slowest}, for the highest note, got {rate}.")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}.")
        if seconds < shortest:
            raise ValueError(f"seconds must be at least {shortest:.2f}, the longest attack and release, got {seconds}.")
        self.size, self.seed, self.rate, self.seconds = size, seed, rate, seconds
        self.split, self.complete = split, complete

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> tuple[Float[Tensor, "1 n"], dict[str, float | str]]:
        """Note i and its conditions.

        ``pitch`` is a MIDI note number, ``timbre`` a name from ``TIMBRES``, ``text`` a caption.
        """
        rng = np.random.default_rng((self.seed, range(self.size)[i]))
        while True:
            step, kind = int(rng.integers(len(PITCHES))), int(rng.integers(len(TIMBRES)))
            if belongs(step + 6 * kind, self.split):
                break
        pitch, name = PITCHES[step], TIMBRES[kind]
        wave = synthesize(rng, INSTRUMENTS[name], hertz(pitch), rate=self.rate, seconds=self.seconds)
        text = caption(rng, pitch, name, split=self.split, complete=self.complete)
        return torch.from_numpy(wave)[None], {"pitch": float(pitch), "timbre": name, "text": text}


def hertz(pitch: int) -> float:
    """Frequency of a MIDI note number in equal temperament; A4 is number 69 and 440 Hz."""
    return 440.0 * 2 ** ((pitch - 69) / 12)


def synthesize(
    rng: np.random.Generator, timbre: Timbre, frequency: float, *, rate: int, seconds: float
) -> Float[np.ndarray, "n"]:
    """Draw one note of ``frequency`` Hz, with everything but its pitch and timbre taken from ``rng``."""
    t = np.arange(round(rate * seconds)) / rate - rng.uniform(0, LATEST_ONSET)
    end = t[-1] - rng.uniform(0, LATEST_GAP)
    envelope = np.minimum(t / rng.uniform(*timbre.attack), (end - t) / RELEASE).clip(0, 1)
    amplitudes = timbre.amplitudes[: int(0.95 * rate / 2 / frequency)]
    partials = amplitudes * np.exp(1j * rng.uniform(0, 2 * np.pi, len(amplitudes)))
    base = exponential(2j * np.pi * frequency - rng.uniform(*timbre.decay), t)
    note = polynomial(partials, base).real * envelope.astype(np.float32)
    peak = 10 ** (rng.uniform(*LEVEL_DB) / 20)
    return note * np.float32(peak / np.abs(note).max()) + rng.standard_normal(len(t), np.float32) * np.float32(NOISE)


def exponential(exponent: complex, t: Float[np.ndarray, "n"]) -> Complex[np.ndarray, "n"]:
    """``exp(exponent * t)`` for evenly spaced ``t``, in blocks of 64: eight times as fast as ``np.exp``."""
    blocks = np.exp(exponent * t[::64, None]) * np.exp(exponent * (t[:64] - t[0]))
    return blocks.ravel()[: len(t)].astype(np.complex64)


def polynomial(coefficients: Complex[np.ndarray, "k"], x: Complex[np.ndarray, "n"]) -> Complex[np.ndarray, "n"]:
    """``sum_k coefficients[k - 1] * x**k`` for k from 1, by Horner's rule."""
    total = np.zeros_like(x)
    for coefficient in coefficients[::-1].astype(x.dtype):
        total += coefficient
        total *= x
    return total
