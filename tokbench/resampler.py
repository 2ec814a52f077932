"""The one named resampler of sound, for the engine and for metrics: in torch and free of torch, with the same bits.

`sinc-hann-6-0.99`: band-limited sinc interpolation under a Hann window of six zero crossings, cut-off at 0.99 of the lower
Nyquist frequency (https://ccrma.stanford.edu/~jos/resample/): what `torchaudio.functional.resample` computes by default,
to 1e-12 on float64 sound. On float32 sound torchaudio also makes the filter itself in float32, which moves its result by
up to 2e-5 at common rates; here the filter is made in float64 and rounded once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tokbench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_ZEROS = 6
_ROLLOFF = 0.99
_BLOCK = 2**16


def resample(x: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Resample sound on its device; every row is computed alike whatever its batch.

    Sums run tap by tap in the dtype of `x`, so that on CPU the result has the bits of `resample_numpy`.

    Args:
        x: (..., T) float32 or float64.
        source_rate: Hz.
        target_rate: Hz.

    Returns:
        (..., ceil(T * target_rate / source_rate)); `x` itself when the rates are equal.

    Raises:
        UsageError: A rate is not a positive integer, or `x` is not floating point.
    """
    import torch

    if not x.is_floating_point():
        raise UsageError(f"resampling takes floating-point sound, got {x.dtype}")
    source, target = _reduce(source_rate, target_rate)
    if source == target:
        return x
    starts, weights = _filters(source, target)
    first = torch.from_numpy(starts).to(x.device)
    taps = torch.from_numpy(weights).to(x.dtype).to(x.device)
    width = taps.shape[0] // 2 - 1
    length = -(-x.shape[-1] * target // source)
    frames = -(-length // target)
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    rows = torch.nn.functional.pad(flat, (width, frames * source + width + 2 - x.shape[-1]))
    out = x.new_empty((rows.shape[0], frames, target))
    step = max(1, _BLOCK * (1 if x.device.type == "cpu" else 64) // (target * max(1, rows.shape[0])))
    for begin in range(0, frames, step):
        end = min(frames, begin + step)
        at = torch.arange(begin, end, device=x.device)[:, None] * source + first
        part = rows[:, at] * taps[0]
        for k in range(1, taps.shape[0]):
            part += rows[:, at + k] * taps[k]
        out[:, begin:end] = part
    return out.reshape(*x.shape[:-1], frames * target)[..., :length]


def resample_numpy(x: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resample sound without torch, in memory that does not grow beyond the signal and its result.

    Args:
        x: (..., T) float32 or float64.
        source_rate: Hz.
        target_rate: Hz.

    Returns:
        (..., ceil(T * target_rate / source_rate)); `x` itself when the rates are equal.

    Raises:
        UsageError: A rate is not a positive integer, or `x` is not floating point.
    """
    if x.dtype not in (np.float32, np.float64):
        raise UsageError(f"resampling takes float32 or float64 sound, got {x.dtype}")
    source, target = _reduce(source_rate, target_rate)
    if source == target:
        return x
    first, weights = _filters(source, target)
    taps = weights.astype(x.dtype)
    width = taps.shape[0] // 2 - 1
    length = -(-x.shape[-1] * target // source)
    frames = -(-length // target)
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    out = np.empty((flat.shape[0], frames, target), x.dtype)
    step = max(1, _BLOCK // target)
    for row, done in zip(flat, out, strict=True):
        padded = np.pad(row, (width, frames * source + width + 2 - row.shape[0]))
        for begin in range(0, frames, step):
            end = min(frames, begin + step)
            at = np.arange(begin, end)[:, None] * source + first
            part = padded[at] * taps[0]
            for k in range(1, taps.shape[0]):
                part += padded[at + k] * taps[k]
            done[begin:end] = part
    return out.reshape(*x.shape[:-1], frames * target)[..., :length]


def _reduce(source_rate: int, target_rate: int) -> tuple[int, int]:
    if source_rate != int(source_rate) or target_rate != int(target_rate) or min(source_rate, target_rate) < 1:
        raise UsageError(f"sample rates are positive whole numbers of Hz, got {source_rate} and {target_rate}")
    common = math.gcd(int(source_rate), int(target_rate))
    return int(source_rate) // common, int(target_rate) // common


def _filters(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the filter of each of the `target` phases starts, and its taps: int64 (target,), float64 (taps, target).

    Only the taps under the window are kept, which is what lets rates without a common divisor through: the full kernel of
    44,101 Hz to 48,000 Hz has two thousand million of them.
    """
    cutoff = min(source, target) * _ROLLOFF
    width = math.ceil(_ZEROS * source / cutoff)
    phase = np.arange(target)
    starts = phase * source // target
    # Distances in units of 1 / (source * target) are whole numbers, so that phases far from zero lose no digits.
    distance = (starts + np.arange(-width, width + 2)[:, None]) * target - phase * source
    t = np.clip(distance * (cutoff / (source * target)), -_ZEROS, _ZEROS)
    window = np.cos(t * math.pi / _ZEROS / 2) ** 2
    return starts, np.sinc(t) * window * (cutoff / source)
