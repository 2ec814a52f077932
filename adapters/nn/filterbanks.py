"""Spectral features that audio encoders are fed: Whisper's log-mel and Kaldi's filter banks, in torch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_KALDI_FLOOR = 1.192092955078125e-07


def whisper_log_mel(x: Tensor, bins: int = 128) -> Tensor:
    """Compute the log-mel spectrogram of Whisper (arXiv 2212.04356) at 16 kHz, without its padding to 30 s.

    Args:
        x: (B, T) in [-1, 1], T above 200.
        bins: Slaney mel bins from 0 to 8000 Hz.

    Returns:
        (B, bins, T // 160): log10 of the power, at most 8 below the row's peak, plus 4, over 4.
    """
    window = torch.hann_window(400, device=x.device, dtype=x.dtype)
    spectrum = torch.stft(x, 400, 160, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = slaney_filters(16_000, 400, bins).to(x) @ spectrum[..., :-1].abs().square()
    level = power.clamp(min=1e-10).log10()
    peak = level.amax(dim=(1, 2), keepdim=True)
    return (torch.maximum(level, peak - 8.0) + 4.0) / 4.0


def kaldi_filter_banks(x: Tensor) -> Tensor:
    """Compute the stacked, normalised filter banks of w2v-BERT 2.0 (SeamlessM4T's extractor) at 16 kHz.

    Kaldi's fbank: 80 log-mel bins of 25 ms Povey windows every 10 ms, mean removed, pre-emphasis 0.97, 512 points; each bin
    is brought to mean 0 and variance 1 over the row, and pairs of frames are joined.

    Args:
        x: (B, T) in [-1, 1].

    Returns:
        (B, frames // 2, 160) float32. A last odd frame is dropped.
    """
    frames = (x.double() * 2**15).unfold(-1, 400, 160)
    frames = frames - frames.mean(-1, keepdim=True)
    frames = torch.cat([frames[..., :1] * (1 - 0.97), frames[..., 1:] - 0.97 * frames[..., :-1]], dim=-1)
    window = torch.hann_window(400, periodic=False, dtype=torch.float64, device=x.device).pow(0.85)
    power = torch.fft.rfft(frames * window, 512).abs().square()
    level: Tensor = (power @ kaldi_filters(16_000, 512, 80, 20.0).to(x.device)).clamp(min=_KALDI_FLOOR).log()
    level = (level - level.mean(1, keepdim=True)) / (level.var(1, correction=1, keepdim=True) + 1e-7).sqrt()
    rows, count, bins = level.shape
    return level[:, : count // 2 * 2].reshape(rows, count // 2, 2 * bins).float()


def slaney_filters(rate: int, points: int, bins: int) -> Tensor:
    """Return the area-normalised triangles of Slaney's Auditory Toolbox, 0 Hz to half the rate: (bins, points // 2 + 1)."""
    top = _slaney_mel(rate / 2)
    corners = _slaney_hertz(torch.linspace(0.0, top, bins + 2, dtype=torch.float64))
    hertz = torch.linspace(0.0, rate / 2, points // 2 + 1, dtype=torch.float64)
    rising = (hertz - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - hertz) / (corners[2:] - corners[1:-1])[:, None]
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return triangles * (2.0 / (corners[2:] - corners[:-2]))[:, None]


def kaldi_filters(rate: int, points: int, bins: int, low: float) -> Tensor:
    """Return Kaldi's triangles, straight in mel and not normalised, `low` Hz to half the rate: (points // 2 + 1, bins)."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    ends = mel(torch.tensor([low, rate / 2], dtype=torch.float64))
    corners = torch.linspace(float(ends[0]), float(ends[1]), bins + 2, dtype=torch.float64)
    lines = mel(torch.arange(points // 2 + 1, dtype=torch.float64) * rate / points)[:, None]
    rising = (lines - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - lines) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0.0)


def pad_end(x: Tensor, multiple: int, *, at_least: int = 0) -> Tensor:
    """Append zeros to (..., T) up to a multiple, `at_least` of them."""
    length = x.shape[-1] + at_least
    return F.pad(x, (0, -(-length // multiple) * multiple - x.shape[-1]))


# Slaney's scale: 200/3 Hz a mel up to 1000 Hz, then 27 mels for every factor of 6.4.
_LINEAR, _KNEE, _STEP = 200.0 / 3.0, 1000.0, math.log(6.4) / 27.0


def _slaney_mel(hertz: float) -> float:
    return hertz / _LINEAR if hertz < _KNEE else _KNEE / _LINEAR + math.log(hertz / _KNEE) / _STEP


def _slaney_hertz(mel: Tensor) -> Tensor:
    knee = _KNEE / _LINEAR
    return torch.where(mel < knee, mel * _LINEAR, _KNEE * torch.exp(_STEP * (mel - knee)))
