"""Results on disk: shards written whole or not at all, resumed by content key, merged into one `result.json` a run.

results/
  store.json                                       schema version
  .cache/reference/<key>.safetensors               what metrics of the set gathered from a shard's references; may be deleted
  .cache/readings/<key>.json                       what metrics read from a shard's references; may be deleted
  <tokenizer>/contract-<key>.json                  what `tokbench.contract` said
  <tokenizer>/<suite>@<protocol>/status.json       why a run is not there, while it is not
  <tokenizer>/<suite>@<protocol>/<key>/
      shards/<start>-<stop>-<digest>/              rows.parquet  states.safetensors  shard.json
      rows.parquet  result.json                    written last
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokbench.errors import StoreError
from tokbench.rows import Row, read_rows, write_rows

if TYPE_CHECKING:
    from tokbench.evaluate import ShardResult
    from tokbench.plan import Run, Shard
    from tokbench.types import State

SCHEMA_VERSION = 1


class Store:
    """A directory of results that several processes may write at once.

    Every shard is a directory that appears by one rename, so a process killed at any moment loses the shard in flight and
    leaves no half of one. Two processes that finish one shard write the same bits; the second write is dropped.

    Raises:
        StoreError: The directory holds results of another schema version, or is not a result store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self) -> None:
        """Make the directory, or check the one that is there."""
        marker = self.root / "store.json"
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root} is a file; name a directory with --output")
        self.root.mkdir(parents=True, exist_ok=True)
        if not marker.exists():
            write_json(marker, {"schema_version": SCHEMA_VERSION, "what": "tokbench results"})
        version = read_json(marker).get("schema_version")
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{self.root} holds results of schema {version}, this is {SCHEMA_VERSION}; use another --output"
            )

    # ---------------------------------------------------------------------------------------------- shards

    def run_dir(self, run: Run) -> Path:
        """Return where a run's results live."""
        return self.suite_dir(run) / run.key[:12]

    def suite_dir(self, run: Run) -> Path:
        """Return where all results of a tokenizer under a suite's protocol live."""
        return self.root / slug(run.card.spec.name) / f"{slug(run.suite.name)}@{run.protocol.hash[:8]}"

    def shard_dir(self, run: Run, shard: Shard) -> Path:
        """Return where one shard's results live."""
        return self.run_dir(run) / "shards" / shard.name

    def has_shard(self, run: Run, shard: Shard) -> bool:
        """Tell whether a shard is finished."""
        return (self.shard_dir(run, shard) / "shard.json").exists()

    def missing(self, run: Run) -> list[Shard]:
        """Return the shards of a run that are not finished."""
        return [shard for shard in run.shards if not self.has_shard(run, shard)]

    def write_shard(self, run: Run, shard: Shard, result: ShardResult, about: Mapping[str, Any]) -> None:
        """Write a finished shard: into a temporary directory beside its place, then one rename."""
        from safetensors.torch import save_file

        place = self.shard_dir(run, shard)
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".tmp-", dir=place.parent))
        try:
            write_rows(scratch / "rows.parquet", result.rows)
            tensors = {
                f"{metric}\n{key}": tensor.detach().cpu().contiguous()
                for metric, state in result.states.items()
                for key, tensor in state.items()
            }
            save_file(tensors, scratch / "states.safetensors")
            write_json(scratch / "shard.json", {"timing": asdict(result.timing), "shard": asdict(shard), **about})
            try:
                scratch.rename(place)
            except OSError:
                if not self.has_shard(run, shard):
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def read_shard(self, run: Run, shard: Shard) -> tuple[list[Row], dict[str, Any]]:
        """Return the rows and what `shard.json` says.

        Raises:
            StoreError: A file of the shard is missing or damaged; the message says which directory to delete.
        """
        with self._undamaged(run, shard) as place:
            return read_rows(place / "rows.parquet"), read_json(place / "shard.json")

    def read_state(self, run: Run, shard: Shard, metric: str) -> State:
        """Return a shard's state of one metric, empty where the shard has none. Raises StoreError as `read_shard` does."""
        from safetensors import safe_open

        with self._undamaged(run, shard) as place, safe_open(place / "states.safetensors", "pt") as file:
            mine = (name for name in file.keys() if name.partition("\n")[0] == metric)  # noqa: SIM118 - not a dict
            return {name.partition("\n")[2]: file.get_tensor(name) for name in mine}

    @contextmanager
    def _undamaged(self, run: Run, shard: Shard) -> Iterator[Path]:
        """Give the shard's directory, and say so where what is read there is damaged."""
        from safetensors import SafetensorError

        place = self.shard_dir(run, shard)
        try:
            yield place
        except (OSError, ValueError, SafetensorError) as error:
            raise StoreError(f"{place} is damaged ({error}); delete it and run again") from error

    def read_reference(self, key: str) -> State | None:
        """Return what was kept of a shard's references, or None where nothing readable is."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(self._reference_path(key)))
        except (OSError, SafetensorError):
            return None

    def write_reference(self, key: str, state: State) -> None:
        """Keep the sums over a shard's references: a whole file by one rename."""
        from safetensors.torch import save_file

        place = self._reference_path(key)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=place.parent) as scratch:
            save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, Path(scratch) / place.name)
            (Path(scratch) / place.name).replace(place)

    def _reference_path(self, key: str) -> Path:
        return self.root / ".cache" / "reference" / f"{key}.safetensors"

    def read_readings(self, key: str) -> dict[str, object]:
        """Return what was read from a shard's references, by row key; nothing where nothing readable was kept."""
        try:
            return read_json(self._readings_path(key))
        except StoreError:
            return {}

    def write_readings(self, key: str, found: Mapping[str, object]) -> None:
        """Keep what a metric read from a shard's references."""
        write_json(self._readings_path(key), found)

    def _readings_path(self, key: str) -> Path:
        return self.root / ".cache" / "readings" / f"{key}.json"

    def forget(self, run: Run) -> None:
        """Delete a run's results, for `--rerun all`."""
        shutil.rmtree(self.run_dir(run), ignore_errors=True)

    @contextmanager
    def claim(self, run: Run, shard: Shard) -> Iterator[bool]:
        """Try to be the one process that works on a shard; yields False when another one is. Freed by its death."""
        from filelock import FileLock, Timeout

        place = self.shard_dir(run, shard)
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.parent / f".{place.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    # --------------------------------------------------------------------------------------------- results

    def write_result(self, run: Run, rows: Sequence[Row], result: Mapping[str, Any]) -> Path:
        """Write a run's merged rows and then its `result.json`; a state of absence that stood there goes."""
        place = self.run_dir(run)
        scratch = place / f".rows-{os.getpid()}.parquet"
        write_rows(scratch, rows)
        scratch.replace(place / "rows.parquet")
        write_json(place / "result.json", result)
        (self.suite_dir(run) / "status.json").unlink(missing_ok=True)
        return place / "result.json"

    def merged(self, run: Run) -> dict[str, Any] | None:
        """Return the run's `result.json` when it was merged from exactly these shards, else None."""
        path = self.run_dir(run) / "result.json"
        if not path.exists():
            return None
        result = read_json(path)
        parts = [shard["shard"] for shard in result.get("provenance", {}).get("shards", [])]
        return result if parts == [asdict(shard) for shard in run.shards] else None

    def write_status(self, run: Run, status: Mapping[str, Any]) -> None:
        """Record why a run is not there (weights absent, failed), for boards; a finished result wins over it."""
        place = self.suite_dir(run)
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / "status.json", status)

    def read_status(self, run: Run) -> dict[str, Any] | None:
        """Return the recorded state of absence, or None."""
        path = self.suite_dir(run) / "status.json"
        return read_json(path) if path.exists() else None

    def results(self) -> Iterator[dict[str, Any]]:
        """Yield every result and every recorded absence, in path order.

        Raises:
            StoreError: A file is not JSON of the known schema version; the message names it.
        """
        if not self.root.is_dir():
            raise StoreError(f"{self.root}: no such result store; run `tokbench run -o {self.root}` first")
        for path in sorted([*self.root.glob("*/*/*/result.json"), *self.root.glob("*/*/status.json")]):
            result = read_json(path)
            if result.get("schema_version") != SCHEMA_VERSION:
                raise StoreError(f"{path} is of schema {result.get('schema_version')}, this is {SCHEMA_VERSION}")
            yield result

    def contract_path(self, name: str, key: str) -> Path:
        """Return where the contract report of a tokenizer with this content key is kept."""
        return self.root / slug(name) / f"contract-{key[:12]}.json"


def slug(name: str) -> str:
    """Spell a name as one safe path component: no separators, no leading dot, no characters a file system refuses."""
    safe = re.sub(r"[^A-Za-z0-9._=+,-]", "_", name)
    return re.sub(r"^\.+", "_", safe)[:150] or "_"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON (no NaN) by temporary file and rename."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text by temporary file and rename: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".tmp-", delete=False, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StoreError: Not there, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path}: not a JSON object")
    return value
