"""STOI and ESTOI: intelligibility of speech, vectorised in torch float64, equal to pystoi."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample

from ._audio import checked_rate
from ._speech import MONO
from .waveform import estimate_delay

RATE = 10_000
FRAME = 256
HOP = 128
N_FFT = 512
BANDS = 15
LOWEST_HZ = 150.0
SEGMENT = 30
DYNAMIC_RANGE_DB = 40.0
CLIP = 10 ** (15 / 20)
_MOST_VALUES = 2**22
MAX_DELAY_MS = 100
EPS = float(np.finfo(np.float64).eps)

_UNDEFINED = (
    f"fewer than {SEGMENT} frames of 25.6 ms are left once silent frames of the reference are removed, or the reference is "
    "digital silence"
)
_REFERENCE = "Taal et al. 2011, IEEE TASLP 19(7); Jensen and Taal 2016, IEEE TASLP 24(11); pystoi 0.4.1"


@dataclass(frozen=True)
class Stoi:
    """Short-time objective intelligibility, 0 to 1 (it can be slightly negative); higher is better.

    As pystoi: channels averaged; both signals to 10 kHz by Octave's resampler (Kaiser window, 60 dB), from any rate;
    frames of 256 samples, hop 128, whose energy in the reference is 40 dB below its loudest frame are removed from
    both; 15 third-octave bands from 150 Hz; segments of 30 frames (384 ms), the reconstruction scaled to the
    reference's energy and clipped at -15 dB signal-to-distortion; the mean correlation over segments and bands.

    **A delay counts**: 10 ms costs about 0.15, 30 ms half of it, however clear the speech. Read it with `delay_median`, or
    take `stoi_aligned`, which removes each row's own integer delay first, as `si_sdr_aligned` does and with its caveat:
    where rows do not agree on a delay it is optimistic. A gain does not count.

    Fewer than 30 frames, or a silent reference, leave the row without a value (pystoi returns 1e-5, respectively 0, for
    those); a silent reconstruction is 0.

    Reference: Taal et al., "An Algorithm for Intelligibility Prediction of Time-Frequency Weighted Noisy Speech", IEEE
    TASLP 19(7), 2011; pystoi 0.4.1 `stoi(reference, reconstruction, rate)`, equal to 1e-6.

    Args:
        aligned: Remove the delay first; the column is then `stoi_aligned`.
    """

    aligned: bool = False

    undefined: ClassVar[Mapping[str, str]] = {"stoi": _UNDEFINED, "stoi_aligned": _UNDEFINED}

    @property
    def spec(self) -> MetricSpec:
        """Column and settings."""
        return _spec("stoi", self.aligned, "Short-time objective intelligibility", {"clip_db": -15})

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return `stoi`, (B,) float64, of a batch (B, C, T) of sound.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            UsageError: Shapes differ or the sample rate is missing.
        """
        name = self.spec.name
        return {name: _joined([_stoi(*bands) for bands in _bands(name, sample, self.aligned)])}


@dataclass(frozen=True)
class Estoi:
    """Extended STOI: spectral correlations of 30-frame segments normalised over time and bands; higher is better.

    The front end is that of `stoi`; no clipping. Where a band or a frame of a segment is constant, its correlation is
    undefined: here it counts 0, where pystoi fills in noise of 2e-16 from an unseeded generator and correlates that
    (digital silence only). Undefined rows and delays are as in `stoi`.

    Reference: Jensen and Taal, "An Algorithm for Predicting the Intelligibility of Speech Masked by Modulated Noise
    Maskers", IEEE TASLP 24(11), 2016; pystoi 0.4.1 `stoi(reference, reconstruction, rate, extended=True)`, to 1e-6.

    Args:
        aligned: Remove the delay first; the column is then `estoi_aligned`.
    """

    aligned: bool = False

    undefined: ClassVar[Mapping[str, str]] = {"estoi": _UNDEFINED, "estoi_aligned": _UNDEFINED}

    @property
    def spec(self) -> MetricSpec:
        """Column and settings."""
        return _spec("estoi", self.aligned, "Extended short-time objective intelligibility", {"constant_rows": 0})

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return `estoi`, (B,) float64, of a batch (B, C, T) of sound; raises as `Stoi` does."""
        name = self.spec.name
        return {name: _joined([_estoi(*bands) for bands in _bands(name, sample, self.aligned)])}


def stoi_aligned() -> Stoi:
    """Build STOI after removing each row's delay."""
    return Stoi(aligned=True)


def estoi_aligned() -> Estoi:
    """Build ESTOI after removing each row's delay."""
    return Estoi(aligned=True)


