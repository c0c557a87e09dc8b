"""Sound files made by other programs, read in full, in clips and when something is wrong with them."""

import contextlib
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmdiff import DataError
from mmdiff_audio import media

SECONDS = 5.0
LOSSLESS = {
    "speech.wav": "espeak-ng -w {} 'The quick brown fox jumps over the lazy dog, and then it walks back home again.'",
    "source.wav": "sox -M sweep.wav noise.wav {}",
    "u8.wav": "sox source.wav -b 8 -r 11025 -c 1 {}",
    "s24.wav": "sox source.wav -b 24 -r 48000 {}",
    "f32.wav": "sox source.wav -e floating-point -b 32 -r 32000 {}",
    "s16.flac": "sox source.wav -r 22050 {}",
    "s24.flac": "sox source.wav -b 24 -c 1 -r 96000 {}",
}
FFMPEG = "ffmpeg -nostdin -loglevel error -y "
LOSSY = {
    "vbr.mp3": FFMPEG + "-i source.wav -c:a libmp3lame -q:a 4 {}",
    "cbr.mp3": FFMPEG + "-i source.wav -c:a libmp3lame -b:a 96k -ac 1 -ar 24000 {}",
    "vorbis.ogg": FFMPEG + "-i source.wav -c:a libvorbis {}",
    "opus.opus": FFMPEG + "-i source.wav -c:a libopus {}",
    # Without this option the encoder stores noise as "noise", and a decoder draws another one for every clip.
    "aac.m4a": FFMPEG + "-i source.wav -c:a aac -aac_pns 0 -movflags +faststart {}",
}
OTHER = {
    "adpcm.wav": FFMPEG + "-i source.wav -c:a adpcm_ima_wav {}",
    "no_length.mp3": FFMPEG + "-i source.wav -c:a libmp3lame -q:a 4 -write_xing 0 {}",
    "piped.flac": FFMPEG + "-i source.wav -f flac - > {}",
    "piped.wav": FFMPEG + "-i source.wav -f wav - > {}",
    "piped_speech.wav": LOSSLESS["speech.wav"].replace("-w {}", "--stdout") + " > {}",
    "piped_sox.wav": "sox source.wav -t wav - > {}",
    "six.wav": FFMPEG + "-f lavfi -i aevalsrc='.1|.2|.3|.4|.5|.6:c=5.1:d=1' -c:a pcm_f32le {}",
    "moov_last.m4a": FFMPEG + "-i source.wav -c:a aac {}",
    "s64.wav": FFMPEG + "-i source.wav -c:a pcm_s64le {}",
    "silent.mp4": FFMPEG + "-f lavfi -i testsrc=duration=1 -an {}",
}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """The folder of all files above."""
    missing = [tool for tool in ("espeak-ng", "sox", "ffmpeg") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} to make sound files")
    folder = tmp_path_factory.mktemp("sounds")
    ingredients = {
        "sweep.wav": f"sox -R -n -r 44100 -b 16 {{}} synth {SECONDS} sine 100-5000 vol 0.4",
        "noise.wav": f"sox -R -n -r 44100 -b 16 {{}} synth {SECONDS} pinknoise vol 0.4",
    }
    for name, command in (ingredients | LOSSLESS | LOSSY | OTHER).items():
        subprocess.run(command.format(name), shell=True, check=True, cwd=folder, stderr=subprocess.DEVNULL)
    return folder


def cut(path: Path, share: float) -> Path:
    """A copy of the first ``share`` of the bytes of a file."""
    copy = path.with_name(f"cut_{share}_{path.name}")
    copy.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return copy


def tone(frequency: float, rate: int) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(2 * rate, dtype=torch.float64) / rate)


def decibels(signal: torch.Tensor, reference: torch.Tensor) -> float:
    return 10 * math.log10(signal.double().square().mean() / reference.double().square().mean())


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_read_exactly_as_soundfile_reads_them(sounds, name):
    expected, rate = soundfile.read(sounds / name, dtype="float32", always_2d=True)
    channels = expected.shape[1]
    assert media.probe(sounds / name) == (len(expected) / rate, rate, channels)
    torch.testing.assert_close(media.read(sounds / name, rate, channels), torch.tensor(expected.T), rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_files_read_as_other_decoders_read_them(sounds, name):
    reference = sounds / name
    if name.endswith("m4a"):  # which soundfile cannot read
        reference = sounds / "decoded.wav"
        subprocess.run([*FFMPEG.split(), "-i", sounds / name, "-c:a", "pcm_f32le", reference], check=True)
    expected, rate = soundfile.read(reference, dtype="float32", always_2d=True)
    channels = expected.shape[1]
    assert media.probe(sounds / name) == (SECONDS, rate, channels)
    audio = media.read(sounds / name, rate, channels)
    assert audio.shape == (channels, SECONDS * rate)
    # Two decoders of Opus differ by 2.5e-4, of the others by 1e-6; one sample of delay makes 0.1.
    torch.testing.assert_close(audio, torch.tensor(expected.T)[:, : audio.shape[1]], rtol=0, atol=5e-4)


@pytest.mark.parametrize(("rate", "channels"), [(None, 2), (16000, 1), (44100, 2)])
@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY, "adpcm.wav", "no_length.mp3", "piped.flac"])
def test_clips_are_slices_of_the_whole_file(sounds, name, rate, channels):
    path = sounds / name
    rate = rate or media.probe(path).rate
    whole = media.read(path, rate, channels)
    seconds = media.probe(path).seconds
    assert media.read(path, rate, channels, seconds=seconds).shape == (channels, round(seconds * rate))
    for start in np.random.default_rng(0).uniform(0, seconds, 5):
        clip, first = media.read(path, rate, channels, start, 0.4321), round(start * rate)
        expected = whole[:, first : first + round(0.4321 * rate)]
        torch.testing.assert_close(clip, expected, rtol=0, atol=1e-6 if name in LOSSY else 0)


def test_a_clip_ends_where_the_file_ends(sounds):
    whole = media.read(sounds / "source.wav", 16000, 2)
    assert whole.shape == (2, SECONDS * 16000)
    assert torch.equal(media.read(sounds / "source.wav", 16000, 2, SECONDS - 0.25, 1.0), whole[:, -4000:])
    assert torch.equal(media.read(sounds / "source.wav", 16000, 2, SECONDS - 0.25), whole[:, -4000:])
    assert media.read(sounds / "source.wav", 16000, 2, SECONDS + 1, 1.0).shape == (2, 0)


@pytest.mark.parametrize("name", ["piped.flac", "piped.wav", "piped_sox.wav", "piped_speech.wav", "no_length.mp3"])
def test_length_is_found_where_the_header_has_none(sounds, name):
    expected = media.probe(sounds / "speech.wav").seconds if "speech" in name else SECONDS
    # Without its first frame an mp3 does not tell how much of the padding at both ends to drop.
    assert media.probe(sounds / name).seconds == pytest.approx(expected, abs=0.1 if name.endswith("mp3") else 1e-9)


def test_mono_is_the_mean_and_stereo_repeats_mono(sounds):
    stereo = media.read(sounds / "source.wav", 44100, 2)
    torch.testing.assert_close(media.read(sounds / "source.wav", 44100, 1), stereo.mean(0, keepdim=True))
    mono, twice = (media.read(sounds / "speech.wav", 16000, channels) for channels in (1, 2))
    assert torch.equal(twice, mono.repeat(2, 1))


def test_surround_is_mixed_by_side(sounds):
    left, right, center, low, back_left, back_right = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    stereo = torch.tensor([[left, center, low, back_left], [right, center, low, back_right]]).mean(1, keepdim=True)
    torch.testing.assert_close(media.read(sounds / "six.wav", 44100, 2), stereo.expand(2, 44100))
    torch.testing.assert_close(media.read(sounds / "six.wav", 44100, 1), torch.full((1, 44100), 0.35))


def test_channels_without_a_name_count_as_central(tmp_path):
    audio = np.arange(4 * 1600, dtype=np.int16).reshape(1600, 4)
    soundfile.write(tmp_path / "four.wav", audio, 16000)
    mean = torch.tensor(audio / 32768).float().mean(1)
    torch.testing.assert_close(media.read(tmp_path / "four.wav", 16000, 2), mean.repeat(2, 1))


