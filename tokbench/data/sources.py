"""Turns a dataset's address into a source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from tokbench.data.annotated import AnnotatedSource, Listing
from tokbench.data.corpora import LAYOUTS, CorpusSource
from tokbench.data.faces import FACE_LISTINGS
from tokbench.data.folder import FolderSource
from tokbench.data.hub import HubSource
from tokbench.data.samples import open_samples
from tokbench.data.shards import ShardSource
from tokbench.data.text import TEXT_LISTINGS
from tokbench.data.types import Source
from tokbench.errors import UsageError
from tokbench.spec import Modality

_LISTINGS: Mapping[str, Listing] = {**TEXT_LISTINGS, **FACE_LISTINGS}
_FORMS = (
    "folder:/path, librispeech|libritts|musdb|audioset:/path, wds:/path/shard-{000..012}.tar, "
    "hf:org/name@revision:split, sample:image|video|audio|speech|text|words|faces, "
    "tokbench-text:/path, coco-text:/images?truth=/annotations.json, icdar:/images?truth=/folder, "
    "tokbench-face:/path, wflw:/path, lfw:/path"
)


def open_source(uri: str, modality: Modality) -> Source:
    """Open a dataset.

    Args:
        uri: `folder:PATH` or a bare path that exists (a folder, one file, or a `.tar`); `librispeech:PATH`,
            `libritts:PATH`, `musdb:PATH`, `audioset:PATH` for a folder in that corpus's layout; `wds:PATTERN` with braces
            and wildcards; `hf:org/name@revision:split[?column=image&config=default]` (extra `hf`); `sample:image`,
            `sample:text`, `sample:video`, `sample:audio`, `sample:speech`, `sample:words`, `sample:faces` for the built-in
            sets; text datasets `tokbench-text:PATH[?set=ic13,tt]`, `coco-text:IMAGES?truth=JSON[&set=val]`,
            `icdar:IMAGES[?truth=FOLDER]`; faces `tokbench-face:PATH[?truth=JSON]`, `wflw:PATH[?list=FILE]`, `lfw:PATH`.
        modality: What to read from it.

    Raises:
        UsageError: No such place, an address of no known form, or a set of another modality.
    """
    if modality not in get_args(Modality):
        raise UsageError(f"unknown modality {modality!r}; one of {', '.join(get_args(Modality))}")
    scheme, colon, rest = uri.partition(":")
    if colon and scheme == "sample":
        return open_samples(uri, rest, modality)
    if colon and scheme == "wds":
        return ShardSource(uri, rest, modality)
    if colon and scheme == "hf":
        return HubSource(uri, modality)
    if colon and scheme in _LISTINGS:
        return AnnotatedSource(uri, _LISTINGS[scheme], rest, modality)
    if colon and scheme in LAYOUTS:
        return CorpusSource(uri, scheme, Path(rest).expanduser(), modality)
    path = Path(rest if colon and scheme == "folder" else uri).expanduser()
    if not path.exists():
        known = "is not there" if scheme == "folder" or not colon else f"is not a dataset; addresses are {_FORMS}"
        raise UsageError(f"{uri} {known}")
    if path.suffix.lower() == ".tar" and path.is_file():
        return ShardSource(uri, str(path), modality)
    return FolderSource(uri, path, modality)
