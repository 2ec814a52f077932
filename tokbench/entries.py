"""Results found on disk, each with the directory that holds its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokbench.errors import StoreError
from tokbench.store import SCHEMA_VERSION, read_json


@dataclass(frozen=True)
class Entry:
    """A `result.json` (or a recorded absence) and the directory it lies in, which holds its `rows.parquet`."""

    result: Mapping[str, Any]
    place: Path

    @property
    def name(self) -> str:
        """Return the tokenizer's name with its operating point."""
        return str(self.result["tokenizer"]["name"])

    @property
    def rank(self) -> tuple[bool, str, str]:
        """Sort key: absences first, then by when the last shard was finished."""
        shards = self.result.get("provenance", {}).get("shards", [])
        finished = max((str(shard["finished"]) for shard in shards), default="")
        return (self.result["status"] == "complete", finished, str(self.result["key"]))


def entries(place: Path) -> list[Entry]:
    """Return every result and recorded absence below a directory, in path order.

    Raises:
        StoreError: A file is no JSON object of the known schema version; the message names it.
    """
    paths = sorted([*place.rglob("result.json"), *place.rglob("status.json")])
    return [Entry(_checked(path), path.parent) for path in paths]


def _checked(path: Path) -> Mapping[str, Any]:
    result = read_json(path)
    if result.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(f"{path} is of schema {result.get('schema_version')}, this is {SCHEMA_VERSION}")
    return result
