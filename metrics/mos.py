"""Predicted opinion scores of ONNX models that ride inside the wheel of `speechmos`: DNSMOS P.808 and P.835, PLCMOS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tokbench.errors import Undefined, UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import FloatArray
from tokbench.weights import file_digest

from ._optional import optional
from ._packaged import Packaged, digest, require
from ._speech import MONO, RATE, mono_numpy

Array = npt.NDArray[np.float64]

P808 = Packaged("dnsmos", "speechmos", "dnsmos_models/model_v8.onnx", "audio")
P835 = Packaged("dnsmos", "speechmos", "dnsmos_models/sig_bak_ovr.onnx", "audio")
PLC = Packaged("plcmos", "speechmos", "plcmos_models/plcmos_v2.onnx", "audio")

WINDOW_SECONDS = 9.01
"""Length of the windows DNSMOS sees; the next one starts a second later."""

RATERS = 15
"""Rater embeddings PLCMOS is averaged over."""

_CHUNK = 8
_MELS, _FRAME, _HOP = 120, 321, 160

_FIT: Mapping[str, tuple[float, ...]] = {
    "sig": (-0.08397278, 1.22083953, 0.0052439),
    "bak": (-0.13166888, 1.60915514, -0.39604546),
    "ovrl": (-0.06766283, 1.11546468, 0.04602535),
}
"""Polynomials, highest power first, that map the network's P.835 outputs to opinion scores."""


@dataclass(frozen=True)
class Dnsmos:
    """DNSMOS of the reconstruction, without a reference: P.835 (speech, background, overall) and P.808.

    16 kHz, channels averaged, **the level as it is**: P.835 depends on the level (the same file reads about 0.2 lower when
    normalised to its peak, 0.5 lower at -20 dB), and tables made with a peak normalisation (VERSA's) do not compare. P.808
    does not: its spectrum is relative to its own maximum. Windows of 9.01 s, one a second, scored by the network, mapped by
    the published polynomials and averaged; a shorter clip is doubled until it is long enough, what lies behind the last
    whole window is not heard. As in the published script, windows that its float arithmetic makes one sample short (the
    8th to the 24th of a long clip, and a few later ones) are left out: the numbers are those of `speechmos`.

    Trained on noisy and enhanced speech. For music and sound effects it means nothing.

    Reference: Reddy et al., "DNSMOS P.835", ICASSP 2022, arXiv 2110.01763; `speechmos.dnsmos.run` 0.0.1.1.
    """

    undefined: ClassVar[Mapping[str, str]] = {}

    @cached_property
    def spec(self) -> MetricSpec:
        """Columns and settings; the models' sha256 are among them."""
        return MetricSpec(
            name="dnsmos",
            modalities=("audio",),
            summary="DNSMOS P.835 and P.808 of the reconstruction, no reference",
            reference="Reddy et al. 2022, arXiv 2110.01763; speechmos 0.0.1.1 dnsmos.run",
            protocol={
                "rate": RATE,
                "channels": MONO,
                "level": "as it is",
                "windows": "9.01 s, hop 1 s, shorter clips doubled, short windows of the published script left out",
                "weights": {"p808": digest(P808), "p835": digest(P835)},
            },
            columns=(
                Column("dnsmos_ovrl", "MOS", True, "P.835 overall quality, 1 to 5, raw level", 1e-3, 3),
                Column("dnsmos_sig", "MOS", True, "P.835 quality of the speech signal, 1 to 5", 1e-3, 3),
                Column("dnsmos_bak", "MOS", True, "P.835 quality of the background, 1 to 5", 1e-3, 3),
                Column("dnsmos_p808", "MOS", True, "P.808 overall quality, 1 to 5, whatever the level", 1e-3, 3),
            ),
            extra="audio",
        )

    def row(
        self,
        reference: FloatArray,  # noqa: ARG002
        reconstruction: FloatArray,
        sample_rate: int | None,
    ) -> Mapping[str, float]:
        """Return the four scores of one row (C, T).

        Raises:
            Undefined: The row is empty.
            UsageError: The sample rate is missing.
            MissingExtra: speechmos or onnxruntime is not installed.
        """
        whole = windows(_sound("dnsmos", reconstruction, sample_rate))
        primary, p808 = _session(P835), _session(P808)
        raw = np.concatenate([primary.run(None, {"input_1": part})[0] for part in _chunks(whole)]).astype(np.float64)
        spectra = np.stack([_log_mel(window[:-_HOP]) for window in whole])
        general = np.concatenate([p808.run(None, {"input_1": part})[0] for part in _chunks(spectra)])
        scores = {name: np.polyval(_FIT[name], raw[:, k]) for k, name in enumerate(("sig", "bak", "ovrl"))}
        scores["p808"] = general[:, 0].astype(np.float64)
        return {f"dnsmos_{name}": math.fsum(values) / len(values) for name, values in scores.items()}


def windows(wave: FloatArray) -> FloatArray:
    """Cut (T,) at 16 kHz into the windows DNSMOS scores: (n, 144160), n at least 1."""
    size = int(WINDOW_SECONDS * RATE)
    while len(wave) < size:
        wave = np.append(wave, wave)
    count = int(np.floor(len(wave) / RATE) - WINDOW_SECONDS) + 1
    # The published script's own arithmetic, in whose floats some windows lack a sample.
    spans = [(k * RATE, int((k + WINDOW_SECONDS) * RATE)) for k in range(count)]
    return np.stack([wave[start:stop] for start, stop in spans if stop - start >= size])


