"""A dataset on the Hugging Face hub, read through `datasets` from Parquet files of a fixed revision."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qsl

from tokbench.data.hashing import sha256_of_blob
from tokbench.data.types import Blob
from tokbench.errors import DataAbsent, DecodeError, MissingExtra, UsageError, install_command
from tokbench.spec import Modality

_ADDRESS = re.compile(
    r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:?]+))?(?::(?P<split>[\w.\[\]%:-]+))?(?:\?(?P<query>.*))?"
)
_FORM = "hf:org/name@revision:split[?column=image&config=default]"

Loader = Callable[[str, str | None, str, str], Any]
"""(name, config, revision, split) -> a map-style dataset of the `datasets` library."""


class HubSource:
    """Rows of one media column; the key is `<split>/<row, eight digits>`; other plain columns become annotations.

    Bytes are taken as stored (nothing is decoded by `datasets`), and no code of the repository runs: only datasets that
    are Parquet files are accepted.
    """

    hint = ""
    ignored = 0

    def __init__(self, uri: str, modality: Modality, loader: Loader | None = None) -> None:
        hit = _ADDRESS.fullmatch(uri)
        if hit is None:
            raise UsageError(f"{uri} does not read as {_FORM}")
        if hit["revision"] is None:
            raise UsageError(f"{uri} names no revision; numbers need one that stays: {_FORM}, revision a tag or commit")
        if hit["split"] is None:
            raise UsageError(f"{uri} names no split: {_FORM}")
        query = dict(parse_qsl(hit["query"] or ""))
        for option in query:
            if option not in ("column", "config"):
                raise UsageError(f"{uri}: unknown option {option!r}; there are column and config")
        self.uri, self.modality = uri, modality
        self.name, self.revision, self.split = hit["name"], hit["revision"], hit["split"]
        self.column: str | None = query.get("column")
        self.config: str | None = query.get("config")
        self._loader = loader or _load

    def __reduce__(self) -> tuple[object, ...]:
        return (HubSource, (self.uri, self.modality, self._loader))

    @cached_property
    def _rows(self) -> tuple[Any, str]:
        rows = self._loader(self.name, self.config, self.revision, self.split)
        column = self._media_column(rows)
        return _undecoded(rows, column), column

    def _media_column(self, rows: Any) -> str:
        features: Mapping[str, Any] = rows.features
        if self.column is not None:
            if self.column not in features:
                raise UsageError(f"{self.uri} has no column {self.column!r}; it has {', '.join(sorted(features))}")
            return self.column
        found = [name for name, feature in features.items() if type(feature).__name__.lower() == self.modality]
        if len(found) != 1:
            what = "no" if not found else "several"
            names = ", ".join(sorted(found or features))
            raise UsageError(f"{self.uri} has {what} {self.modality} columns; name one with ?column=, of {names}")
        return found[0]

    def keys(self) -> tuple[str, ...]:
        """Return one key a row."""
        rows, _ = self._rows
        if not len(rows):
            raise UsageError(f"{self.uri} holds no rows")
        return tuple(f"{self.split}/{index:08d}" for index in range(len(rows)))

    def open(self, key: str) -> Blob:
        """Return the stored bytes of a row."""
        rows, column = self._rows
        cell = rows[_row(key)][column]
        if isinstance(cell, bytes):
            return Blob(name=key, data=cell)
        if not isinstance(cell, Mapping):
            raise DecodeError(f"column {column!r} holds {type(cell).__name__} where a file was expected")
        path, data = cell.get("path"), cell.get("bytes")
        name = PurePosixPath(path).name if path else key
        if data is None and not path:
            raise DecodeError("the row is empty")
        return Blob(name=name, data=data) if data is not None else Blob(name=name, path=path)

    def sha256(self, key: str) -> str:
        """Return the sha256 of the row's bytes."""
        return sha256_of_blob(self.open(key))

    def annotations(self, key: str) -> Mapping[str, object]:
        """Return the row's other columns that hold text or numbers."""
        rows, column = self._rows
        row: Mapping[str, object] = rows[_row(key)]
        return {name: value for name, value in row.items() if name != column and isinstance(value, str | int | float)}


def _row(key: str) -> int:
    return int(key.rpartition("/")[2])


def _undecoded(rows: Any, column: str) -> Any:
    """Switch off the decoding of every column that would decode, so that bytes come as they are stored."""
    plain = rows
    for name, feature in rows.features.items():
        if getattr(feature, "decode", None) is True:
            plain = plain.cast_column(name, type(feature)(decode=False))
        elif name != column and type(feature).__name__ not in ("Value", "ClassLabel"):
            plain = plain.remove_columns(name)
    return plain


def _load(name: str, config: str | None, revision: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(f"hf:{name} needs the library datasets", install_command("hf")) from error
    fix = (
        f"with a network: hf download {name} --repo-type dataset --revision {revision}; "
        "without one, name local files with folder: or wds:"
    )
    try:
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        if not type(builder).__module__.endswith(".parquet"):
            raise UsageError(
                f"hf:{name}@{revision} is not stored as Parquet files; use its refs/convert/parquet revision"
            )
        _known_split(name, builder, split)
        builder.download_and_prepare()
        return builder.as_dataset(split)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise DataAbsent(
            f"hf:{name}@{revision} is not on this machine and cannot be reached ({_brief(error)})", fix
        ) from error
    except ValueError as error:
        raise UsageError(f"hf:{name}@{revision}: {_brief(error)}") from error


def _known_split(name: str, builder: Any, split: str) -> None:
    splits: Sequence[str] = sorted(builder.info.splits or ())
    if splits and split.partition("[")[0] not in splits:
        raise UsageError(f"hf:{name} has no split {split!r}; it has {', '.join(splits)}")


def _brief(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
