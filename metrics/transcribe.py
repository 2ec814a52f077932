"""Word and character error rates of what a recogniser hears in the reconstruction, against the transcript or the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample, readings

from ._listeners import HUBERT, WHISPER, Listener, PocketSphinx, hubert, require_jiwer, whisper
from ._speech import MONO, RATE, mono_rows

_NO_TRANSCRIPT = "the dataset carries no transcript of this file (annotations: text)"

_UNITS = ("words", "chars")
_PAIRS: Mapping[str, tuple[str, str]] = {
    "": ("truth", "heard"),
    "d": ("original", "heard"),
    "floor_": ("truth", "original"),
}
"""Prefix of a column -> which text is compared with which; `original` is what is heard in the reference."""


@dataclass(frozen=True)
class ErrorRates:
    """Word and character error rates of the reconstruction, through one recogniser; lower is better, 1 is 100 %.

    With the recogniser's slug r:

    | column | errors of what is heard in ... | against |
    |---|---|---|
    | `wer_r`, `cer_r` | the reconstruction | the transcript of the dataset (annotation `text`) |
    | `dwer_r`, `dcer_r` | the reconstruction | what is heard in the reference: a pseudo ground truth |
    | `floor_wer_r` | the reference | the transcript: what the recogniser itself gets wrong |

    Rates are of the corpus: all substitutions, deletions and insertions over all words (characters, spaces included) of the
    text compared with, never a mean of files; the interval is a bootstrap over files. Where a dataset carries no transcript
    the first and the last are undefined, and nothing takes their place. A recogniser's slips between two files that sound
    alike can exceed the differences between tokenizers: read the interval. Insertions can take a rate above 1.

    16 kHz, channels averaged, level as it is; each clip on its own. Both sides of a comparison go through the recogniser's
    text normalisation, which its protocol names. What was heard in references is kept for the next tokenizer; every
    sentence stays in the rows.

    Args:
        listener: The recogniser.
    """

    listener: Listener

    @property
    def undefined(self) -> Mapping[str, str]:
        """Say why a row has no count."""
        return {
            self._count(prefix, unit, what): _NO_TRANSCRIPT
            for prefix in ("", "floor_")
            for unit in _UNITS
            for what in ("errors", unit)
        }

    @cached_property
    def spec(self) -> MetricSpec:
        """Columns and settings; the weights are among them."""
        return MetricSpec(
            name=self.listener.name,
            modalities=("audio",),
            summary=f"Word and character error rates: {self.listener.about}",
            reference=self.listener.reference,
            protocol={"rate": RATE, "channels": MONO, "counts": "jiwer, corpus level", **self.listener.settings()},
            columns=(*self._rates(), *self._counts()),
            extra=self.listener.extra,
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        self.listener.fetch(offline=offline)

    def read(self, sample: Sample) -> Sequence[str]:
        """Return what is heard in each reference, as the recogniser writes it."""
        return [self._hear(wave) for wave in mono_rows(self.listener.name, sample, "reference")]

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return errors and lengths of a batch (B, C, T) of sound, (B,) float64 each.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            NotAvailable: A library or the weights are absent.
        """
        out: dict[str, list[float]] = {column.name: [] for column in self._counts()}
        for texts in self._texts(sample):
            for prefix, (against, said) in _PAIRS.items():
                for unit in _UNITS:
                    errors, length = _edits(texts[against], texts[said], unit)
                    out[self._count(prefix, unit, "errors")].append(errors)
                    out[self._count(prefix, unit, unit)].append(length)
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in out.items()}

    def details(self, sample: Sample) -> list[list[dict[str, str | int | float | bool | None]]]:
        """Return one record a row: the three normalised texts; the transcript is None where there is none."""
        return [[dict(texts)] for texts in self._texts(sample)]

    def _texts(self, sample: Sample) -> list[dict[str, str | None]]:
        memo: dict[Any, Any] = sample.memo
        place = ("texts", self.listener.name, self.listener.slug)
        if place not in memo:
            require_jiwer()
            normalise, rows = self.listener.normalise, []
            originals = readings(self, sample)
            heard = [self._hear(wave) for wave in mono_rows(self.listener.name, sample, "reconstruction")]
            truths = [note.get("text") for note in sample.annotations] or [None] * len(heard)
            for truth, original, said in zip(truths, originals, heard, strict=True):
                rows.append(
                    {
                        "truth": normalise(truth) if isinstance(truth, str) else None,
                        "original": normalise(original),
                        "heard": normalise(said),
                    }
                )
            memo[place] = rows
        found: list[dict[str, str | None]] = memo[place]
        return found

    def _hear(self, wave: Tensor) -> str:
        return self.listener.hear(wave) if len(wave) else ""

    def _count(self, prefix: str, unit: str, what: str) -> str:
        return f"{prefix}{'wer' if unit == 'words' else 'cer'}_{self.listener.slug}_{what}"

    def _rates(self) -> list[Column]:
        against = {"": "against the transcript", "d": "against what is heard in the reference",
                   "floor_": "of the reference itself, against the transcript"}  # fmt: skip
        return [
            Column(
                f"{prefix}{short}_{self.listener.slug}",
                "",
                None if prefix == "floor_" else False,
                f"{name} errors {text}, {self.listener.about}",
                1e-9,
                4,
                "corpus",
                level=prefix != "floor_",
                ratio=(self._count(prefix, unit, "errors"), self._count(prefix, unit, unit)),
            )
            for prefix, text in against.items()
            for short, unit, name in (("wer", "words", "Word"), ("cer", "chars", "Character"))
        ]

    def _counts(self) -> list[Column]:
        return [
            Column(self._count(prefix, unit, what), unit, None, f"{what} of the rate", 0.0, 0, level=False)
            for prefix in _PAIRS
            for unit in _UNITS
            for what in ("errors", unit)
        ]


def wer_whisper(*, model: str = WHISPER, language: str = "en", beams: int = 5, weights: str = "") -> ErrorRates:
    """Build the metric with a Whisper model.

    Args:
        model: Its id on the hub; the survey's tables use large-v3 with beam 5, audiocodecs' `openai/whisper-small` greedy.
        language: Spoken.
        beams: Of the search.
        weights: A folder laid out as the repository is.
    """
    return ErrorRates(whisper(model, language, beams, weights))


def wer_hubert(*, model: str = HUBERT, weights: str = "") -> ErrorRates:
    """Build the metric with a HuBERT CTC model, English.

    Args:
        model: Its id on the hub.
        weights: A folder laid out as the repository is.
    """
    return ErrorRates(hubert(model, weights))


def wer_pocketsphinx() -> ErrorRates:
    """Build the metric with PocketSphinx: a smoke test that runs anywhere, not a measurement."""
    return ErrorRates(PocketSphinx())


def _edits(against: str | None, said: str | None, unit: str) -> tuple[float, float]:
    """Return errors and the length compared with; NaN where there is no text to compare with."""
    if against is None or said is None:
        return math.nan, math.nan
    if not against:  # jiwer has no alignment to an empty text: all that was heard is inserted
        return float(len(said.split()) if unit == "words" else len(said)), 0.0
    jiwer = require_jiwer()
    if unit == "words":
        found, length = jiwer.process_words(against, said), len(against.split())
    else:
        found, length = jiwer.process_characters(against, said), len(against)
    return float(found.substitutions + found.deletions + found.insertions), float(length)
