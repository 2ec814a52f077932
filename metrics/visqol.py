"""ViSQOL: an opinion score from gammatone similarities, three published variants under three names."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

from tokbench.errors import MissingExtra, Undefined, install_command
from tokbench.spec import Column, MetricSpec
from tokbench.types import FloatArray

from ._optional import optional
from ._packaged import carried_digest
from ._signal import RESAMPLER, mono_pair, refuse_unheard
from ._speech import MONO

Mapper = Literal["svr", "lattice", "polynomial"]

SVR = "model/libsvm_nu_svr_model.txt"
LATTICE = "model/lattice_tcditugenmeetpackhref_ls2_nl60_lr12_bs2048_learn.005_ep2400_train1_7_raw.tflite"
_REFERENCE = "Chinen et al. 2020, arXiv 2004.09584; google/visqol v3, visqol-python 3.8.0"
_SHORTEST_SECONDS = 0.5


@dataclass(frozen=True)
class VisqolAudio:
    """ViSQOL v3 in audio mode, MOS-LQO of 1 to about 4.73; higher is better.

    48 kHz (resampled there: a suite of less has nothing above half its own rate on either side), channels averaged,
    32 gammatone bands, mapped by the support vector regression `libsvm_nu_svr_model.txt` of the C++ default. Global
    alignment and patch realignment are on, so a delay hardly counts; levels are matched, so a gain does not. Audiocraft
    maps with another model and swaps the arguments; its numbers do not compare.

    Undefined for rows of less than about a second, which hold no whole patch, and for silence.

    Reference: Chinen et al., "ViSQOL v3", QoMEX 2020, arXiv 2004.09584; visqol-python 3.8.0, `mode="audio"`.
    """

    undefined: ClassVar[Mapping[str, str]] = {}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the model's sha256 is one of them."""
        return _spec("visqol_audio", "ViSQOL v3, audio mode at 48 kHz", 48_000, "libsvm_nu_svr_model.txt", SVR)

    def row(self, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> dict[str, float]:
        """Return `visqol_audio` of (C, T) signals.

        Raises:
            MissingExtra: visqol-python is not installed.
            Undefined: Too short, silent, or ViSQOL itself refused; the message says which.
            UsageError: Shapes differ or the rate is missing.
        """
        return _score("visqol_audio", reference, reconstruction, sample_rate, 48_000, "svr")


@dataclass(frozen=True)
class VisqolSpeechLattice:
    """ViSQOL v3 in speech mode with the deep lattice mapper, the default of the C++ program; higher is better.

    16 kHz, channels averaged, 21 bands, patches where speech is found, mapped by the lattice network (tau 0.5) in the
    wheel. **The mapper decides**: the polynomial one gives 4.53 where this gives 3.24. Otherwise as `visqol_audio`;
    suites of less than 16 kHz are not applicable.

    Reference: Chinen et al., arXiv 2004.09584; visqol-python 3.8.0, `mode="speech", use_lattice_model=True`.
    """

    undefined: ClassVar[Mapping[str, str]] = {}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the model's sha256 is one of them."""
        return _spec(
            "visqol_speech_lattice", "ViSQOL v3, speech mode, lattice mapper", 16_000, "deep lattice, tau 0.5", LATTICE
        )

    def row(self, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> dict[str, float]:
        """Return `visqol_speech_lattice` of (C, T) signals; raises as `VisqolAudio.row` does."""
        return _score("visqol_speech_lattice", reference, reconstruction, sample_rate, 16_000, "lattice")


@dataclass(frozen=True)
class VisqolSpeechPoly:
    """ViSQOL v3 in speech mode with the exponential fit of `--use_lattice_model=false`, scaled to 5; higher is better.

    What a ViSQOL before 3.3, or one without the lattice's runtime, prints; one to two points above the lattice. Otherwise
    as `visqol_speech_lattice`.

    Reference: Chinen et al., arXiv 2004.09584; visqol-python 3.8.0, `mode="speech", use_lattice_model=False`.
    """

    undefined: ClassVar[Mapping[str, str]] = {}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings."""
        return _spec(
            "visqol_speech_poly", "ViSQOL v3, speech mode, polynomial mapper", 16_000, "exponential fit, scaled to 5"
        )

    def row(self, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> dict[str, float]:
        """Return `visqol_speech_poly` of (C, T) signals; raises as `VisqolAudio.row` does."""
        return _score("visqol_speech_poly", reference, reconstruction, sample_rate, 16_000, "polynomial")


def _spec(name: str, summary: str, rate: int, mapper: str, model: str = "") -> MetricSpec:
    return MetricSpec(
        name=name,
        modalities=("audio",),
        summary=summary,
        reference=_REFERENCE,
        extra="audio",
        protocol={
            "rate": rate,
            "resampler": RESAMPLER,
            "channels": MONO,
            "mapper": mapper,
            "arguments": "(reference, reconstruction)",
            "search_window": 60,
            "alignment": "global and per patch",
            **({"weights": carried_digest("visqol", model)} if model else {}),
        },
        columns=(Column(name, "MOS", True, summary, 5e-3, 3),),
    )


def _score(
    metric: str, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None, rate: int, mapper: Mapper
) -> dict[str, float]:
    least = 16_000 if mapper != "svr" else 1
    x, y, _ = mono_pair(metric, reference, reconstruction, sample_rate, rate, at_least=least)
    measure = _api(metric, mapper)
    refuse_unheard(metric, x, y, rate, _SHORTEST_SECONDS)
    try:
        value = float(measure.measure_from_arrays(x, y, rate).moslqo)
    except IndexError:
        raise Undefined(f"{metric}: ViSQOL finds no patch of speech in the reference (it needs about 0.7 s)") from None
    except ValueError as error:
        raise Undefined(f"{metric}: ViSQOL refused: {error}") from None
    if not math.isfinite(value):
        raise Undefined(f"{metric}: ViSQOL gave {value}")
    return {metric: value}


@lru_cache(maxsize=3)
def _api(metric: str, mapper: Mapper) -> Any:
    numba = optional("numba", metric)  # a minute for a second of sound without it
    numba.set_num_threads(1)  # rows are scored in processes of one core each
    api = optional("visqol", metric, package="visqol-python").VisqolApi()
    if mapper == "svr":
        api.create(mode="audio")
        return api
    try:
        with _quiet():
            api.create(mode="speech", use_lattice_model=mapper == "lattice")
    except ImportError as error:
        needed = f"{metric} needs the package visqol-python[lattice,accel]"
        raise MissingExtra(needed, install_command("audio")) from error
    return api


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the lattice's runtime prints to the standard error of the process, past Python's."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
