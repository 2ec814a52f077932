"""Kept samples: originals and reconstructions of a few rows as PNG or FLAC beside a result, to look at and to listen to.

<result>/samples/
  samples.json                                     what is kept, and whether the size cap left something out
  <key>-<hash>.original.png  .reconstruction.png   images and strips of frames, 8 bit, as the metrics saw them
  <key>-<hash>.original.flac .reconstruction.flac  sound, 24 bit
"""

from __future__ import annotations

import hashlib
import io
import re
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from tokbench.errors import StoreError, UsageError
from tokbench.spec import Modality
from tokbench.store import read_json, slug, write_json

if TYPE_CHECKING:
    from tokbench.types import Sample

FOLDER = "samples"
INDEX = "samples.json"
_CAPPED = "capped"
SIZE_CAP = 500_000_000
"""Bytes of samples a result keeps: 2,500 pairs of 256x256; those whose keys hash highest are left out."""

FRAMES = 4
"""Frames of a clip that are kept, spread evenly over it."""

_SIDES = ("original", "reconstruction")
_LARGEST = 64_000_000
_NAME = re.compile(r"[A-Za-z0-9_=+,-][A-Za-z0-9._=+,-]*\.(png|flac)")


@dataclass(frozen=True)
class Wanted:
    """Which rows to keep: the `first` by the hash of their keys (None: all), and the rows called `keys`.

    The choice depends on the keys alone, so every tokenizer of a suite keeps the same rows.
    """

    first: int | None = 0
    keys: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.first != 0 or bool(self.keys)

    def choose(self, keys: Iterable[str]) -> list[str]:
        """Return the wanted ones of `keys`, those that were asked for by name first, the others in the order of their hash."""
        found = sorted(set(keys), key=order)
        named = [key for key in found if key in self.keys]
        return [*named, *(key for key in found[: self.first] if key not in self.keys)]


NOTHING = Wanted()


def parse_wanted(texts: Sequence[str]) -> Wanted:
    """Read `--keep-samples` values: a number, `all`, or `key=KEY`.

    Raises:
        UsageError: Anything else.
    """
    first: int | None = 0
    keys = []
    for text in texts:
        if text.startswith("key="):
            keys.append(text.removeprefix("key="))
        elif text == "all":
            first = None
        elif text.isdecimal():
            first = None if first is None else max(first, int(text))
        else:
            raise UsageError(f"--keep-samples {text}: give a number, all, or key=KEY for a row of that key")
    return Wanted(first, tuple(keys))


