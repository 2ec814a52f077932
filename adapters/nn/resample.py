"""Band-limited resampling inside networks that work at two rates: `sinc-hann-6-0.99`, as the engine's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_ZEROS, _ROLLOFF = 6, 0.99


def resampled(x: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Resample (B, T) or (B, C, T) to (..., ceil(T x target / source)), on its device and in its dtype.

    Sinc interpolation under a Hann window of six zero crossings, cut-off at 0.99 of the lower Nyquist frequency: what
    `torchaudio.functional.resample` computes by default, and the networks that call it expect.
    """
    common = math.gcd(source_rate, target_rate)
    source, target = source_rate // common, target_rate // common
    if source == target:
        return x
    base = min(source, target) * _ROLLOFF
    width = math.ceil(_ZEROS * source / base)
    at = torch.arange(-width, width + source, dtype=torch.float64, device=x.device) / source
    phase = torch.arange(0, -target, -1, dtype=torch.float64, device=x.device) / target
    t = ((phase[:, None] + at[None]) * base).clamp(-_ZEROS, _ZEROS)
    kernel = torch.special.sinc(t) * torch.cos(t * math.pi / _ZEROS / 2).square() * base / source
    length = -(-x.shape[-1] * target // source)
    flat = F.pad(x.reshape(-1, 1, x.shape[-1]), (width, width + source))
    out = F.conv1d(flat, kernel[:, None].to(x.dtype), stride=source).transpose(1, 2).flatten(1)
    return out[:, :length].reshape(*x.shape[:-1], length)
