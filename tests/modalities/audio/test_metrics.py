"""The judge is right where the truth is known: on waves made here, on real notes, and on notes that were damaged."""

import math

import numpy as np
import pytest
import torch
from scipy import signal
from torchaudio.functional import griffinlim, melscale_fbanks

from mmdiff_audio.metrics import NoteAccuracy, describe_note, detect_pitch, harmonic_levels, log_band_statistics
from mmdiff_audio.notes import TIMBRES, Notes

RATE = 8000
TIME = np.arange(RATE) / RATE


def collate(size: int, seed: int) -> tuple[torch.Tensor, dict[str, list]]:
    waves, conds = zip(*Notes(size=size, seed=seed), strict=True)
    return torch.stack(waves), {key: [cond[key] for cond in conds] for key in ("pitch", "timbre")}


@pytest.fixture(scope="module")
def held_out():
    return collate(300, seed=1)


@pytest.fixture(scope="module")
def judge():
    metric = NoteAccuracy(RATE)
    media, cond = collate(200, seed=0)
    metric.update(media, real=True, cond=cond)
    return metric


@pytest.fixture
def score(judge):
    """The shares of one set of notes, by the judge that has heard 200 real ones."""

    def shares(media: torch.Tensor, cond: dict[str, list]) -> dict[str, float]:
        metric = judge.clone()
        metric.update(media, real=False, cond=cond)
        return {name: share.item() for name, share in metric.compute().items()}

    return shares


