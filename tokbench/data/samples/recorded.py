"""Built-in recordings: six spoken sentences with their text, and three pieces of music; see recordings/LICENCES.txt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokbench.data.samples.entry import Entry
from tokbench.data.types import Blob

_FOLDER = Path(__file__).parent / "recordings"


@dataclass(frozen=True)
class _Sentence:
    speaker: str
    text: str


_SENTENCES: Mapping[str, _Sentence] = {
    "austen-0870": _Sentence(
        "librivox-austen",
        "and mister john dashwood had then leisure to consider how much there might be prudently in his power to do for them",
    ),
    "austen-0880": _Sentence("librivox-austen", "he was not an ill disposed young man"),
    "austen-0890": _Sentence(
        "librivox-austen", "unless to be rather cold hearted and rather selfish is to be ill disposed"
    ),
    "austen-0920": _Sentence(
        "librivox-austen",
        "had he married a more amiable woman he might have been made still more respectable than he was",
    ),
    "austen-0930": _Sentence("librivox-austen", "he might even have been made amiable himself"),
    "goforward": _Sentence("sphinx-goforward", "go forward ten meters"),
}
_MUSIC = ("guitar", "piano", "tabla")


def speech_entries() -> list[Entry]:
    """Return six sentences of two speakers, 2.8 to 7.1 s, 16 kHz mono, annotated with `text` and `speaker`."""
    return [Entry(f"speech/{name}", _blob(name), annotate=partial(_about, name)) for name in _SENTENCES]


def music_entries() -> list[Entry]:
    """Return a guitar, a piano and a tabla, 2.8 to 3 s, 44.1 kHz stereo."""
    return [Entry(f"music/{name}", _blob(name)) for name in _MUSIC]


def _about(name: str) -> Mapping[str, object]:
    sentence = _SENTENCES[name]
    return {"text": sentence.text, "speaker": sentence.speaker}


def _blob(name: str) -> Blob:
    return Blob(name=f"{name}.flac", path=str(_FOLDER / f"{name}.flac"))
