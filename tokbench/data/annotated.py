"""Images in a folder with a list of what is in them: the source that face and text datasets share, and how lists are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tokbench.data.extensions import EXTENSIONS
from tokbench.data.hashing import sha256_of_blob
from tokbench.data.types import Blob
from tokbench.errors import DecodeError, UsageError
from tokbench.spec import Modality

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """One image and what its dataset says of it.

    Attributes:
        path: The image; it may be absent, which makes a failed row.
        about: Gives the annotation; None stands for what the dataset does not say. Every value counts for the digest, in
            the order given.
        size: (H, W) of the image where the dataset states it, else None: the file's own.
        placed: Something in the annotation has a place in the image, so its size belongs to it.
    """

    path: Path
    about: Callable[[], Mapping[str, object]]
    size: tuple[int, int] | None = None
    placed: bool = True


@dataclass(frozen=True)
class Listing:
    """One way in which datasets list their images.

    Attributes:
        read: Gives key and image of everything the dataset at an address lists, from address, folder and options.
        holds: What is in the images, for messages.
        options: Names that an address may set behind a question mark.
    """

    read: Callable[[str, Path, Mapping[str, str]], Iterator[tuple[str, Picture]]]
    holds: str
    options: tuple[str, ...] = ()


class AnnotatedSource:
    """Images whose content is known. Each row's annotation is what `Picture.about` gives, with `size` [H, W] beside it.

    An image that the list names and that is not there is a failed row. Images that it does not name are ignored.
    """

    hint = ""

    def __init__(self, uri: str, listing: Listing, rest: str, modality: Modality) -> None:
        self.uri, self.modality, self._listing, self._rest = uri, modality, listing, rest
        if modality != "image":
            raise UsageError(f"{uri} holds images, not {modality}")
        place, _, query = rest.partition("?")
        self._options, self.root = dict(parse_qsl(query)), Path(place).expanduser().absolute()
        for option in self._options:
            if option not in listing.options:
                there = f"there is {' and '.join(listing.options)}" if listing.options else "there is none"
                raise UsageError(f"{uri}: unknown option {option!r}; {there}")

    def __reduce__(self) -> tuple[object, ...]:
        return (AnnotatedSource, (self.uri, self._listing, self._rest, self.modality))

    @cached_property
    def _pictures(self) -> Mapping[str, Picture]:
        if not self.root.is_dir():
            raise UsageError(f"{self.uri}: {self.root} is not a folder")
        found = dict(self._listing.read(self.uri, self.root, self._options))
        if not found:
            raise UsageError(f"{self.uri} holds no image with {self._listing.holds}")
        return {key: found[key] for key in sorted(found)}

    @cached_property
    def ignored(self) -> int:
        """Return how many image files below the folder no annotation names."""
        named = {picture.path for picture in self._pictures.values()}
        return len(set(images_below(self.root)) - named)

    def keys(self) -> tuple[str, ...]:
        """Return the names of the images, sorted."""
        return tuple(self._pictures)

    def open(self, key: str) -> Blob:
        """Return where the image is."""
        path = self._pictures[key].path
        return Blob(name=path.name, path=str(path))

    def sha256(self, key: str) -> str:
        """Return the sha256 of the image's bytes."""
        return sha256_of_blob(self.open(key))

    def annotations(self, key: str) -> Mapping[str, object]:
        """Return what the dataset says of the image, and the size that its places belong to.

        Raises:
            DecodeError: The annotation of this image, or its size where it is needed, cannot be read.
        """
        picture = self._pictures[key]
        size = {"size": list(picture.size or _upright_size(self.open(key)))} if picture.placed else {}
        return size | {name: value for name, value in picture.about().items() if value is not None}

    def annotations_sha256(self, key: str) -> str:
        """Return the digest of the annotation, which belongs to the dataset's own: other truth gives other scores."""
        picture = self._pictures[key]
        text = json.dumps([picture.size, *picture.about().values()], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def images_below(root: Path) -> list[Path]:
    """Return the image files below a folder, sorted."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS["image"])


def read_json(file: Path) -> object:
    """Return what a JSON file holds. Raises UsageError where it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error


def entries(where: object, value: object) -> Sequence[Mapping[str, Any]]:
    """Return a list of mappings; a mapping of them gives its values. Raises UsageError where `value` is neither."""
    listed = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
        raise UsageError(f"{where}: expected a list of annotations, found {type(value).__name__}")
    return listed


def field(entry: Mapping[str, Any], name: str, where: str) -> Any:
    """Return what an entry of a list says under `name`. Raises UsageError where it says nothing."""
    if name not in entry:
        raise UsageError(f"{where} has no {name!r}")
    return entry[name]


def _upright_size(blob: Blob) -> tuple[int, int]:
    """Return (H, W) as the loader decodes the image, turned as its EXIF block says; no pixel is decoded."""
    from PIL import Image

    try:
        with blob.open() as handle, Image.open(handle) as image:
            height, width = image.height, image.width
            try:
                turned = image.getexif().get(_ORIENTATION, 1) in range(5, 9)
            except Exception:
                turned = False
    except OSError as error:
        raise DecodeError(f"cannot be decoded: {error}") from error
    return (width, height) if turned else (height, width)
