"""The arithmetic of text scores: exact match, normalised edit distance, character and word errors, by scale bin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokbench.spec import Column

from ._ocr_words import OK
from ._optional import optional


@dataclass(frozen=True)
class Scored:
    """One word after reading. `reference` and `read` are None where it was not read there."""

    text: str
    status: str
    ratio: float | None
    bin: str | None
    reference: str | None = None
    read: str | None = None
    frame: int | None = None


def alphanumeric(text: str) -> str:
    """Return the letters and digits of a text, case folded: what the case-insensitive alphanumeric score compares."""
    return "".join(character for character in text if character.isalnum()).casefold()


def edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the Levenshtein distance of two strings or lists of words.

    Raises:
        MissingExtra: rapidfuzz is not installed.
    """
    levenshtein = optional("rapidfuzz.distance", "the text metric", extra="ocr").Levenshtein
    return int(levenshtein.distance(a, b))


def similarity(text: str, read: str) -> float:
    """Return TokBench's T-NED of one word: 1 - edit distance / length of the longer; 1 is exact. `text` is not empty."""
    return 1 - edits(text, read) / max(len(text), len(read))


def tally(words: Sequence[Scored], bins: Sequence[str], suffix: str) -> dict[str, float]:
    """Add up the words of one image: the row columns that the ratio columns divide."""
    scored = [word for word in words if word.status == OK and word.read is not None]
    out = {f"text_words_{suffix}": float(len(words)), f"text_scored_{suffix}": float(len(scored))}
    for name in bins:
        mine = [(word.text, word.read or "", word.reference) for word in scored if word.bin == name]
        plain = [(alphanumeric(text), alphanumeric(read)) for text, read, _ in mine if alphanumeric(text)]
        out |= {
            f"text_words_{name}_{suffix}": float(len(mine)),
            f"text_right_{name}_{suffix}": float(sum(text == read for text, read, _ in mine)),
            f"text_alike_{name}_{suffix}": sum((similarity(text, read) for text, read, _ in mine), 0.0),
            f"text_alnum_words_{name}_{suffix}": float(len(plain)),
            f"text_alnum_right_{name}_{suffix}": float(sum(text == read for text, read in plain)),
            f"text_reference_{name}_{suffix}": float(sum(text == reference for text, _, reference in mine)),
        }
    pairs = [(word.text, word.read or "") for word in scored]
    out |= {
        f"text_edits_{suffix}": float(sum(edits(text, read) for text, read in pairs)),
        f"text_characters_{suffix}": float(sum(len(text) for text, _ in pairs)),
        f"text_word_errors_{suffix}": float(sum(edits(text.split(), read.split()) for text, read in pairs)),
        f"text_word_count_{suffix}": float(sum(len(text.split()) for text, _ in pairs)),
    }
    return out


_SCORES: Mapping[str, tuple[str, str, str]] = {
    "t_acc": ("right", "words", "read exactly, case and all (T-ACC as published)"),
    "t_ned": ("alike", "words", "1 - edit distance / longer length (T-NED as published)"),
    "t_acc_alnum": ("alnum_right", "alnum_words", "read exactly, letters and digits alone, case aside"),
    "t_acc_reference": ("reference", "words", "read exactly on the reference: what the recogniser can do at all"),
}
_RATES: Mapping[str, tuple[str, str, str]] = {
    "cer": ("edits", "characters", "character errors over characters of the scored words"),
    "wer": ("word_errors", "word_count", "word errors over words of the scored texts"),
}


def score_columns(bins: Sequence[str], suffix: str, *, on_reference: bool) -> tuple[Column, ...]:
    """Return the columns of a text metric: each score by bin with the mean over the bins, CER, WER, coverage, and the sums.

    Args:
        bins: Names of the scale bins.
        suffix: Of the recogniser.
        on_reference: With the score of the references.
    """
    columns: list[Column] = []
    for score, (above, below, meaning) in _SCORES.items():
        if score == "t_acc_reference" and not on_reference:
            continue
        parts = [
            Column(
                f"{score}_{name}_{suffix}",
                "",
                True,
                f"{name} words: {meaning}",
                1e-9,
                4,
                "corpus",
                level=score in {"t_acc", "t_ned"},
                ratio=(f"text_{above}_{name}_{suffix}", f"text_{below}_{name}_{suffix}"),
            )
            for name in bins
        ]
        mean = Column(
            f"{score}_{suffix}",
            "",
            True,
            f"mean over the bins of: {meaning}",
            1e-9,
            4,
            "corpus",
            mean_of=tuple(part.name for part in parts),
        )
        columns += [mean, *parts]
    for rate, (above, below, meaning) in _RATES.items():
        pair = (f"text_{above}_{suffix}", f"text_{below}_{suffix}")
        columns.append(Column(f"{rate}_{suffix}", "", False, meaning, 1e-9, 4, "corpus", ratio=pair))
    coverage = (f"text_scored_{suffix}", f"text_words_{suffix}")
    about = "share of the words that are scored; the others have a status in the details"
    columns.append(Column(f"text_coverage_{suffix}", "", None, about, 1e-9, 4, "corpus", level=False, ratio=coverage))
    columns += [Column(name, "", None, "sum over one image", 1e-9, 1, level=False) for name in tally((), bins, suffix)]
    return tuple(columns)