def _spec(base: str, aligned: bool, about: str, more: Mapping[str, object]) -> MetricSpec:
    name, summary = (f"{base}_aligned", f"{about}, each row's delay removed") if aligned else (base, about)
    return MetricSpec(
        name=name,
        modalities=("audio",),
        summary=summary,
        reference=_REFERENCE,
        protocol={
            "rate": RATE,
            "resampler": "octave: Kaiser window, 60 dB rejection (pystoi)",
            "channels": MONO,
            "frame": [FRAME, HOP, N_FFT],
            "bands": [BANDS, LOWEST_HZ],
            "segment": SEGMENT,
            "silent_frames": f"{DYNAMIC_RANGE_DB:g} dB below the reference's loudest, removed from both",
            "too_short": "undefined",
            **({"alignment": f"integer samples, at most {MAX_DELAY_MS} ms"} if aligned else {}),
            **more,
        },
        columns=(Column(name, "", True, summary, 1e-6, 4),),
    )


Bands = tuple[Tensor, Tensor, Tensor]


def _bands(metric: str, sample: Sample, aligned: bool) -> list[Bands]:
    """Return blocks of rows: third-octave magnitudes of both sides (b, 15, frames), and how many frames count (b,).

    A block is one row on the CPU, so that no bit depends on the batch; the whole batch elsewhere, unless rows lose their
    delays and so their common length. STOI and ESTOI share it.
    """
    rate = checked_rate(metric, sample)
    place = "stoi: bands, aligned" if aligned else "stoi: bands"
    kept = sample.memo.get(place)
    if kept is None:
        rows = sample.reference.shape[0]
        alone = aligned or sample.reference.device.type in {"cpu", "mps"}
        step = 1 if alone else max(1, rows)
        blocks = []
        for i in range(0, rows, step):
            x, y = (_mono(side[i : i + step]) for side in (sample.reference, sample.reconstruction))
            blocks.append(_third_octaves(*(_aligned(x, y, rate) if aligned else (x, y)), rate))
        kept = sample.memo[place] = blocks
    return cast("list[Bands]", kept)