def mel_and_back(wave: torch.Tensor, error_db: float, n_fft: int = 1024, hop: int = 256) -> torch.Tensor:
    """Log-mel spectrogram with 80 bands and random errors, least squares, 64 iterations of fast Griffin-Lim."""
    generator, window = torch.Generator().manual_seed(0), torch.hann_window(n_fft)
    filters = melscale_fbanks(n_fft // 2 + 1, 0.0, RATE / 2, 80, RATE, norm="slaney", mel_scale="slaney").T
    mel = (filters @ torch.stft(wave, n_fft, hop, window=window, return_complex=True).abs()).clamp(min=1e-5)
    mel = mel * 10 ** (error_db / 20 * torch.randn(mel.shape, generator=generator))
    magnitude = (torch.linalg.pinv(filters) @ mel).clamp(min=1e-8)
    for _ in range(30):
        magnitude = magnitude * (filters.T @ mel) / (filters.T @ (filters @ magnitude)).clamp(min=1e-8)
    return griffinlim(magnitude, window, n_fft, hop, n_fft, 1.0, 64, 0.99, wave.shape[-1], rand_init=True)


def cents(found: float, true: float) -> float:
    return abs(1200 * math.log2(found / true))


WAVES = {
    "sine": lambda f: np.sin(2 * np.pi * f * TIME),
    "odd": lambda f: sum(np.sin(2 * np.pi * k * f * TIME) / k for k in range(1, 15, 2) if k * f < 3900),
    "octaves": lambda f: sum(np.sin(2 * np.pi * k * f * TIME + k) for k in (1, 2, 4, 8) if k * f < 3900),
    "sawtooth": lambda f: signal.resample_poly(
        signal.sawtooth(2 * np.pi * f * np.arange(16 * RATE) / (16 * RATE)), 1, 16
    ),
    "second strongest": lambda f: np.sin(2 * np.pi * f * TIME) + 2 * np.sin(4 * np.pi * f * TIME + 1),
    "fading": lambda f: np.sin(2 * np.pi * f * TIME) * np.exp(-8 * TIME),
}


@pytest.mark.parametrize("amplitude", [1e-3, 0.9])
@pytest.mark.parametrize("wave", WAVES)
@pytest.mark.parametrize("frequency", [150.0, 261.63, 440.0, 733.3, 1046.5, 1300.0])
def test_pitch_of_waves_made_here(wave, frequency, amplitude):
    assert cents(detect_pitch(amplitude * WAVES[wave](frequency), RATE), frequency) < 15


@pytest.mark.parametrize("rate", [16000, 44100])
def test_pitch_at_other_rates(rate):
    assert cents(detect_pitch(signal.sawtooth(2 * np.pi * 523.25 * np.arange(rate) / rate), rate), 523.25) < 5


@pytest.mark.parametrize("scale", [0.0, 1e-4, 0.5, math.nan])
def test_silence_and_noise_have_no_pitch(scale):
    noise = scale * np.random.default_rng(0).normal(size=RATE)
    assert math.isnan(detect_pitch(noise, RATE))
    assert np.isnan(describe_note(noise, RATE)).all()


def test_a_wave_too_short_for_a_frame_is_named():
    with pytest.raises(ValueError, match="at least 579 samples, got 400"):
        detect_pitch(np.sin(TIME[:400]), RATE)


def test_levels_of_harmonics_in_bels_below_the_strongest():
    wave = sum(a * np.sin(2 * np.pi * k * 700 * TIME + k) for k, a in {1: 0.1, 2: 1, 3: 0.316, 4: 1e-3}.items())
    np.testing.assert_allclose(harmonic_levels(wave, RATE, 702.0)[:5], [-2, 0, -1, -3, -3], atol=0.01)
    assert np.isnan(harmonic_levels(wave, RATE, 702.0)[5:]).all()


def test_held_out_notes(score, held_out):
    shares = score(*held_out)
    assert shares["pitch"] >= 0.99
    assert shares["timbre"] >= 0.97
    assert shares["both"] >= 0.97


def test_notes_in_noise(score, held_out):
    media, cond = held_out[0][:150], {key: values[:150] for key, values in held_out[1].items()}
    level = media.square().mean((1, 2), keepdim=True).sqrt() * 10 ** (-20 / 20)
    shares = score(media + level * torch.randn(media.shape, generator=torch.Generator().manual_seed(0)), cond)
    assert shares["pitch"] >= 0.95
    assert shares["timbre"] >= 0.9


@pytest.mark.parametrize("error_db", [0.0, 2.0])
def test_notes_through_a_mel_spectrogram(score, error_db):
    """The ceiling of a model of log-mel spectrograms, and the same with errors in every cell."""
    media, cond = collate(40, seed=2)
    torch.manual_seed(0)
    shares = score(mel_and_back(media[:, 0], error_db)[:, None], cond)
    assert shares["pitch"] >= 0.95
    assert shares["timbre"] >= 0.95


def test_shuffled_labels_score_like_chance(score, held_out):
    media, cond = held_out[0][:150], {key: values[:150] for key, values in held_out[1].items()}
    order = np.random.default_rng(0).permutation(len(media))
    shares = score(media, {key: [values[i] for i in order] for key, values in cond.items()})
    assert shares["pitch"] < 0.15
    assert 0.1 < shares["timbre"] < 0.4
    assert shares["both"] < 0.1


def test_detuned_notes_fail_the_pitch_but_not_the_timbre(score):
    media, cond = collate(100, seed=3)
    sharp = torch.from_numpy(signal.resample(media.numpy(), round(RATE * 2 ** (-80 / 1200)), axis=-1))
    shares = score(sharp, cond)
    assert shares["pitch"] < 0.05
    assert shares["timbre"] > 0.9
    assert shares["both"] < 0.05


def test_tolerance_in_cents():
    media = torch.from_numpy(WAVES["sine"](440 * 2 ** (30 / 1200))).float()[None, None]
    for tolerance, right in ((20.0, 0.0), (40.0, 1.0)):
        metric = NoteAccuracy(RATE, cents=tolerance)
        metric.update(media, real=False, cond={"pitch": [69.0]})
        assert metric.compute()["pitch"] == right


def test_conditions_that_are_none_are_not_counted(score, held_out):
    media, cond = held_out[0][:4], {key: values[:4] for key, values in held_out[1].items()}
    wrong = next(timbre for timbre in TIMBRES if timbre != cond["timbre"][1])
    pitches, timbres = [cond["pitch"][0], 20.0, None, None], [cond["timbre"][0], wrong, cond["timbre"][2], None]
    assert score(media, {"pitch": pitches, "timbre": timbres}) == {
        "pitch": 0.5,
        "timbre": pytest.approx(2 / 3),
        "both": 0.5,
    }
    nothing = score(media, {"pitch": [None] * 4, "timbre": [None] * 4})
    assert all(math.isnan(share) for share in nothing.values())
    only_pitch = score(media, {"pitch": cond["pitch"]})
    assert only_pitch["pitch"] == 1
    assert math.isnan(only_pitch["timbre"])


def test_updates_add_up_and_reset_forgets(judge, held_out):
    media, cond = held_out[0][:6], {key: values[:6] for key, values in held_out[1].items()}
    metric = judge.clone()
    metric.update(media[:3], real=False, cond={key: values[:3] for key, values in cond.items()})
    metric.update(media[3:], real=False, cond={"pitch": [20.0] * 3, "timbre": cond["timbre"][3:]})
    assert metric.compute() == {"pitch": 0.5, "timbre": 1, "both": 0.5}
    metric.reset()
    metric.update(media, real=False, cond=cond)
    shares = metric.compute()
    assert shares["pitch"] == 1
    assert math.isnan(shares["timbre"])
    assert math.isnan(shares["both"])
    metric.reset()
    metric.update(media, real=True, cond=cond)
    assert all(share.isnan() for share in metric.compute().values())


def test_real_notes_without_timbre_or_pitch_teach_nothing(held_out):
    media, cond = held_out[0][:2], {key: values[:2] for key, values in held_out[1].items()}
    metric = NoteAccuracy(RATE)
    metric.update(media, real=True, cond={"pitch": cond["pitch"], "timbre": [None, None]})
    metric.update(torch.zeros_like(media), real=True, cond=cond)
    metric.update(media, real=False, cond=cond)
    assert metric.compute()["timbre"].isnan()


def test_silence_is_wrong_in_every_respect(score):
    assert score(torch.zeros(1, 1, RATE), {"pitch": [60.0], "timbre": ["organ"]}) == dict.fromkeys(
        ("pitch", "timbre", "both"), 0.0
    )


@pytest.mark.parametrize("channels", [1, 2])
def test_log_band_statistics_name_the_band(channels):
    wave = torch.from_numpy(WAVES["sine"](1000.0)).float().expand(3, channels, -1)
    features = log_band_statistics(wave, RATE)
    assert features.shape == (3, 64 * channels)
    assert features[0, :32].argmax() == round(31 * math.log(1000 / 50) / math.log(4000 / 50))
    assert features[0, :32].amax() == pytest.approx(0, abs=1)


def test_log_band_statistics_tell_steady_from_fading_and_a_rate_from_another():
    steady, fading = (torch.from_numpy(WAVES[name](440.0)).float()[None, None] for name in ("sine", "fading"))
    band = log_band_statistics(steady, RATE)[0, :32].argmax()
    deviation = [log_band_statistics(wave, RATE)[0, 32 + band] for wave in (steady, fading)]
    assert deviation[1] > 3 * deviation[0]
    assert log_band_statistics(steady, 2 * RATE)[0, :32].argmax() != band


def test_log_band_statistics_of_silence_are_the_floor():
    features = log_band_statistics(torch.zeros(1, 1, RATE), RATE)
    assert torch.equal(features, torch.cat([torch.full((1, 32), -6.0), torch.zeros(1, 32)], 1))
