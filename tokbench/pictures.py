"""Kept samples as data URIs within a budget of bytes, so that a page shows and plays them from disk without a network."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokbench.errors import StoreError
from tokbench.gallery import FOLDER, Kept, kept_samples, order

if TYPE_CHECKING:
    from PIL.Image import Image

BUDGET = 8_000_000
"""Bytes of pictures and sound a page holds, as written in it."""

CROP = 256
"""Pixels of a picture's side that a page shows: the middle of larger ones."""

SECONDS = 6.0
"""Of a recording that a page plays: its start."""

# A file from a stranger may be small and unpack to any size.
_MOST_PIXELS = 50_000_000
_MOST_VALUES = 60_000_000


@dataclass
class Media:
    """The data URIs of one page, each once, within a budget of bytes."""

    budget: int = BUDGET
    uris: list[str] = field(default_factory=list)
    used: int = 0
    _known: dict[str, int] = field(default_factory=dict)

    def cost(self, uris: Sequence[str]) -> int:
        """Return how many bytes these would add."""
        return sum(len(uri) for uri in dict.fromkeys(uris) if uri not in self._known)

    def add(self, uri: str) -> int:
        """Put a URI on the page unless it is there, and return its place."""
        if uri not in self._known:
            self._known[uri] = len(self.uris)
            self.uris.append(uri)
            self.used += len(uri)
        return self._known[uri]


@dataclass(frozen=True)
class Shown:
    """One side of a kept sample as a page holds it.

    Attributes:
        about: What of it is shown, where that is not all: `256x256 of 768x512`, `first 6 s of 12.0 s`.
        content: Digest of the whole signal, cropped or not.
    """

    uri: str
    about: str
    content: str


def shown(path: Path, frames: int = 0) -> Shown:
    """Read a kept file: pictures as lossless WebP, sound as 16-bit FLAC.

    Args:
        path: Of a PNG or FLAC file.
        frames: How many frames stand side by side in it; of a clip, the first and the last are shown.

    Raises:
        StoreError: The file is damaged, or not what its name says.
    """
    try:
        return _shown(path, frames, path.stat().st_mtime_ns)
    except Exception as error:  # a stranger's file: Pillow and libsndfile raise all sorts
        raise StoreError(f"{path} cannot be read: {error}") from error


@lru_cache(maxsize=64)
def _shown(path: Path, frames: int, _changed: int) -> Shown:
    return _sound(path) if path.suffix == ".flac" else _picture(path, frames)


def _picture(path: Path, frames: int) -> Shown:
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as opened:
        if opened.width * opened.height > _MOST_PIXELS:
            raise ValueError(f"{opened.width}x{opened.height} is too large")
        whole = opened.convert("RGB")
    parts = [whole]
    if frames > 1:
        width = whole.width // frames
        parts = [whole.crop((at * width, 0, (at + 1) * width, whole.height)) for at in (0, frames - 1)]
    cut = [_middle(part) for part in parts]
    canvas = Image.new("RGB", (sum(part.width for part in cut), cut[0].height))
    for index, part in enumerate(cut):
        canvas.paste(part, (index * cut[0].width, 0))
    body = io.BytesIO()
    canvas.save(body, "WEBP", lossless=True, quality=60, method=4, exact=True)
    about = []
    if cut[0].size != parts[0].size:
        about.append(f"the middle {cut[0].width}x{cut[0].height} of {parts[0].width}x{parts[0].height}")
    if frames > 1:
        about.append("first and last of the kept frames")
    content = hashlib.sha256(repr(whole.size).encode() + whole.tobytes()).hexdigest()
    return Shown(_uri("image/webp", body.getvalue()), ", ".join(about), content)