def _aligned(x: Tensor, y: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """Cut (1, T) signals to what they share once the reconstruction's delay is removed."""
    samples = x.shape[-1]
    lag = estimate_delay(x - x.mean(), y - y.mean(), min(round(MAX_DELAY_MS * rate / 1000), samples // 2))
    return (x[:, : samples - lag], y[:, lag:]) if lag >= 0 else (x[:, -lag:], y[:, : samples + lag])


def _joined(blocks: list[Tensor]) -> Tensor:
    return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.float64)


def _mono(x: Tensor) -> Tensor:
    x = x.detach().cpu() if x.device.type == "mps" else x.detach()  # mps has no float64
    return x.to(torch.float64, copy=True).mean(dim=1)


def _third_octaves(x: Tensor, y: Tensor, rate: int) -> tuple[Tensor, Tensor, Tensor]:
    x, y = to_10_khz(x, rate), to_10_khz(y, rate)
    silent = ~x.any(dim=1)
    taper = torch.from_numpy(np.hanning(FRAME + 2)[1:-1]).to(x.device)
    x, y = (_frames(signal) * taper for signal in (x, y))
    energy = 20 * torch.log10(torch.linalg.vector_norm(x, dim=-1) + EPS)
    loudest = energy.amax(dim=1, keepdim=True) if energy.shape[1] else energy
    kept = loudest - DYNAMIC_RANGE_DB - energy < 0
    count = kept.sum(dim=1)
    order = torch.argsort(kept.to(torch.int8), dim=1, descending=True, stable=True)[:, : int(count.max()), None]
    live = torch.gather(kept, 1, order[..., 0])[..., None]
    bank = _third_octave_bank().to(x.device)
    sides = []
    for frames in (x, y):
        left = torch.gather(frames, 1, order.expand(-1, -1, FRAME)) * live
        overlapped = torch.nn.functional.pad(left[..., :HOP], (0, 0, 0, 1)) + torch.nn.functional.pad(
            left[..., HOP:], (0, 0, 1, 0)
        )
        spectra = torch.fft.rfft(_frames(overlapped.flatten(1)) * taper, N_FFT)
        power = spectra.real.square() + spectra.imag.square()
        sides.append((bank @ power.transpose(1, 2)).sqrt())
    return sides[0], sides[1], torch.where(silent, 0, count - 1)


def _frames(x: Tensor) -> Tensor:
    """Cut (B, T) into frames (B, n, 256), hop 128; as pystoi, a last frame that ends with the signal is left out."""
    n = max(0, -(-(x.shape[-1] - FRAME) // HOP))
    return x.unfold(-1, FRAME, HOP)[:, :n] if n else x.new_zeros((x.shape[0], 0, FRAME))


def _segments(bands: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return segments (B, S, 15, 30), which of them are the row's own (B, S), and their number (B,)."""
    number = (frames - SEGMENT + 1).clamp(min=0)
    if bands.shape[-1] < SEGMENT:
        return bands.new_zeros((bands.shape[0], 0, BANDS, SEGMENT)), number.new_zeros((bands.shape[0], 0)), number
    segments = bands.unfold(-1, SEGMENT, 1).transpose(1, 2)
    own = torch.arange(segments.shape[1], device=bands.device) < number[:, None]
    return segments, own, number


def _mean(values: Tensor, own: Tensor, number: Tensor) -> Tensor:
    """Average (B, S) over a row's own segments; NaN where it has none."""
    total = torch.where(own.bool(), values, 0.0).sum(dim=1)
    return torch.where(number > 0, total / number.clamp(min=1), math.nan).cpu()


def _stoi(x_bands: Tensor, y_bands: Tensor, frames: Tensor) -> Tensor:
    x, own, number = _segments(x_bands, frames)
    y, _, _ = _segments(y_bands, frames)
    y = torch.minimum(y * (_norm(x) / (_norm(y) + EPS)), x * (1 + CLIP))
    x, y = (side - side.mean(dim=-1, keepdim=True) for side in (x, y))
    x, y = (side / (_norm(side) + EPS) for side in (x, y))
    return _mean((x * y).sum(dim=-1).mean(dim=-1), own, number)


def _estoi(x_bands: Tensor, y_bands: Tensor, frames: Tensor) -> Tensor:
    x, own, number = _segments(x_bands, frames)
    y, _, _ = _segments(y_bands, frames)
    for axis in (-1, -2):
        x, y = (_standardised(side, axis) for side in (x, y))
    return _mean((x * y).sum(dim=-1).sum(dim=-1) / SEGMENT, own, number)


def _standardised(x: Tensor, axis: int) -> Tensor:
    """Remove the mean along `axis` and divide by the norm; constant lines become 0."""
    centred = x - x.mean(dim=axis, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=axis, keepdim=True)
    flat = norm <= 1e-12 * torch.linalg.vector_norm(x, dim=axis, keepdim=True)
    return torch.where(flat, 0.0, centred / torch.where(flat, 1.0, norm))


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm


@lru_cache(maxsize=1)
def _third_octave_bank() -> Tensor:
    """Return which bins belong to which band, (15, 257) of 0 and 1: edges at the bins nearest to centre · 2^(±1/6)."""
    bins = np.linspace(0, RATE, N_FFT + 1)[: N_FFT // 2 + 1]
    bank = np.zeros((BANDS, bins.size))
    for band in range(BANDS):
        low, high = (int(np.argmin((bins - LOWEST_HZ * 2 ** ((2 * band + side) / 6)) ** 2)) for side in (-1, 1))
        bank[band, low:high] = 1
    return torch.from_numpy(bank)


def to_10_khz(x: Tensor, rate: int) -> Tensor:
    """Resample (B, T) float64 as Octave's `resample(x, 10000, rate)` does, which pystoi and the MATLAB original use.

    Returns:
        (B, ceil(T * 10000 / rate)); `x` itself at 10 kHz.
    """
    common = math.gcd(RATE, rate)
    up, down = RATE // common, rate // common
    if up == down or x.shape[-1] == 0:
        return x
    filters = _octave_filters(up, down)
    frames = -(-x.shape[-1] // down)
    left = max(0, -min(block.first for block in filters))
    reach = max(block.first + (frames - 1) * down + block.weights.shape[0] for block in filters)
    padded = torch.nn.functional.pad(x, (left, max(0, reach - x.shape[-1])))
    out = x.new_empty((x.shape[0], frames, up))
    step = max(1, _MOST_VALUES // max(block.weights.shape[0] for block in filters))
    for block in filters:
        weights = block.weights.to(x.device)
        windows = padded[:, left + block.first :].unfold(-1, weights.shape[0], down)
        phases = slice(block.phase, block.phase + weights.shape[1])
        for begin in range(0, frames, step):
            end = min(frames, begin + step)
            out[:, begin:end, phases] = windows[:, begin:end].contiguous() @ weights
    return out.flatten(1)[:, : -(-x.shape[-1] * up // down)]


@dataclass(frozen=True)
class _Phases:
    """Filters of neighbouring phases of a polyphase resampler as one matrix: (inputs, phases)."""

    phase: int
    first: int
    weights: Tensor


@lru_cache(maxsize=8)
def _octave_filters(up: int, down: int) -> tuple[_Phases, ...]:
    """Return Octave's filter, a sinc cut at half the lower rate under a Kaiser window, by phases.

    Output m of phase r = m mod up takes input k with weight h[m · down - k · up + half]. Phases are blocked so that no
    matrix is more than half zeros.
    """
    cutoff = 1 / (2 * max(up, down))
    rejection = 60.0
    half = math.ceil((rejection - 8) / (28.714 * cutoff / 10))
    t = np.arange(-half, half + 1)
    h = 2 * up * cutoff * np.sinc(2 * cutoff * t) * np.kaiser(2 * half + 1, 0.1102 * (rejection - 8.7))
    h *= up / h.sum()
    taps = 2 * half // up + 1
    together = max(1, taps * up // down)
    blocks = []
    for phase in range(0, up, together):
        moments = np.arange(phase, min(up, phase + together)) * down
        first = -((half - moments[0]) // up)
        inputs = np.arange(first, (moments[-1] + half) // up + 1)
        at = moments - inputs[:, None] * up + half
        weights = np.where((at >= 0) & (at <= 2 * half), h[np.clip(at, 0, 2 * half)], 0.0)
        blocks.append(_Phases(phase, int(first), torch.from_numpy(weights)))
    return tuple(blocks)
