"""PESQ of speech, wideband and narrowband, by the reference code of ITU-T P.862 in the package `pesq`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokbench.errors import Undefined, UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import FloatArray

from ._optional import optional
from ._signal import RESAMPLER, Signal, mono_pair
from ._speech import MONO

_REFERENCE = "ITU-T P.862 (2001), P.862.1, P.862.2; package pesq 0.0.4, no Corrigendum 2"
_MOST_UTTERANCES = 40
_ALWAYS_SAFE_SECONDS = 18.0


@dataclass(frozen=True)
class PesqWb:
    """Wideband PESQ (P.862.2) at 16 kHz, MOS-LQO of 1.04 to 4.64; higher is better.

    `pesq(16000, reference, reconstruction, "wb")` of one row: channels averaged, brought to 16 kHz by the project's
    resampler, each row at its own length and never zero-padded (padding moves PESQ: it adds silence that scores well).
    The package divides both signals by their joint peak and aligns them itself, so a gain and a delay of some tens of
    milliseconds count for nothing.

    Rows without a value, counted and never imputed: less than a quarter of a second; no utterance found in the
    reference; a silent reconstruction; clips of more than 18 s in which about 40 utterances or more are found, because
    the reference code has room for 50, checks nothing, and gives wrong numbers or crashes beyond. Suites of less than
    16 kHz are not applicable.

    The reference code's own licence allows the evaluation of it and of implementations; other use needs a licence of
    its owners.

    Reference: ITU-T P.862.2 (2007); package pesq 0.0.4 (P.862 without Corrigendum 2).
    """

    undefined: ClassVar[Mapping[str, str]] = {}

    @property
    def spec(self) -> MetricSpec:
        """Column and settings."""
        return _spec("pesq_wb", "wb", 16_000, "PESQ wideband (P.862.2), MOS-LQO")

    def row(self, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> dict[str, float]:
        """Return `pesq_wb` of (C, T) signals.

        Raises:
            MissingExtra: The package `pesq` is not installed.
            NotApplicable: The rate is below 16 kHz.
            Undefined: PESQ has no value for this row; the message says why.
            UsageError: Shapes differ or the rate is missing.
        """
        x, y, rate = mono_pair("pesq_wb", reference, reconstruction, sample_rate, 16_000, at_least=16_000)
        return {"pesq_wb": _pesq("pesq_wb", x, y, rate, "wb")}


@dataclass(frozen=True)
class PesqNb:
    """Narrowband PESQ (P.862 mapped by P.862.1), MOS-LQO of 1.02 to 4.55; higher is better.

    `pesq(rate, reference, reconstruction, "nb")`, otherwise as `pesq_wb`. `rate` is 16,000 by default, as codec papers
    that print PESQ-NB call it; 8,000 is the Recommendation's own, gives other numbers, and has its own column
    `pesq_nb_8k`.

    Args:
        rate: 16000 or 8000 Hz: what both signals are brought to.

    Raises:
        UsageError: Another rate.

    Reference: ITU-T P.862 (2001), P.862.1; package pesq 0.0.4 (P.862 without Corrigendum 2).
    """

    rate: int = 16_000

    undefined: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        if self.rate not in (8_000, 16_000):
            raise UsageError(f"pesq_nb: rate is 8000 or 16000 Hz; got {self.rate!r}")

    @property
    def spec(self) -> MetricSpec:
        """Column and settings."""
        name = "pesq_nb" if self.rate == 16_000 else "pesq_nb_8k"
        return _spec(name, "nb", self.rate, f"PESQ narrowband (P.862.1) at {self.rate // 1000} kHz, MOS-LQO")

    def row(self, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> dict[str, float]:
        """Return `pesq_nb` (or `pesq_nb_8k`) of (C, T) signals; raises as `PesqWb.row` does."""
        name = self.spec.name
        x, y, rate = mono_pair(name, reference, reconstruction, sample_rate, self.rate, at_least=8_000)
        return {name: _pesq(name, x, y, rate, "nb")}


def _spec(name: str, mode: str, rate: int, summary: str) -> MetricSpec:
    return MetricSpec(
        name=name,
        modalities=("audio",),
        summary=summary,
        reference=_REFERENCE,
        extra="audio",
        protocol={
            "mode": mode,
            "rate": rate,
            "channels": MONO,
            "resampler": RESAMPLER,
            "arguments": "(reference, reconstruction), both divided by the joint peak",
            "length": "each row's own, no padding",
            "most_utterances": _MOST_UTTERANCES,
        },
        columns=(Column(name, "MOS", True, summary, 1e-3, 3),),
    )


def _pesq(metric: str, reference: Signal, reconstruction: Signal, rate: int, mode: str) -> float:
    package = optional("pesq", metric)
    if not reconstruction.any():
        raise Undefined(f"{metric}: the reconstruction is digital silence")
    if reference.size > _ALWAYS_SAFE_SECONDS * rate and (found := utterances(reference, rate)) > _MOST_UTTERANCES:
        raise Undefined(
            f"{metric}: about {found} utterances in the reference; the reference code is only right below 50: "
            "cut the recording (`seconds` of the suite's prepare step)"
        )
    try:
        value = float(package.pesq(rate, reference, reconstruction, mode))
    except package.BufferTooShortError:
        raise Undefined(f"{metric}: shorter than a quarter of a second") from None
    except package.NoUtterancesError:
        raise Undefined(f"{metric}: no utterance found in the reference") from None
    except (ValueError, package.PesqError) as error:
        raise Undefined(f"{metric}: PESQ failed: {error}") from None
    if not math.isfinite(value):
        raise Undefined(f"{metric}: PESQ gave {value}")
    return value


def utterances(reference: Signal, rate: int) -> int:
    """Estimate how many utterances P.862's activity detector finds: stretches of 200 ms or more, 200 ms apart or more.

    Powers of 4 ms windows above 1.001 (mean + 2 standard deviations) of those below, found in twelve steps, as P.862
    describes it; without its level and band filters, hence an estimate. Zero where nothing is above.
    """
    window = rate // 250
    whole = reference[: reference.size // window * window]
    if not whole.any():
        return 0
    power = np.square(whole - whole.mean()).reshape(-1, window).mean(1)
    power = np.maximum(power, 1e-4 * power.max())
    threshold = power.mean()
    for _ in range(12):
        below = power[power <= threshold]
        threshold = 1.001 * (below.mean() + 2 * below.std()) if below.size else 0.0
    edges = np.flatnonzero(np.diff(np.concatenate(([0], (power > threshold).astype(np.int8), [0]))))
    starts, ends = edges[::2], edges[1::2]
    long_enough = ends - starts > 4
    starts, ends = starts[long_enough], ends[long_enough]
    if starts.size == 0:
        return 1
    apart = starts[1:] - ends[:-1] > 50
    starts, ends = starts[np.concatenate(([True], apart))], ends[np.concatenate((apart, [True]))]
    return int(np.count_nonzero(ends - starts + 4 >= 50))
