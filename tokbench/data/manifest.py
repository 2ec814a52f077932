"""Digests a dataset file by file, remembering the digests of files that have not changed."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from tokbench.data.types import Blob, Manifest, Source
from tokbench.errors import DecodeError

UNREADABLE = "unreadable"
"""Stands in a manifest for the sha256 of a file that cannot be read."""

_Stamp = tuple[str, int, int, int, int]  # path, offset, size of the span (-1: whole file), size of the file, mtime_ns
_RACY_NS = 2_000_000_000
_TABLE = """CREATE TABLE IF NOT EXISTS files (
    path TEXT, start INTEGER, span INTEGER, size INTEGER, mtime_ns INTEGER, sha256 TEXT NOT NULL,
    PRIMARY KEY (path, start, span)
) WITHOUT ROWID"""


def default_cache() -> Path:
    """Return the cache folder: `TOKBENCH_CACHE`, or the user's cache folder of this platform."""
    named = os.environ.get("TOKBENCH_CACHE")
    if named:
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("tokbench")


def manifest(source: Source, cache: Path | None = None) -> Manifest:
    """Digest every file of a source.

    Ground truth counts as data: an entry of a file with annotations digests both, by the source's `annotations_sha256(key)`
    where it has one (the truth may be cheaper to digest than to read), else from `annotations(key)`.
    A file whose absolute path, size and modification time (ns) are as before is not read again. A cache that cannot be
    opened or written is not an error: files are then read each time.

    Args:
        source: The dataset.
        cache: Folder that holds `digests.sqlite3`; None takes `default_cache()`.

    Raises:
        UsageError: The source holds no file of its modality.
    """
    keys = source.keys()
    with _opened(cache or default_cache()) as known, ThreadPoolExecutor(max_workers=4) as pool:
        stamps = [_stamp(source, key) for key in keys]
        found = [known.get(stamp) for stamp in stamps]
        fresh = pool.map(
            lambda i: _sha256(source, keys[i]), (missing := [i for i, sha in enumerate(found) if sha is None])
        )
        for i, sha in zip(missing, fresh, strict=True):
            found[i] = sha
            known.put(stamps[i], sha)
    return Manifest(
        tuple((key, _with_truth(source, key, sha or UNREADABLE)) for key, sha in zip(keys, found, strict=True))
    )


def _with_truth(source: Source, key: str, sha: str) -> str:
    if sha == UNREADABLE:
        return sha
    digest = getattr(source, "annotations_sha256", None)
    try:
        if digest is not None:
            truth = digest(key)
        else:
            said = source.annotations(key)
            truth = json.dumps(said, sort_keys=True, default=str) if said else ""
    except DecodeError:
        return UNREADABLE
    return hashlib.sha256(f"{sha} {truth}".encode()).hexdigest() if truth else sha


class _Known:
    """Digests by stamp; forgets silently when there is no data base."""

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self._connection = connection
        self._fresh: list[tuple[str, int, int, int, int, str]] = []

    def get(self, stamp: _Stamp | None) -> str | None:
        if self._connection is None or stamp is None:
            return None
        path, start, span, size, mtime = stamp
        query = "SELECT sha256 FROM files WHERE path = ? AND start = ? AND span = ? AND size = ? AND mtime_ns = ?"
        try:
            row = self._connection.execute(query, (path, start, span, size, mtime)).fetchone()
        except sqlite3.Error:
            return None
        return None if row is None else str(row[0])

    def put(self, stamp: _Stamp | None, sha: str) -> None:
        # A file younger than two seconds may change again within one tick of a coarse clock and keep its stamp.
        if stamp is not None and sha != UNREADABLE and time.time_ns() - stamp[4] > _RACY_NS:
            self._fresh.append((*stamp, sha))

    def save(self) -> None:
        if self._connection is None or not self._fresh:
            return
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", self._fresh)
        except sqlite3.Error:
            return


@contextmanager
def _opened(folder: Path) -> Iterator[_Known]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / "digests.sqlite3", timeout=30, isolation_level="IMMEDIATE")
    except (OSError, sqlite3.Error):
        yield _Known(None)
        return
    with closing(connection):
        try:
            connection.execute(_TABLE)
            connection.commit()
            known = _Known(connection)
        except sqlite3.Error:
            known = _Known(None)
        try:
            yield known
        finally:
            known.save()


def _stamp(source: Source, key: str) -> _Stamp | None:
    try:
        blob = source.open(key)
        if not isinstance(blob, Blob) or blob.path is None:
            return None
        status = Path(blob.path).stat()
    except (DecodeError, OSError):
        return None
    span = -1 if blob.size is None else blob.size
    return str(Path(blob.path).absolute()), blob.offset, span, status.st_size, status.st_mtime_ns


def _sha256(source: Source, key: str) -> str:
    try:
        return source.sha256(key)
    except DecodeError:
        return UNREADABLE