def _middle(image: Image) -> Image:
    width, height = min(CROP, image.width), min(CROP, image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _sound(path: Path) -> Shown:
    import soundfile

    about_it = soundfile.info(path)
    if about_it.frames * about_it.channels > _MOST_VALUES:
        raise ValueError(f"{about_it.duration:.0f} s are too long")
    signal, rate = soundfile.read(path, dtype="int32", always_2d=True)
    cut = signal[: int(SECONDS * rate)]
    body = io.BytesIO()
    soundfile.write(body, cut, rate, format="FLAC", subtype="PCM_16")
    about = "" if len(cut) == len(signal) else f"the first {SECONDS:g} s of {len(signal) / rate:.1f} s"
    content = hashlib.sha256(f"{signal.shape} {rate}".encode() + signal.tobytes()).hexdigest()
    return Shown(_uri("audio/flac", body.getvalue()), about, content)


def _uri(kind: str, body: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"


# ----------------------------------------------------------------------------------------------------- galleries


def gallery(
    places: Mapping[str, Path], columns: Mapping[str, tuple[str, int]], media: Media, budget: int
) -> dict[str, Any] | None:
    """Return the kept samples of a board as the page's script shows them, or None where there are none.

    A sample is shown with every tokenizer that kept it, or not at all, except the first, of which as many are shown as fit.

    Args:
        places: Tokenizer -> directory of its result, in the order of the board.
        columns: Row columns to state of each reconstruction -> (unit, decimals).
        media: Takes the pictures.
        budget: Bytes this board may add.
    """
    kept = {
        name: {item.key: item for item in found}
        for name, place in places.items()
        if (place / FOLDER).is_dir() and (found := kept_samples(place))
    }
    if not kept:
        return None
    count: dict[str, int] = {}
    for mine in kept.values():
        for key in mine:
            count[key] = count.get(key, 0) + 1
    keys = sorted(count, key=lambda key: (-count[key], order(key)))
    samples: list[dict[str, Any]] = []
    said: list[str] = []
    start = media.used
    for position, key in enumerate(keys):
        sample, dropped, wrong = _one(key, kept, places, columns, media, start + budget - media.used, bool(samples))
        said += wrong
        if sample is None:
            said.append(f"{len(keys) - position} of {len(keys)} kept samples are left out: the page holds no more")
            break
        if dropped:
            said.append(f"{key}: {dropped} tokenizer(s) left out: the page holds no more")
        if sample["shown"]:
            samples.append(sample)
    if not samples:
        return None
    kind = next(item.modality for mine in kept.values() for item in mine.values())
    return {"kind": kind, "samples": samples, "said": said}


def _one(
    key: str,
    kept: Mapping[str, Mapping[str, Kept]],
    places: Mapping[str, Path],
    columns: Mapping[str, tuple[str, int]],
    media: Media,
    budget: int,
    whole: bool,
) -> tuple[dict[str, Any] | None, int, list[str]]:
    """Return one sample with its reconstructions, how many did not fit, and what is wrong with others.

    None: it does not fit (with `whole`, not with every tokenizer).
    """
    names = [name for name in kept if key in kept[name]]
    original: Shown | None = None
    found: list[tuple[str, Shown]] = []
    wrong, dropped, cost = [], 0, 0
    for name in names:
        item, folder = kept[name][key], places[name] / FOLDER
        try:
            first, second = (shown(folder / side, len(item.frames)) for side in (item.original, item.reconstruction))
        except StoreError:
            wrong.append(f"{name}: what was kept of {key} cannot be read")
            continue
        if original is not None and first.content != original.content:
            wrong.append(f"{name}: its original of {key} is not that of the others; not shown")
            continue
        more = media.cost([second.uri] if original else [first.uri, second.uri])
        if cost + more > budget:
            if whole:
                return None, 0, wrong
            dropped += 1
            continue
        original = original or first
        cost += more
        found.append((name, second))
    if original is None:
        return (None, 0, wrong) if dropped else ({"shown": []}, 0, wrong)
    shown_rows = [[name, media.add(item.uri), values(places[name], key, columns)] for name, item in found]
    return (
        {"key": key, "about": original.about, "original": media.add(original.uri), "shown": shown_rows},
        dropped,
        wrong,
    )


def values(place: Path, key: str, columns: Mapping[str, tuple[str, int]]) -> str:
    """Return a row's own values in a few words, e.g. `psnr 31.20 dB, ssim 0.912`; "" where its rows are not here."""
    import pyarrow.parquet as pq

    path = place / "rows.parquet"
    if not columns or not path.exists():
        return ""
    known = [name for name in columns if name in set(pq.read_schema(path).names)]
    rows = pq.read_table(path, columns=known, filters=[("key", "=", key)]).to_pylist()
    parts = []
    for name, value in (rows[0] if rows else {}).items():
        unit, decimals = columns[name]
        if value is not None:
            parts.append(f"{name} {value:.{decimals}f}{' ' + unit if unit else ''}")
    return ", ".join(parts)