def _log_mel(wave: FloatArray) -> FloatArray:
    """Return the input of P.808: (frames, 120) decibels of 120 mel bands under their maximum, as (dB + 40) / 40."""
    padded = np.pad(wave.astype(np.float64), _FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FRAME) / _FRAME)
    power = np.abs(np.fft.rfft(frames * taper)) ** 2 @ _mel_bank()
    level = 10 * np.log10(np.maximum(power, 1e-10))
    level -= level.max()
    out: FloatArray = ((np.maximum(level, -80.0) + 40) / 40).astype(np.float32)
    return out


@cache
def _mel_bank() -> Array:
    from .spectral import mel_filterbank

    bank: Array = mel_filterbank(RATE, _FRAME, _MELS).numpy().T
    return bank


@dataclass(frozen=True)
class Plcmos:
    """PLCMOS v2 of the reconstruction, without a reference: how speech sounds where packets were lost and concealed.

    16 kHz, channels averaged, level as it is, the whole clip at once (log spectra of 32 ms, hop 16 ms). The network also
    takes a rater: the published code draws fifteen at random each time it is called, so its score of a file changes from
    call to call. Here every row is heard by the same fifteen, drawn once from `seed`, so scores are repeatable and
    differences between tokenizers are not the raters'.

    Args:
        seed: Of the raters.

    Reference: Diener et al., "PLCMOS", Interspeech 2023, arXiv 2305.15127; `speechmos.plcmos.run` 0.0.1.1.
    """

    seed: int = 0

    undefined: ClassVar[Mapping[str, str]] = {}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the model's sha256 is one of them."""
        return MetricSpec(
            name="plcmos",
            modalities=("audio",),
            summary="PLCMOS v2 of the reconstruction, no reference, fifteen fixed raters",
            reference="Diener et al. 2023, arXiv 2305.15127; speechmos 0.0.1.1 plcmos.run",
            protocol={
                "rate": RATE,
                "channels": MONO,
                "level": "as it is",
                "raters": RATERS,
                "seed": self.seed,
                "weights": digest(PLC),
            },
            columns=(Column("plcmos", "MOS", True, "PLCMOS v2, 1 to 5", 1e-3, 3),),
            extra="audio",
        )

    def row(
        self,
        reference: FloatArray,  # noqa: ARG002
        reconstruction: FloatArray,
        sample_rate: int | None,
    ) -> Mapping[str, float]:
        """Return the score of one row (C, T).

        Raises:
            Undefined: The row is empty.
            UsageError: The sample rate is missing.
            MissingExtra: speechmos or onnxruntime is not installed.
        """
        spectra = _log_power(_sound("plcmos", reconstruction, sample_rate))[None, None]
        panel, session = raters(self.seed), _session(PLC)
        heard = [session.run(None, {"degraded_audio": spectra, "rater_embed": rater[None]})[0] for rater in panel]
        return {"plcmos": math.fsum(float(np.asarray(score).item()) for score in heard) / len(heard)}


def raters(seed: int) -> FloatArray:
    """Return the embeddings of the fifteen raters, (15, 64)."""
    drawn: FloatArray = np.random.RandomState(seed).normal(size=(RATERS, 64)).astype(np.float32)
    return drawn


def _log_power(wave: FloatArray) -> FloatArray:
    """Return the input of PLCMOS: (frames, 257) natural logarithms of power over 20, Hamming windows of 512, hop 256."""
    size, hop = 512, 256
    frames = math.ceil((len(wave) + hop) / hop)
    padded = np.zeros((frames - 1) * hop + size)
    padded[hop : hop + len(wave)] = wave
    blocks = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    power = np.abs(np.fft.rfft(blocks * np.hamming(size + 1)[:-1])) ** 2
    heard = power > 0
    if not heard.any():
        logs = np.full_like(power, -80 / 10 * math.log(10))
    else:
        logs = np.log(np.where(heard, power, power[heard].min()))
        logs[~heard] += -120 / 10 * math.log(10)
    out: FloatArray = (logs / 20).astype(np.float32)
    return out


def _sound(metric: str, row: FloatArray, sample_rate: int | None) -> FloatArray:
    if not sample_rate or sample_rate < 0:
        raise UsageError(f"{metric} needs the sample rate in Hz; got {sample_rate!r}")
    if row.shape[-1] == 0:
        raise Undefined(f"{metric}: the clip holds no sample")
    return mono_numpy(row, sample_rate)


def _chunks(x: FloatArray) -> list[FloatArray]:
    return [x[start : start + _CHUNK] for start in range(0, len(x), _CHUNK)]


def _session(model: Packaged) -> Any:
    path = require(model)
    return _load(path, file_digest(path))


@lru_cache(maxsize=3)
def _load(path: Path, _sha256: str) -> Any:
    """Open an ONNX model for one thread; kept for the process, by the file's content."""
    onnxruntime = optional("onnxruntime", path.name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