def order(key: str) -> str:
    """Return what rows are ordered by when some are chosen: the sha256 of the key."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class Kept:
    """One row that was kept.

    Attributes:
        original: File name within the folder.
        frames: Of a clip, which frames stand side by side in the picture.
        sample_rate: Hz, of sound.
    """

    key: str
    modality: Modality
    original: str
    reconstruction: str
    frames: tuple[int, ...] = ()
    sample_rate: int | None = None


# ------------------------------------------------------------------------------------------------------ writing


@dataclass
class Keeper:
    """Writes the wanted rows of the samples it is shown; call it with every sample of a shard, then `settle` the folder.

    Holds no signal: of rows that turn out not to be among the first, the files are deleted again.
    """

    folder: Path
    wanted: Wanted
    cap: int = SIZE_CAP
    _held: dict[str, int] = field(default_factory=dict)
    _ordered: list[tuple[str, str]] = field(default_factory=list)
    _bytes: int = 0

    def __call__(self, sample: Sample) -> None:
        """Keep those rows of a batch that are wanted. Of a tokenizer that cannot decode nothing is kept."""
        if sample.spec.encode_only:
            return
        for index, key in enumerate(sample.keys):
            named = key in self.wanted.keys
            if not named and not self._among_first(key):
                continue
            size = self._write(sample, index)
            if named or key in self._held:
                continue
            self._held[key] = size
            self._bytes += size
            insort(self._ordered, (order(key), key))
            if self.wanted.first is not None and len(self._ordered) > self.wanted.first:
                self._drop_last()
            while self._bytes > self.cap:
                self._drop_last()
                (self.folder / _CAPPED).touch()

    def _drop_last(self) -> None:
        _, last = self._ordered.pop()
        self._bytes -= self._held.pop(last)
        _delete(self.folder, last)

    def _among_first(self, key: str) -> bool:
        first = self.wanted.first
        if first is None or key in self._held or len(self._ordered) < first:
            return True
        return first > 0 and (order(key), key) < self._ordered[-1]

    def _write(self, sample: Sample, index: int) -> int:
        key, modality = sample.keys[index], sample.spec.modality
        pair = {
            "original": sample.reference[index].detach().cpu().numpy(),
            "reconstruction": sample.reconstruction[index].detach().cpu().numpy(),
        }
        frames = _spread(pair["original"].shape[1]) if modality == "video" else ()
        suffix = "flac" if modality == "audio" else "png"
        self.folder.mkdir(parents=True, exist_ok=True)
        size = 0
        names = {side: f"{stem(key)}.{side}.{suffix}" for side in pair}
        for side, signal in pair.items():
            body = flac(signal, sample.sample_rate or 0) if modality == "audio" else png(_strip(signal, frames))
            _write_bytes(self.folder / names[side], body)
            size += len(body)
        kept = Kept(key, modality, names["original"], names["reconstruction"], frames, sample.sample_rate)
        write_json(self.folder / f"{stem(key)}.json", asdict(kept))
        return size


Statuses = Mapping[str, Literal["ok", "failed"]]


def settle(folder: Path, rows: Statuses, wanted: Wanted, cap: int = SIZE_CAP) -> int:
    """Put what the keepers of all shards wrote into one index, and delete what is not among the first of all rows.

    Rows that an earlier call kept stay. The cap holds for rows chosen by hash, not for those asked for by name.

    Args:
        folder: Of one result.
        rows: Key -> status of all rows of the result.
        wanted: What was asked for now.
        cap: Bytes.

    Returns:
        How many wanted rows the cap leaves out.
    """
    before = {kept.key: kept for kept in _read_index(folder)}
    new = {kept.key: kept for path in _sidecars(folder) for kept in _entries(path, None)}
    known = before | new
    if not known:
        return 0
    asked = wanted.choose(rows)
    stay = {*before, *(key for key in asked if key in wanted.keys and key in known)}
    used = sum(_size(folder, known[key]) for key in stay)
    capped = (folder / _CAPPED).exists()
    for key in asked:
        if key in stay or (key not in known and not (capped and rows[key] == "ok")):
            continue
        used += _size(folder, known[key]) if key in known else 0
        capped = capped or used > cap
        if key not in known or used > cap:
            break  # a run of hashes without holes is kept: the same rows for every tokenizer, as far as it goes
        stay.add(key)
    for key in new.keys() - stay:
        _delete(folder, key)
    kept = sorted((known[key] for key in stay), key=lambda item: order(item.key))
    write_index(folder, kept, {"first": wanted.first} if capped else _tried(folder))
    for path in [*_sidecars(folder), folder / _CAPPED]:
        path.unlink(missing_ok=True)
    return sum(1 for key in asked if key not in stay and rows[key] == "ok") if capped else 0


def write_index(folder: Path, kept: Sequence[Kept], full: Mapping[str, int | None] | None = None) -> None:
    """Write what a folder holds; `full` says how many rows were wanted when the size cap was met."""
    samples = [asdict(item) for item in kept]
    write_json(folder / INDEX, {"schema_version": 1, "samples": samples, "full": full})


def missing(folder: Path, rows: Statuses, wanted: Wanted) -> list[str]:
    """Return the keys that are wanted, succeeded and are not kept; none that the size cap left out before."""
    have = {kept.key for kept in _read_index(folder)}
    tried = _tried(folder)
    full = tried is not None and (
        tried["first"] is None or (wanted.first is not None and wanted.first <= tried["first"])
    )
    asked = [key for key in wanted.choose(rows) if key in wanted.keys or not full]
    return [key for key in asked if key not in have and rows[key] == "ok"]


def _tried(folder: Path) -> dict[str, int | None] | None:
    """Return how many rows were wanted when the cap was met, as `{"first": N}`, or None where it never was."""
    path = folder / INDEX
    return cast("dict[str, int | None] | None", read_json(path).get("full")) if path.exists() else None


def _sidecars(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.json")) if path.name != INDEX]


def stem(key: str) -> str:
    """Return the start of a key's file names: readable, safe, and different for different keys."""
    return f"{slug(key)[:60]}-{order(key)[:12]}"


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) 8-bit pixels; the same bytes for the same pixels."""
    from PIL import Image

    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "PNG")
    return body.getvalue()


def flac(signal: npt.NDArray[np.float32], rate: int) -> bytes:
    """Encode (C, T) sound in [-1, 1] with 24 bits a sample."""
    import soundfile

    body = io.BytesIO()
    soundfile.write(body, np.clip(signal, -1.0, 1.0).T, rate, format="FLAC", subtype="PCM_24")
    return body.getvalue()


def _spread(frames: int) -> tuple[int, ...]:
    return tuple(sorted({int(index) for index in np.linspace(0, frames - 1, min(FRAMES, frames)).round()}))


def _strip(signal: npt.NDArray[np.float32], frames: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Turn (3, H, W), or frames of (3, T, H, W) side by side, into (H, W', 3) bytes; k / 255 becomes k."""
    flat = np.concatenate([signal[:, frame] for frame in frames], axis=-1) if frames else signal
    levels = np.floor(np.clip(flat, 0.0, 1.0) * np.float32(255.0) + np.float32(0.5)).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def _write_bytes(path: Path, body: bytes) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_bytes(body)
    scratch.replace(path)


