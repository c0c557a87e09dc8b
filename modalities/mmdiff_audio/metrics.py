"""Judges of generated sound that need no trained weights.

``NoteAccuracy`` asks whether a single note has the pitch and the timbre that were asked for: YIN finds the pitch, and a
nearest centroid, fitted on real notes, names the timbre from the levels of the harmonics and the shape of the envelope.
``log_band_statistics`` describes any clip by a vector, for a distance between two sets of clips.
None of it shares code with the data sets or with the representations it judges.

Shapes: ``b`` clips, ``c`` channels, ``n`` samples, ``f`` features; waves are amplitudes and full scale is 1.
"""

import math
import zlib

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.lib.stride_tricks import sliding_window_view
from scipy import signal
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

HARMONICS = 8
FLOOR = -3.0
"""Bels (10 dB). Levels below this are noise or artefacts of a vocoder, and count as absence."""

UNKNOWN = -1
"""The code of a timbre that was not given, or of a note that has none."""


def detect_pitch(wave: Float[np.ndarray, "n"], rate: int, low: float = 120.0, high: float = 2000.0) -> float:
    """Pitch in Hz of the loudest eight frames of ``wave``: their median; nan if most of them have no period.

    YIN (de Cheveigné and Kawahara, "YIN, a fundamental frequency estimator for speech and music", 2002), on the wave
    at four times its rate: at 8 kHz the period of a high note is a few samples, too few for a parabola.
    """
    peak = np.abs(wave).max()
    if not 0 < peak < math.inf:
        return math.nan
    fine = signal.resample_poly(wave.astype(np.float64) / peak, 4, 1)
    longest, window = math.ceil(4 * rate / low) + 1, round(4 * rate * 0.064)
    if len(fine) < window + longest:
        raise ValueError(f"A wave must have at least {math.ceil((window + longest) / 4)} samples, got {len(wave)}.")
    frames = sliding_window_view(fine, window + longest)[:: window // 2]
    loudest = frames[np.argsort((frames**2).sum(1))[-8:]]
    periods = [shortest_period(row, round(4 * rate / high)) for row in normalized_difference(loudest, window)]
    found = [period for period in periods if not math.isnan(period)]
    return 4 * rate / float(np.median(found)) if 2 * len(found) >= len(periods) else math.nan


def normalized_difference(frames: Float[np.ndarray, "m w"], window: int) -> Float[np.ndarray, "m lags"]:
    """Equation 8 of YIN: the squared difference with the frame ``lag`` samples later, over its mean at shorter lags."""
    lags = frames.shape[1] - window + 1
    start, whole = np.fft.rfft(frames[:, :window], frames.shape[1]), np.fft.rfft(frames)
    correlation = np.fft.irfft(start.conj() * whole, frames.shape[1])
    total = np.pad(np.cumsum(frames**2, axis=1), ((0, 0), (1, 0)))
    energy = total[:, window:] - total[:, :lags]
    difference = (energy[:, :1] + energy - 2 * correlation[:, :lags]).clip(0)
    difference[:, 0] = 0
    mean = np.cumsum(difference, axis=1)[:, 1:] / np.arange(1, lags)
    return np.pad(difference[:, 1:] / np.maximum(mean, 1e-12), ((0, 0), (1, 0)), constant_values=1.0)


def shortest_period(difference: Float[np.ndarray, "lags"], shortest: int, aperiodic: float = 0.5) -> float:
    """The first dip, from lag ``shortest``, that is nearly as deep as the deepest; nan if that is above ``aperiodic``.

    YIN takes the first dip below 0.1. Noise can lift the first above it but not a multiple of it, an octave error, so
    here a dip 0.1 above the deepest will do too.
    """
    before, here, after = difference[shortest - 1 : -2], difference[shortest:-1], difference[shortest + 1 :]
    dips = np.flatnonzero((here < before) & (here <= after))
    if not len(dips) or here[dips].min() > aperiodic:
        return math.nan
    first = dips[here[dips] <= here[dips].min() + 0.1][0]
    a, b, c = before[first], here[first], after[first]
    return float(shortest + first + 0.5 * (a - c) / (a - 2 * b + c))


def describe_note(wave: Float[np.ndarray, "n"], rate: int) -> Float[np.ndarray, "f"]:
    """Pitch as a fractional MIDI number, levels of the harmonics, shape of the envelope; all nan without a pitch."""
    pitch = detect_pitch(wave, rate)
    if math.isnan(pitch):
        return np.full(1 + HARMONICS + 2, math.nan)
    midi = 69 + 12 * math.log2(pitch / 440)
    return np.concatenate([[midi], harmonic_levels(wave, rate, pitch), envelope_shape(wave, rate)])


def harmonic_levels(wave: Float[np.ndarray, "n"], rate: int, pitch: float) -> Float[np.ndarray, "f"]:
    """Energy within a quarter of ``pitch`` of each harmonic, in bels below the strongest; nan where Nyquist is near."""
    power = np.abs(np.fft.rfft(wave.astype(np.float64))) ** 2
    total = np.pad(np.cumsum(power), (1, 0))
    k = np.arange(1, HARMONICS + 1)
    edges = np.rint((k[:, None] + [-0.25, 0.25]) * pitch * len(wave) / rate).astype(int).clip(0, len(power))
    energy = total[edges[:, 1]] - total[edges[:, 0]]
    level = np.log10(np.maximum(energy / energy.max(), 10**FLOOR))
    return np.where(k * pitch < 0.9 * rate / 2, level, math.nan)


def envelope_shape(wave: Float[np.ndarray, "n"], rate: int) -> Float[np.ndarray, "2"]:
    """Attack (log4 of 10 ms steps) and energy of the second half of the sound over that of the first (bels)."""
    hop = round(0.01 * rate)
    power = (sliding_window_view(wave.astype(np.float64), 2 * hop)[::hop] ** 2).mean(1)
    start, top = np.argmax(power > power.max() / 16), np.argmax(power > power.max() / 1.6)
    early, late = (half.sum() for half in np.array_split(power[start:], 2))
    return np.array([math.log(top - start + 1, 4), math.log10(late / early + 10**FLOOR)])


def nearest_class(
    rows: Float[Tensor, "b f"], examples: Float[Tensor, "m f"], labels: Int[Tensor, "m"]
) -> Int[Tensor, "b"]:
    """The label whose mean over ``examples`` is nearest to each row, or ``UNKNOWN`` for a row of nan alone.

    The features are in comparable units; one that cannot be measured, a nan, takes no part in the distance.
    """
    classes = labels.unique()
    centers = torch.stack([examples[labels == label].nanmean(0) for label in classes])
    distance = (rows[:, None] - centers).square().nanmean(2).nan_to_num(math.inf)
    return classes[distance.argmin(1)].where(~rows.isnan().all(1), UNKNOWN)


class NoteAccuracy(Metric):
    """Shares of generated notes with the pitch, the timbre and both that were asked for.

    Real notes with their conditions are what the timbres are learned from; generated notes are judged against theirs.
    A condition that is ``None`` or missing is not counted, and a share of nothing is nan.

    Args:
        rate: samples per second.
        cents: how far off a right pitch may be, in hundredths of a semitone.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, rate: int = 8000, cents: float = 50.0):
        super().__init__()
        self.rate, self.cents = rate, cents
        for state in ("real_notes", "real_timbres", "fake_notes", "fake_timbres", "fake_pitches"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, media: Float[Tensor, "b 1 n"], *, real: bool, cond: dict[str, list]) -> None:
        """Add notes with their conditions ``pitch`` (MIDI number) and ``timbre`` (name)."""
        unknown = [None] * len(media)
        waves = media[:, 0].detach().float().cpu().numpy()
        rows = [describe_note(wave, self.rate) for wave in waves]
        notes = torch.tensor(np.stack(rows), dtype=torch.float32, device=media.device)
        timbres = torch.tensor([timbre_code(name) for name in cond.get("timbre", unknown)], device=media.device)
        if not real:
            pitches = [math.nan if pitch is None else float(pitch) for pitch in cond.get("pitch", unknown)]
            self.fake_notes.append(notes)
            self.fake_timbres.append(timbres)
            self.fake_pitches.append(torch.tensor(pitches, device=media.device))
        elif (usable := (timbres != UNKNOWN) & ~notes[:, 0].isnan()).any():
            self.real_notes.append(notes[usable])
            self.real_timbres.append(timbres[usable])

    def compute(self) -> dict[str, Tensor]:
        """Shares ``pitch``, ``timbre`` and ``both``, each between 0 and 1."""
        if not len(self.fake_notes):
            return {name: torch.tensor(math.nan, device=self.device) for name in ("pitch", "timbre", "both")}
        notes, timbres, pitches = map(dim_zero_cat, (self.fake_notes, self.fake_timbres, self.fake_pitches))
        asked_pitch, right_pitch = ~pitches.isnan(), (notes[:, 0] - pitches).abs() <= self.cents / 100
        asked_timbre = right_timbre = torch.zeros_like(right_pitch)
        if len(self.real_notes):
            examples, labels = dim_zero_cat(self.real_notes), dim_zero_cat(self.real_timbres)
            asked_timbre = timbres != UNKNOWN
            right_timbre = nearest_class(notes[:, 1:], examples[:, 1:], labels) == timbres
        return {
            "pitch": right_pitch[asked_pitch].float().mean(),
            "timbre": right_timbre[asked_timbre].float().mean(),
            "both": (right_pitch & right_timbre)[asked_pitch & asked_timbre].float().mean(),
        }


def timbre_code(name: str | None) -> int:
    """A number that is the same in every process: the CRC-32 of the name."""
    return UNKNOWN if name is None else zlib.crc32(name.encode())


def log_band_statistics(media: Float[Tensor, "b c n"], rate: int, bands: int = 32) -> Float[Tensor, "b f"]:
    """Mean and deviation over time of the log10 power in bands from 50 Hz to Nyquist; f = 2 c ``bands``.

    Frames last about 128 ms. The band centers are evenly spaced in log frequency, and each band is a triangle that
    ends at the neighboring centers; zero padding of the frames leaves no band empty. Power below -60 dB counts as that.
    """
    size = 2 ** round(math.log2(0.128 * rate))
    window = torch.hann_window(size, device=media.device)
    spectrum = torch.stft(
        media.flatten(0, 1).float(), 4 * size, size // 2, size, window, pad_mode="constant", return_complex=True
    )
    frequency = torch.linspace(0, rate / 2, 2 * size + 1, device=media.device)
    position = (bands - 1) * (frequency / 50).log() / math.log(rate / 2 / 50)
    weight = (1 - (position[:, None] - torch.arange(bands, device=media.device)).abs()).clamp(min=0)
    power = torch.einsum("bft,fk->btk", (2 * spectrum / window.sum()).abs().square(), weight)
    level = power.clamp(min=1e-6).log10()
    statistics = torch.cat([level.mean(1), level.std(1, correction=0)], 1)
    return statistics.reshape(len(media), -1)
