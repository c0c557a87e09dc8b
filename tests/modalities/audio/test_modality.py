"""Sound as the core sees it: files to model space and back."""

import shutil
import subprocess

import pytest
import soundfile
import torch

from mmdiff import DataError
from mmdiff_audio.modality import Audio
from mmdiff_audio.representations import STFT, LogMel

RATE = 16000


def si_sdr(estimate: torch.Tensor, reference: torch.Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB: Le Roux et al. 2019."""
    estimate, reference = estimate.double().flatten(), reference.double().flatten()
    target = (estimate @ reference) / (reference @ reference) * reference
    return (10 * ((target @ target) / (estimate - target).square().sum()).log10()).item()


def log_spectral_distance(estimate: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean square difference of the log power spectra, in dB, down to 60 dB below the loudest bin."""

    def decibels(wave: torch.Tensor) -> torch.Tensor:
        return (
            20 * torch.stft(wave.flatten(), 512, 128, window=torch.hann_window(512), return_complex=True).abs().log10()
        )

    a, b = decibels(estimate), decibels(reference)
    floor = b.max() - 60
    return (a.clamp(min=floor) - b.clamp(min=floor)).square().mean().sqrt().item()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Two seconds of synthetic speech in mono and stereo."""
    missing = [tool for tool in ("espeak-ng", "sox") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} to make speech")
    folder = tmp_path_factory.mktemp("speech")
    text = "The quick brown fox jumps over the lazy dog, and then it walks all the way back home again."
    for command in (
        ["espeak-ng", "-w", "raw.wav", text],
        ["sox", "raw.wav", "-r", str(RATE), "-b", "16", "1.wav", "trim", "0.2", "2", "gain", "-n", "-3"],
        ["sox", "1.wav", "2.wav", "remix", "1", "1v0.5", "delay", "0", "0.01", "trim", "0", "2"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def noise(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for channels in (1, 2):
        wave = 0.1 * torch.randn(2 * RATE, channels, generator=generator)
        soundfile.write(tmp_path / f"{channels}.wav", wave.numpy(), RATE)
    return tmp_path


def fitted(modality: Audio, *media: torch.Tensor) -> Audio:
    settings = {"rate": modality.rate, "channels": modality.channels, "seconds": modality.seconds}
    return Audio(modality.representation, **settings, **modality.fit(media))


# Files to model space and back


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("source", ["speech", "noise"])
def test_stft_round_trip(source, channels, request, tmp_path):
    folder = request.getfixturevalue(source)
    modality = Audio(rate=RATE, channels=channels, seconds=2.0)
    wave = modality.read(folder / f"{channels}.wav")
    assert wave.shape == (channels, 2 * RATE)
    modality = fitted(modality, wave)
    x = modality.encode(wave)
    assert x.shape == modality.shape
    assert x.std().item() == pytest.approx(1, abs=0.1)
    back = modality.decode(x)
    ratio = si_sdr(back, wave)
    modality.write(back, tmp_path / "back.wav")
    written = si_sdr(modality.read(tmp_path / "back.wav"), wave)
    print(f"{source}, {channels} channels: SI-SDR {ratio:.1f} dB, after writing 16 bits {written:.1f} dB")
    assert min(ratio, written) >= 60


@pytest.mark.parametrize(("source", "bound"), [("speech", 12.0), ("noise", 12.0)])
def test_log_mel_round_trip(source, bound, request):
    """Phase is lost, so the wave is another one; what the representation itself costs is in the spectrum."""
    wave = Audio(rate=RATE, seconds=2.0).read(request.getfixturevalue(source) / "1.wav")
    modality = fitted(Audio(LogMel(rate=RATE), rate=RATE, seconds=2.0), wave)
    x = modality.encode(wave)
    assert x.shape == modality.shape
    back = modality.decode(x)
    distance = log_spectral_distance(back, wave)
    again = (modality.encode(back) - x).square().mean().sqrt().item()
    print(
        f"{source}: SI-SDR {si_sdr(back, wave):.1f} dB, spectral distance {distance:.1f} dB, log-mel error {again:.2f}"
    )
    assert distance < bound
    assert again < 0.5
    assert torch.equal(modality.decode(x), back)


@pytest.mark.parametrize("representation", [STFT(), LogMel(rate=RATE, iterations=4)])
def test_batch_dimensions_pass_through(representation):
    modality = Audio(representation, rate=RATE, channels=2, seconds=0.3)
    wave = 0.1 * torch.randn(2, 3, 2, modality.length)
    x = modality.encode(wave)
    assert x.shape == (2, 3, *modality.shape)
    torch.testing.assert_close(x[1, 2], modality.encode(wave[1, 2]))
    back = modality.decode(x)
    assert back.shape == wave.shape
    torch.testing.assert_close(back[1, 2], modality.decode(x[1, 2]), rtol=1e-3, atol=1e-4)
    assert torch.equal(modality.decode(x), back)


def test_normalization_is_near_one_in_every_bin():
    generator = torch.Generator().manual_seed(0)
    waves = [0.05 * torch.randn(1, RATE, generator=generator).cumsum(1).diff(dim=1, n=1, prepend=torch.zeros(1, 1))] * 4
    for representation in (STFT(), LogMel(rate=RATE)):
        modality = fitted(Audio(representation, rate=RATE, seconds=1.0), *waves)
        x = modality.encode(torch.stack(waves))
        assert x.mean().item() == pytest.approx(0, abs=0.05)
        std = x.std(dim=(0, 1, 3))
        assert std.min() > 0.8
        assert std.max() < 1.2


def test_silence_stays_finite():
    for representation in (STFT(), LogMel(rate=RATE, iterations=4)):
        modality = Audio(representation, rate=RATE, seconds=0.3)
        silence = torch.zeros(1, modality.length)
        modality = fitted(modality, silence, silence)
        assert modality.encode(silence).isfinite().all()
        assert modality.decode(modality.encode(silence)).isfinite().all()
        assert modality.preview(silence).dtype == torch.uint8


# Clips


def test_clips_shorter_than_the_model(tmp_path):
    modality = Audio(rate=RATE, seconds=1.0)
    wave = 0.1 * torch.randn(1, RATE // 2)
    soundfile.write(tmp_path / "short.wav", wave[0].numpy(), RATE)
    media = modality.read(tmp_path / "short.wav", torch.Generator())
    assert media.shape == (1, RATE // 2)
    x, mask = modality.encode(media), modality.mask(media)
    assert x.shape == mask.shape == modality.shape
    centers = torch.arange(modality.shape[-1]) * modality.representation.hop
    assert torch.equal(mask[0, 0], centers < RATE // 2)
    assert (mask == mask[:1, :1]).all()
    assert modality.mask(torch.zeros(1, RATE)) is None
    assert si_sdr(modality.decode(x)[:, : RATE // 2], media) > 60
    assert modality.decode(x)[:, RATE // 2 + 512 :].abs().max() < 1e-4


def test_random_clips(tmp_path):
    """The place is the generator's; without one it is the beginning."""
    ramp = torch.linspace(0, 0.9, 4 * RATE)
    soundfile.write(tmp_path / "ramp.wav", ramp.numpy(), RATE, subtype="FLOAT")
    modality = Audio(rate=RATE, seconds=0.5)
    first = modality.read(tmp_path / "ramp.wav")
    torch.testing.assert_close(first[0], ramp[: RATE // 2])
    generator = torch.Generator().manual_seed(0)
    clips = [modality.read(tmp_path / "ramp.wav", generator) for _ in range(40)]
    starts = torch.tensor([clip[0, 0].item() / 0.9 * 4 for clip in clips])
    assert all(clip.shape == (1, RATE // 2) for clip in clips)
    assert starts.min() < 0.7
    assert starts.max() > 2.8
    assert starts.max() <= 3.5
    again = modality.read(tmp_path / "ramp.wav", torch.Generator().manual_seed(0))
    assert torch.equal(again, clips[0])


def test_bad_files(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no sound at all")
    for name in ("empty.wav", "text.wav", "nowhere.wav"):
        with pytest.raises(DataError, match=name):
            Audio().read(tmp_path / name)


# Pictures and arguments


@pytest.mark.parametrize("samples", [40, 1000, RATE, 3 * RATE])
@pytest.mark.parametrize("channels", [1, 2])
def test_preview(samples, channels):
    wave = 0.3 * torch.sin(torch.arange(samples) * 0.5).expand(channels, -1)
    picture = Audio(channels=channels).preview(wave)
    assert picture.dtype == torch.uint8
    assert picture.shape[:2] == (3, 128)
    if samples >= RATE:
        # 0.5 rad per sample is 0.16 of the way to Nyquist; row 0 is the highest frequency.
        loudest = picture.sum(0)[:, picture.shape[2] // 2].argmax().item()
        assert 128 - loudest == pytest.approx(0.5 / torch.pi * 128, abs=2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"channels": 3}, "modality.channels must be 1 or 2, got 3"),
        ({"channels": 0}, "modality.channels"),
        ({"seconds": 0}, "modality.seconds must be positive, got 0"),
        ({"seconds": -1.0}, "modality.seconds"),
        ({"mean": [0.0, 1.0]}, "modality.mean has 2 values for a representation of 256 bins"),
        ({"std": [1.0]}, "modality.std has 1 values"),
        ({"std": [0.0] * 256}, "modality.std"),
        ({"rate": 0}, "modality.rate"),
    ],
)
def test_wrong_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        Audio(**arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"hop": 0}, "hop"), ({"hop": 400}, "hop"), ({"power": 0}, "power"), ({"power": 2}, "power")],
)
def test_wrong_arguments_of_the_stft(arguments, named):
    with pytest.raises(ValueError, match=f"representation.{named} must lie"):
        STFT(**arguments)


def test_metrics_take_media():
    modality = Audio(rate=RATE, seconds=0.5)
    for name, metric in modality.metrics().items():
        for real in (True, False):
            metric.update(0.1 * torch.randn(8, 1, modality.length), real=real, cond={})
        assert all(value.isfinite() for value in metric.compute().values()), name


@pytest.mark.parametrize("representation", [STFT(n_fft=254, hop=64), LogMel(rate=8000, n_fft=512, mels=20)])
def test_times_and_bands(representation):
    """A tone that is there for part of the time stands in the part that its words name."""
    audio = Audio(representation, rate=8000, seconds=1.0)
    t = torch.arange(8000) / 8000
    wave = torch.where((t >= 0.5) & (t < 0.75), torch.sin(2 * torch.pi * 1500 * t), 0)[None]
    strength = representation.encode(wave)[0] ** 2 if isinstance(representation, STFT) else audio.encode(wave).exp()
    inside = audio.place(wave, "seconds:0.5:0.75 and hertz:1300:1700")[1]
    assert inside.shape == (1, *audio.shape[1:])
    strength = strength.sum(0)
    assert strength[inside[0]].mean() > 20 * strength[~inside[0]].mean()
    assert torch.equal(audio.place(wave, "not seconds::0.5")[1], audio.place(wave, "seconds:0.5:")[1])
    short = audio.place(wave[:, :4000], "hertz::500")[1]
    assert not short[..., 70 if isinstance(representation, STFT) else 20 :].any()  # padding is not known


@pytest.mark.parametrize("power", [0.3, 0.7, 1.0])
def test_what_is_heard_of_silence_has_a_gradient_and_a_tangent(power):
    silence = torch.zeros(2, 128, 63, requires_grad=True)
    wave = STFT(n_fft=254, hop=64, power=power).decode(silence, 4000)
    weights = torch.ones_like(wave, requires_grad=True)
    (gradient,) = torch.autograd.grad(wave, silence, weights, create_graph=True)
    (tangent,) = torch.autograd.grad(gradient.sum(), weights)
    assert gradient.isfinite().all()
    assert tangent.isfinite().all()


def test_samples_below_a_peak():
    audio = Audio(STFT(n_fft=254, hop=64), rate=8000, seconds=0.5)
    clipped = torch.sin(torch.arange(4000) / 10)[None].clamp(-0.5, 0.5)
    operator, x = audio.operator("unclipped", clipped), audio.encode(clipped)[None].requires_grad_()
    seen = operator(x)
    whole = clipped.abs() < 0.4995
    assert 0.2 < whole.float().mean() < 0.5
    torch.testing.assert_close(seen[0], clipped * whole, rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad((seen**2).sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
