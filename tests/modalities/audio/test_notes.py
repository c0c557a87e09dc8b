"""The notes are a function of seed and index, their labels are true and their instruments differ."""

import itertools

import numpy as np
import pytest
import torch

from mmdiff_audio.notes import INSTRUMENTS, PITCHES, TIMBRES, Notes, exponential, hertz, polynomial, synthesize


@pytest.fixture(scope="module")
def notes():
    return list(Notes(size=300, seed=5))


def play(timbre: str, pitch: int = 60, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return synthesize(rng, INSTRUMENTS[timbre], hertz(pitch), rate=8000, seconds=1.0)


def harmonics(wave: np.ndarray, pitch: int) -> np.ndarray:
    """Amplitudes at the first eight multiples of the pitch, relative to the largest."""
    t = np.arange(len(wave)) / 8000
    amplitude = np.abs(np.exp(-2j * np.pi * hertz(pitch) * np.arange(1, 9)[:, None] * t) @ wave)
    return amplitude / amplitude.max()


def test_a_note_depends_on_seed_and_index_alone(notes):
    again, longer, other = Notes(size=300, seed=5), Notes(size=900, seed=5), Notes(size=300, seed=6)
    for i in (0, 7, 299):
        wave, cond = notes[i]
        assert torch.equal(wave, again[i][0])
        assert torch.equal(wave, longer[i][0])
        assert cond == longer[i][1]
        assert not torch.equal(wave, other[i][0])
    assert torch.equal(notes[-1][0], again[-1][0])


def test_notes_of_a_set_differ(notes):
    assert len({wave.numpy().tobytes() for wave, _ in notes}) == len(notes)


def test_types_and_shape(notes):
    for wave, cond in notes:
        assert wave.dtype == torch.float32
        assert wave.shape == (1, 8000)
        assert type(cond["pitch"]) is float
        assert type(cond["timbre"]) is str


@pytest.mark.parametrize(("rate", "seconds"), [(8000, 0.5), (16000, 1.0), (11025, 0.7)])
def test_length_follows_rate_and_seconds(rate, seconds):
    wave, _ = Notes(rate=rate, seconds=seconds)[3]
    assert wave.shape == (1, round(rate * seconds))
    assert wave.isfinite().all()


def test_every_pitch_and_timbre_occurs_about_equally_often(notes):
    assert {cond["pitch"] for _, cond in notes} == {float(pitch) for pitch in PITCHES}
    for timbre in TIMBRES:
        assert 50 < sum(cond["timbre"] == timbre for _, cond in notes) < 100


def test_two_octaves_from_middle_c():
    assert hertz(69) == 440
    assert hertz(PITCHES[0]) == pytest.approx(261.63, abs=0.01)
    assert hertz(PITCHES[-1]) == pytest.approx(1046.50, abs=0.01)


def test_levels_and_silence_around_the_note(notes):
    peaks = torch.stack([wave.abs().max() for wave, _ in notes])
    assert peaks.max() < 10 ** (-6 / 20) + 1e-3
    assert peaks.min() > 10 ** (-14 / 20) - 1e-3
    onsets = [int((wave[0].abs() > 2e-3).nonzero()[0]) / 8000 for wave, _ in notes]
    assert min(onsets) < 0.01
    assert 0.04 < max(onsets) < 0.07
    last = torch.stack([wave[0, -4:].abs().max() for wave, _ in notes])
    assert last.max() < 0.01


@pytest.mark.parametrize("pitch", [60, 72, 84])
@pytest.mark.parametrize("timbre", TIMBRES)
def test_the_energy_is_at_the_multiples_of_the_pitch_and_below_nyquist(timbre, pitch):
    power = np.abs(np.fft.rfft(play(timbre, pitch) * np.hanning(8000))) ** 2
    distance = np.abs(np.arange(len(power)) / hertz(pitch) % 1 - 0.5)
    assert power[distance > 0.45].sum() > 0.99 * power.sum()
    assert power[3850:].sum() < 1e-5 * power.sum()


def test_each_timbre_has_its_harmonics_and_envelope():
    flute, reed, organ, pluck = (harmonics(play(timbre), 60) for timbre in ("flute", "reed", "organ", "pluck"))
    assert flute[1:].max() < 0.2
    assert max(reed[1::2]) < 0.05
    assert min(reed[::2]) > 0.3
    assert min(organ[[0, 1, 3, 7]]) > 0.3
    assert max(organ[[2, 4, 5, 6]]) < 0.05
    assert all(pluck[:-1] > pluck[1:])
    assert pluck[4] > 0.03


@pytest.mark.parametrize("pitch", [60, 84])
def test_every_two_timbres_differ_at_every_pitch(pitch):
    energy = {timbre: play(timbre, pitch).reshape(20, -1).std(1) for timbre in TIMBRES}
    for a, b in itertools.combinations(TIMBRES, 2):
        tone = np.abs(harmonics(play(a, pitch), pitch) - harmonics(play(b, pitch), pitch)).max()
        shape = np.abs(energy[a] / energy[a].max() - energy[b] / energy[b].max()).max()
        assert max(tone, shape) > 0.2


def test_attack_is_slow_for_flutes_and_the_decay_fast_for_plucks():
    loudness = {timbre: np.sqrt((play(timbre).reshape(100, -1) ** 2).mean(1)) for timbre in TIMBRES}
    rise = {timbre: int(np.argmax(level > 0.7 * level.max())) for timbre, level in loudness.items()}
    assert rise["flute"] > 3 + max(rise["organ"], rise["pluck"], rise["reed"])
    assert loudness["pluck"][90] < 0.15 * loudness["pluck"].max()
    assert all(loudness[timbre][85] > 0.8 * loudness[timbre].max() for timbre in ("flute", "reed", "organ"))


def test_plucked_notes_grow_duller():
    wave = play("pluck")
    assert harmonics(wave[400:2400], 60)[3] > 3 * harmonics(wave[4400:6400], 60)[3]


def test_blocks_of_exponentials_and_horner_agree_with_the_definitions():
    t, exponent = np.arange(1000) / 8000 - 0.03, 2j * np.pi * 440 - 3
    base = exponential(exponent, t)
    np.testing.assert_allclose(base, np.exp(exponent * t), atol=1e-6)
    expected = 2 * np.exp(exponent * t) - 0.5j * np.exp(2 * exponent * t) + np.exp(3 * exponent * t)
    np.testing.assert_allclose(polynomial(np.array([2, -0.5j, 1]), base), expected, atol=1e-5)


def test_index_out_of_range():
    with pytest.raises(IndexError):
        Notes(size=10)[10]
    assert len(Notes(size=10)) == len(list(Notes(size=10))) == 10


@pytest.mark.parametrize("wrong", [{"size": 0}, {"rate": 2000}, {"seconds": 0.1}])
def test_impossible_settings_are_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be at least"):
        Notes(**wrong)