@pytest.mark.parametrize(("before", "after"), [(44100, 16000), (48000, 44100), (16000, 48000), (44101, 16000)])
def test_resampling_keeps_what_fits_and_drops_the_rest(tmp_path, before, after):
    middle = slice(after // 10, -after // 10)
    soundfile.write(tmp_path / "low.wav", tone(1000, before).numpy(), before, subtype="FLOAT")
    low = media.read(tmp_path / "low.wav", after, 1)[0]
    assert decibels((low - tone(1000, after))[middle], low[middle]) < -100
    if before > after:
        high = tone(0.5625 * after, before)
        soundfile.write(tmp_path / "high.wav", high.numpy(), before, subtype="FLOAT")
        assert decibels(media.read(tmp_path / "high.wav", after, 1)[0, middle], high) < -100


def broken_files(folder: Path) -> list[Path]:
    soundfile.write(folder / "header_only.wav", np.zeros(0), 16000)
    soundfile.write(folder / "twelve.wav", np.zeros((16000, 12)), 16000)
    (folder / "empty.flac").touch()
    for name in ("text.wav", "text.mp3", "text.m4a"):
        (folder / name).write_text("The quick brown fox jumps over the lazy dog.\n" * 20)
    sound = (folder / "speech.wav").read_bytes()
    (folder / "unknown.wav").write_bytes(sound[:20] + b"\x34\x12" + sound[22:])
    (folder / "folder.wav").mkdir(exist_ok=True)
    tails = ["source.wav", "s24.wav", "s16.flac", "vbr.mp3", "cbr.mp3", "aac.m4a", "moov_last.m4a"]
    names = "missing.wav header_only.wav empty.flac text.wav text.mp3 text.m4a folder.wav silent.mp4 s64.wav twelve.wav"
    return [folder / name for name in (*names.split(), "unknown.wav")] + [cut(folder / name, 0.6) for name in tails]


def test_every_broken_file_is_a_data_error_that_names_it(sounds, capfd):
    for path in broken_files(sounds):
        for use in (media.probe, lambda path: media.read(path, 16000, 1, 0.1, 0.5)):
            with pytest.raises(DataError) as caught:
                use(path)
            assert str(caught.value).startswith(f"{path}: ")
            assert len(caught.value.reason) > 10
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["source.wav", "s16.flac", "vbr.mp3", "cbr.mp3", "aac.m4a"])
@pytest.mark.parametrize("share", [0.05, 0.6, 0.95])
def test_a_file_that_is_cut_off_tells_both_lengths(sounds, name, share):
    with pytest.raises(DataError, match=r"is cut off: its header promises 5\.00 s") as caught:
        media.probe(cut(sounds / name, share))
    found = float(caught.value.reason.split()[-2])
    # The bytes of a compressed file are not evenly spread over time.
    assert found == pytest.approx(share * SECONDS, abs=0.01 if name.endswith("wav") else 0.8)


def test_a_file_that_lacks_one_percent_is_read(sounds):
    audio = media.read(cut(sounds / "source.wav", 0.99), 44100, 2)
    assert audio.shape[1] == pytest.approx(0.99 * SECONDS * 44100, abs=20)


def test_damage_in_the_middle_is_silent_and_nothing_moves(sounds, capfd):
    damaged = bytearray((sounds / "s16.flac").read_bytes())
    damaged[50000:70000] = bytes(20000)
    path = sounds / "damaged.flac"
    path.write_bytes(damaged)
    audio, intact = media.read(path, 22050, 2), media.read(sounds / "s16.flac", 22050, 2)
    assert audio.shape == intact.shape
    differs = (audio != intact).any(0)
    assert 0.01 < differs.float().mean() < 0.4
    assert (audio[:, differs] == 0).float().mean() > 0.5
    assert torch.equal(audio[:, -22050:], intact[:, -22050:])
    with pytest.raises(DataError, match="nothing that decodes"):
        media.read(path, 22050, 2, differs.nonzero().float().mean().item() / 22050, 0.01)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["source.wav", "adpcm.wav", "s16.flac", *LOSSY])
