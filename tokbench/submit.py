"""Contributing a result: checks that a finished run may be published and copies it, small, into a results directory."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tokbench.entries import Entry
from tokbench.errors import StoreError, UsageError
from tokbench.gallery import FOLDER, Kept, kept_samples, write_index
from tokbench.rows import Row, read_rows, statistic
from tokbench.spec import jsonable
from tokbench.store import slug
from tokbench.suite import load_suites

SIZE_CAP = 10_000_000
"""Bytes a contributed result may have: rows of 50,000 samples fit, pictures do not."""

SAMPLES_CAP = 1_000_000
"""Bytes of kept samples that go with a contributed result: four pairs of 256x256."""

_FILES = ("result.json", "rows.parquet")
_FOLDER = re.compile(r"(?<![\w:/.\\~-])(?:/(?:[\w.+-]+/)+[\w.+-]*|[A-Za-z]:\\[^\s\"]+|~/(?!\.)[^\s\"]+)")
"""Folders of a machine; `~/.cache` and its like are where a message says that weights go, the same for everyone."""


def problems(entry: Entry) -> list[str]:
    """Return why a result may not be contributed, each as a sentence; empty: it may.

    Checked: the schema, that the run is whole (no limit, no failed row), the contract, that the protocol is that of a suite of
    tokbench, that means and rows agree, the size, and that no folder, user or host name is in it.
    """
    result = entry.result
    found = _schema(result)
    if found:
        return found
    if result["status"] != "complete":
        return [f"the run is not complete: {result['reason'] or result.get('state', '')}"]
    rows_file = entry.place / "rows.parquet"
    if not rows_file.exists():
        return ["rows.parquet is missing beside result.json"]
    try:
        rows = read_rows(rows_file)
    except (OSError, ValueError, KeyError) as error:
        return [f"rows.parquet cannot be read: {error}"]
    return [*_coverage(result, rows), *_protocol(result), *_means(result, rows), *_size(entry), *_private(result, rows)]


def pack(entry: Entry, to: Path) -> Path:
    """Copy a result that has no problems to `to/<tokenizer>/<suite>@<protocol>/<key>/` and return that directory.

    Of its kept samples go those that `packed_samples` says; ones that lay there are replaced.

    Raises:
        StoreError: The result has problems; the message lists them.
    """
    found = problems(entry)
    if found:
        raise StoreError(f"{entry.name} on {entry.result['suite']} cannot be contributed:\n  " + "\n  ".join(found))
    result = entry.result
    folder = f"{slug(str(result['suite']))}@{result['protocol']['hash'][:8]}"
    place = to / slug(entry.name) / folder / str(result["key"])[:12]
    place.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        shutil.copyfile(entry.place / name, place / name)
    shutil.rmtree(place / FOLDER, ignore_errors=True)
    samples = packed_samples(entry)
    if samples:
        (place / FOLDER).mkdir()
        for kept in samples:
            for name in (kept.original, kept.reconstruction):
                shutil.copyfile(entry.place / FOLDER / name, place / FOLDER / name)
        write_index(place / FOLDER, samples)
    return place


def packed_samples(entry: Entry) -> list[Kept]:
    """Return the kept samples that go with a contributed result: in the order of their keys' hash while they fit the cap.

    The pictures are the dataset's: whoever contributes them must be allowed to.
    """
    out: list[Kept] = []
    size = 0
    for kept in kept_samples(entry.place):
        size += sum((entry.place / FOLDER / name).stat().st_size for name in (kept.original, kept.reconstruction))
        if size > SAMPLES_CAP:
            break
        out.append(kept)
    return out


def _schema(result: Mapping[str, Any]) -> list[str]:
    import jsonschema

    schema = json.loads(resources.files("tokbench").joinpath("result.schema.json").read_text(encoding="utf-8"))
    errors = jsonschema.Draft202012Validator(schema).iter_errors(result)
    return [f"schema: {error.json_path}: {error.message[:200]}" for error in list(errors)[:5]]


def _coverage(result: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    samples, found = result["samples"], []
    if result["protocol"]["limit"] is not None:
        found.append(f"limited to the first {result['protocol']['limit']} files")
    if samples["files"] != samples["total"]:
        found.append(f"{samples['files']} of {samples['total']} files were evaluated")
    if samples["failed"]:
        found.append(f"{samples['failed']} row(s) failed")
    if len(rows) != samples["rows"]:
        found.append(f"rows.parquet has {len(rows)} rows, result.json says {samples['rows']}")
    if len({row.key for row in rows}) != len(rows):
        found.append("a key is there twice")
    if result["provenance"]["contract"].get("passed") is not True:
        found.append("the contract was not passed; see `tokbench check`")
    return found


def _protocol(result: Mapping[str, Any]) -> list[str]:
    try:
        (suite,) = load_suites([result["suite"]])
    except (UsageError, ValueError):
        return [f"{result['suite']} is no suite of tokbench"]
    stated = result["protocol"]
    rounding = "none" if suite.modality == "audio" else suite.rounding
    wanted = {"modality": suite.modality, "prepare": jsonable(suite.prepare), "rounding": rounding, "seed": 0}
    wrong = [
        f"{key} is {stated[key]!r}, the suite's is {value!r}" for key, value in wanted.items() if stated[key] != value
    ]
    return [f"not the protocol of {suite.name}: {line}" for line in wrong]


def _means(result: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    found = []
    for column, cell in result["metrics"].items():
        if cell["where"] == "row":
            mean = statistic([row.values.get(column) for row in rows if row.status == "ok"]).value
            if mean != cell["value"]:
                found.append(f"{column}: result.json says {cell['value']}, the rows give {mean}")
    return found


def _size(entry: Entry) -> list[str]:
    size = sum((entry.place / name).stat().st_size for name in _FILES)
    return [f"{size / 1e6:.1f} MB; the cap is {SIZE_CAP / 1e6:g} MB"] if size > SIZE_CAP else []


def _private(result: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Look for folders, and for the names of this user and host, in every text of the result."""
    texts = set(_texts(result))
    for row in rows:
        texts |= {row.key, row.group, row.reason, *row.undefined.values(), *row.notes}
    names = {name for name in (_user(), socket.gethostname()) if len(name) > 3 and name not in {"root", "localhost"}}
    found = []
    for text in sorted(texts):
        match = _FOLDER.search(text)
        if match:
            found.append(f"holds a folder of a machine: {match[0]!r}")
        found += [
            f"holds a user or host name: {text[:80]!r}" for name in names if re.search(rf"\b{re.escape(name)}\b", text)
        ]
    return found[:10]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, item in value.items() for text in (str(key), *_texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []
