"""Grids that a model of sound can work on: waveforms in, (channels, bins, frames) out, and back.

Figures for the round trip are in the README of this plugin. Waveforms are (..., n) samples in [-1, 1].
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torchaudio
from jaxtyping import Complex, Float
from torch import Tensor


class Representation(ABC):
    """An invertible (or nearly) map from a waveform to a grid of real numbers.

    Attributes:
        channels: of the grid, per channel of sound.
        bins: of frequency.
        hop: samples between two frames.
    """

    channels: int
    bins: int
    hop: int

    @abstractmethod
    def encode(self, wave: Float[Tensor, "*b n"]) -> Float[Tensor, "*b k f t"]:
        """Grid of a waveform, not normalized."""

    @abstractmethod
    def decode(self, grid: Float[Tensor, "*b k f t"], length: int) -> Float[Tensor, "*b n"]:
        """Waveform of that many samples."""

    @abstractmethod
    def frequencies(self, rate: int) -> Float[Tensor, "f"]:
        """Center of each bin in hertz, for sound of that many samples per second."""

    def frames(self, length: int) -> int:
        """Frames of a waveform of that many samples; frame i is centered on sample i * hop."""
        return 1 + length // self.hop


def _flat(function: Any, x: Tensor, kept: int) -> Tensor:
    """Apply a function that takes one batch dimension to a tensor with any number of them."""
    batch = x.shape[: x.ndim - kept]
    result = function(x.reshape(-1, *x.shape[x.ndim - kept :]))
    return result.reshape(*batch, *result.shape[1:])


class STFT(Representation):
    """Complex short-time spectrum with compressed magnitude: Richter et al. 2023 (SGMSE+), equation 4.

    Real and imaginary parts are the two channels, so the model generates the phase and the inverse is exact. Without
    compression the grid is as heavy-tailed as the waveform.

    Args:
        n_fft: samples per window; 2 * bins - 2, so 510 gives 256 bins.
        hop: samples between two windows.
        power: exponent of the magnitude.
    """

    channels = 2

    def __init__(self, *, n_fft: int = 510, hop: int = 128, power: float = 0.3):
        if not 0 < hop <= n_fft // 2:
            raise ValueError(f"representation.hop must lie between 1 and n_fft / 2 = {n_fft // 2}, got {hop}.")
        if not 0 < power <= 1:
            raise ValueError(f"representation.power must lie in (0, 1], got {power:g}.")
        self.n_fft = n_fft
        self.hop = hop
        self.power = power
        self.bins = n_fft // 2 + 1

    def encode(self, wave: Float[Tensor, "*b n"]) -> Float[Tensor, "*b 2 f t"]:
        spectrum = _flat(self._stft, wave, kept=1)
        compressed = torch.polar(spectrum.abs() ** self.power, spectrum.angle())
        return torch.view_as_real(compressed).movedim(-1, -3)

    def decode(self, grid: Float[Tensor, "*b 2 f t"], length: int) -> Float[Tensor, "*b n"]:
        compressed = torch.view_as_complex(grid.movedim(-3, -1).contiguous())
        spectrum = compressed * compressed.abs().clamp(min=1e-12) ** (1 / self.power - 1)
        return _flat(lambda s: self._istft(s, length), spectrum, kept=2)

    def frequencies(self, rate: int) -> Float[Tensor, "f"]:
        return torch.linspace(0, rate / 2, self.bins)

    def _stft(self, wave: Float[Tensor, "b n"]) -> Complex[Tensor, "b f t"]:
        window = torch.hann_window(self.n_fft, device=wave.device, dtype=wave.dtype)
        return torch.stft(
            wave, self.n_fft, self.hop, window=window, pad_mode="constant", normalized=True, return_complex=True
        )

    def _istft(self, spectrum: Complex[Tensor, "b f t"], length: int) -> Float[Tensor, "b n"]:
        window = torch.hann_window(self.n_fft, device=spectrum.device)
        return torch.istft(spectrum, self.n_fft, self.hop, window=window, normalized=True, length=length)


class LogMel(Representation):
    """Log-mel spectrogram; back by non-negative least squares and fast Griffin-Lim (Perraudin et al. 2013).

    Cheap, but phase is lost: preview quality, whatever the model.

    Args:
        rate: samples per second.
        n_fft: samples per window.
        hop: samples between two windows.
        mels: bands from 0 to rate / 2, on the Slaney scale.
        floor: magnitudes below it are lost.
        iterations: of Griffin-Lim.
    """

    channels = 1

    def __init__(
        self,
        *,
        rate: int,
        n_fft: int = 1024,
        hop: int = 256,
        mels: int = 80,
        floor: float = 1e-5,
        iterations: int = 64,
    ):
        self.n_fft = n_fft
        self.hop = hop
        self.bins = mels
        self.floor = floor
        self.iterations = iterations
        self.bands = torchaudio.functional.melscale_fbanks(
            n_fft // 2 + 1, 0.0, rate / 2, mels, rate, norm="slaney", mel_scale="slaney"
        ).T

    def encode(self, wave: Float[Tensor, "*b n"]) -> Float[Tensor, "*b 1 f t"]:
        magnitude = torchaudio.functional.spectrogram(
            wave, 0, self._window(wave), self.n_fft, self.hop, self.n_fft, 1.0, False, pad_mode="constant"
        )
        mel = self.bands.to(wave) @ magnitude
        return mel.clamp(min=self.floor).log().unsqueeze(-3)

    def decode(self, grid: Float[Tensor, "*b 1 f t"], length: int) -> Float[Tensor, "*b n"]:
        # e^10 is far above full scale: the clamp keeps a wild model's output finite.
        magnitude = self._magnitude(grid.squeeze(-3).clamp(max=10).exp())
        # Zero initial phase instead of random: the same grid always gives the same sound.
        return torchaudio.functional.griffinlim(
            magnitude,
            self._window(grid),
            self.n_fft,
            self.hop,
            self.n_fft,
            power=1.0,
            n_iter=self.iterations,
            momentum=0.99,
            length=length,
            rand_init=False,
        )

    def frequencies(self, rate: int) -> Float[Tensor, "f"]:
        return self.bands @ torch.linspace(0, rate / 2, self.bands.shape[1]) / self.bands.sum(1).clamp(min=1e-12)

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.n_fft, device=like.device, dtype=like.dtype)

    def _magnitude(self, mel: Float[Tensor, "*b m t"]) -> Float[Tensor, "*b f t"]:
        """Linear magnitudes by multiplicative non-negative least squares (Lee & Seung 2001) from the pseudo-inverse."""
        bands = self.bands.to(mel)
        magnitude = (torch.linalg.pinv(bands) @ mel).clamp(min=self.floor)
        target = bands.T @ mel
        for _ in range(30):
            magnitude = magnitude * target / (bands.T @ (bands @ magnitude)).clamp(min=1e-12)
        return magnitude