def test_random_damage_raises_nothing_but_data_errors(sounds, name):
    random = np.random.default_rng(0)
    intact = np.fromfile(sounds / name, np.uint8)
    path = sounds / f"random_{name}"
    for header in [True, False] * 3:
        damaged = intact.copy()
        damaged[random.integers(0, 300 if header else len(damaged), 30)] = random.integers(0, 256, 30)
        damaged.tofile(path)
        with contextlib.suppress(DataError):
            assert media.read(path, 16000, 2, 0.5, 0.5).isfinite().all()


def test_a_changed_file_is_probed_again(tmp_path):
    path = tmp_path / "tone.wav"
    media.write(torch.zeros(1, 16000), path, 16000)
    assert media.probe(path) == (1.0, 16000, 1)
    media.write(torch.zeros(2, 4000), path, 8000)
    assert media.probe(str(path)) == (0.5, 8000, 2)
    media.write(torch.zeros(2, 4000), path, 16000)
    os.utime(path, (0, 0))
    assert media.probe(path) == (0.25, 16000, 2)


def test_tags_in_any_encoding_are_no_obstacle(tmp_path):
    path = tmp_path / "tagged.wav"
    media.write(torch.zeros(1, 16000), path, 16000)
    tag = b"INAM" + (6).to_bytes(4, "little") + "café".encode("latin-1") + b"\0\0"
    path.write_bytes(path.read_bytes() + b"LIST" + (4 + len(tag)).to_bytes(4, "little") + b"INFO" + tag)
    assert media.probe(path) == (1.0, 16000, 1)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_written_files_read_back(tmp_path, suffix, channels):
    audio = 0.3 * torch.randn(channels, 50001, generator=torch.manual_seed(0)).clamp(-3, 3)
    path = tmp_path / f"noise{suffix}"
    media.write(audio, path, 22050)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert soundfile.info(path).subtype == "PCM_16"
    back = media.read(path, 22050, channels)
    assert torch.equal(back.T, torch.tensor(soundfile.read(path, dtype="float32", always_2d=True)[0]))
    torch.testing.assert_close(back, audio, rtol=0, atol=0.5 / 32768)
    assert decibels(back - audio, audio) < -60
    media.write(back, path, 22050)
    assert torch.equal(media.read(path, 22050, channels), back)


def test_samples_beyond_full_scale_are_limited(tmp_path):
    media.write(torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]]), tmp_path / "loud.wav", 8000)
    limited = torch.tensor([[-32768, -32768, 0, 32767, 32767]]) / 32768
    assert torch.equal(media.read(tmp_path / "loud.wav", 8000, 1), limited)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "kept.flac"
    media.write(torch.zeros(1, 16000), path, 16000)
    with pytest.raises(DataError, match=r"kept\.flac: cannot be written"):
        media.write(torch.zeros(1, 16000), path, 10**9)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.flac"]
    assert media.probe(path).seconds == 1.0
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        media.write(torch.zeros(1, 16000), tmp_path / "folder.wav", 16000)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.wav", "kept.flac"]
    with pytest.raises(DataError, match="cannot be written"):
        media.write(torch.zeros(1, 16000), tmp_path / "nowhere" / "sound.wav", 16000)


def test_wrong_arguments_name_what_is_allowed(tmp_path):
    with pytest.raises(ValueError, match=r"\.wav.*\.flac.*'sound\.mp3'"):
        media.write(torch.zeros(1, 10), tmp_path / "sound.mp3", 16000)
    for shape in [(3, 10), (1, 0)]:
        with pytest.raises(ValueError, match=rf"1 or 2 channels.* with {re.escape(str(shape))}"):
            media.write(torch.zeros(shape), tmp_path / "sound.wav", 16000)
    for wrong in [(0, 1, 0.0), (16000, 3, 0.0), (16000, 1, -1.0)]:
        with pytest.raises(ValueError, match="rate={}, channels={}, start={}".format(*wrong)):
            media.read(tmp_path / "sound.wav", *wrong)