def _delete(folder: Path, key: str) -> None:
    for part in ("original.png", "reconstruction.png", "original.flac", "reconstruction.flac", "json"):
        (folder / f"{stem(key)}.{part}").unlink(missing_ok=True)


def _size(folder: Path, kept: Kept) -> int:
    return sum(path.stat().st_size for name in (kept.original, kept.reconstruction) if (path := folder / name).exists())


# ------------------------------------------------------------------------------------------------------ reading


def kept_samples(place: Path) -> list[Kept]:
    """Return the kept samples of the result in `place` whose files are there, in the order of their keys' hash.

    The index may come from a stranger: only plain file names, and no links, are read.
    """
    folder = place / FOLDER
    return [
        kept
        for kept in _read_index(folder)
        if all(_readable(folder / getattr(kept, side), getattr(kept, side)) for side in _SIDES)
    ]


def _readable(path: Path, name: str) -> bool:
    plain = _NAME.fullmatch(name) is not None and not path.is_symlink() and not path.parent.is_symlink()
    return plain and path.is_file() and path.stat().st_size <= _LARGEST


def _read_index(folder: Path) -> list[Kept]:
    return _entries(folder / INDEX, "samples") if (folder / INDEX).exists() else []


def _entries(path: Path, part: str | None) -> list[Kept]:
    body = read_json(path)
    items = [body] if part is None else body.get(part)
    if not isinstance(items, list):
        raise StoreError(f"{path} is damaged; delete it and run again with --keep-samples")
    try:
        return [_kept(item) for item in items]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}); delete it and run again with --keep-samples") from error


def _kept(item: Mapping[str, Any]) -> Kept:
    if item["modality"] not in ("image", "video", "audio"):
        raise ValueError(f"modality {item['modality']!r}")
    rate = item.get("sample_rate")
    return Kept(
        key=str(item["key"]),
        modality=cast("Modality", item["modality"]),
        original=str(item["original"]),
        reconstruction=str(item["reconstruction"]),
        frames=tuple(int(frame) for frame in item.get("frames") or ()),
        sample_rate=None if rate is None else int(rate),
    )
