"""How tokens are distributed beyond their histogram: growth of usage, position, order, neighbours, and what that could save."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokbench.errors import ContractError, UsageError
from tokbench.spec import MetricSpec
from tokbench.types import Sample, State, Stream, merge_states

from ._probe import valid
from .codebook import (
    CLOCKS,
    DENSE_LIMIT,
    PIXELS,
    column,
    extent_of,
    keys_under,
    mean_of,
    plug_in_entropy,
    positive,
    seconds_of,
    valid_tokens,
)

POSITION_LIMIT = 2**22
"""Positions times entries, over all streams, up to which tokens are counted by position (32 MiB of counts)."""

PAIR_LIMIT = 2**23
"""Counts of pairs over all codebooks (64 MiB); a codebook with more pairs than its share has them hashed into its share."""

LAST = 65_536
"""Tokens LlamaGen's training buffer holds."""

_COUNTS, _POSITION, _GRID, _PAIRS, _LEFT, _TAIL = "counts/", "position/", "grid/", "pairs/", "left/", "tail/"
_SEVERAL = "several"
_SHOWN_POSITIONS = 256
_MULTIPLIER = -7046029254386353131  # 2^64 / golden ratio, as int64: Fibonacci hashing

_UNCOUNTED = f"no token was counted, or a codebook has more than {DENSE_LIMIT:,} entries"
_UNPAIRED = (
    "no token has a left neighbour, or pairs were hashed and more than a sixteenth of the buckets are taken: "
    f"an exact table of pairs is kept up to {PAIR_LIMIT:,} counts over all codebooks"
)


@dataclass(frozen=True)
class TokenStatistics:
    """Growth, order and dependence of the tokens of a whole set. Corpus state: int64 counts that merge by addition.

    Every entropy is in bits; with several codebooks a column is the mean over codebooks (usage is pooled over entries) and
    `<column>/<codebook>` gives each. Streams of one codebook id are pooled, except by position.

    | column | what |
    |---|---|
    | `usage_at` | expected share of entries used after 65,536 tokens a codebook, drawn without replacement from all counted tokens (rarefaction, Hurlbert 1971): exact and free of order. `usage_at/1024`, `/2048`, ... is the curve |
    | `usage_llamagen` | share of entries among the last 65,536 tokens a codebook, in key order: LlamaGen's definition on an evaluation set. Undefined with fewer tokens |
    | `dead_codes` | entries never used; `dead_entries_of(run)` lists them |
    | `zipf_exponent` | minus the slope of log count over log rank, least squares over used entries |
    | `position_entropy` | entropy of the tokens at each place of a fixed grid, mean over places (`/min`, `/max`; each place where a code is a sequence of at most 256) |
    | `bigram_entropy` | entropy of pairs (left neighbour, token) along the last axis |
    | `conditional_entropy`, `_mm` | entropy of a token given its left neighbour; `_mm` with Miller and Madow's correction of both terms |
    | `bits_per_token`, `_conditional` | order-0 entropy-coded bits a token over all codebooks; and coded given the left neighbour, a first token by its order-0 entropy |
    | `bpp_conditional`, `kbps_conditional` | the latter with `Code.side_bits` over the reference's pixels or seconds |

    **All entropies are too low, and dependence too strong, while the set is small against the codebook squared**: compare only
    numbers with the same `codebook_tokens` of the metric `codebook`.

    Bounds. Tokens by position are counted up to 2^22 places times entries (32 MiB), where every row has one grid. Pairs have
    2^23 counts over all codebooks (64 MiB): exact where a codebook's size squared fits its share, else hashed into the share,
    which can only lower the entropy of pairs, by at most about 1 bit times the share of taken buckets; past a sixteenth of the
    buckets the columns of pairs are undefined. Codebooks of more than 2^22 entries are left out of all of this.
    """  # noqa: E501 - a table row cannot be wrapped

    undefined: ClassVar[Mapping[str, str]] = {
        "usage_at": f"{_UNCOUNTED}, or fewer than {LAST:,} tokens a codebook",
        "usage_llamagen": f"{_UNCOUNTED}, or fewer than {LAST:,} tokens a codebook",
        "dead_codes": _UNCOUNTED,
        "zipf_exponent": f"{_UNCOUNTED}, or fewer than two entries are used",
        "position_entropy": f"grids differ or are ragged, or have over {POSITION_LIMIT:,} places times entries",
        "bigram_entropy": _UNPAIRED,
        "conditional_entropy": _UNPAIRED,
        "conditional_entropy_mm": _UNPAIRED,
        "bits_per_token": _UNCOUNTED,
        "bits_per_token_conditional": _UNPAIRED,
        "bpp_conditional": _UNPAIRED,
        "kbps_conditional": f"{_UNPAIRED}; or the frame rate of a clip is unknown",
    }

    @property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        return MetricSpec(
            of_code=True,
            name="tokens",
            modalities=("image", "video", "audio"),
            kinds=("discrete",),
            summary="Usage curve, position and neighbour entropy, Zipf exponent, conditional rate of tokens",
            reference="Hurlbert 1971 (rarefaction); Miller 1955; LlamaGen (usage_llamagen)",
            protocol={
                "last": LAST, "dense_limit": DENSE_LIMIT, "position_limit": POSITION_LIMIT, "pair_limit": PAIR_LIMIT,
                "neighbour": "left, last axis",
            },
            columns=(
                column("usage_at", "", f"Expected share of entries used after {LAST:,} tokens", better=True),
                column("usage_llamagen", "", f"Share of entries in the last {LAST:,} tokens, key order", better=True),
                column("dead_codes", "entries", "Entries never used", better=False, decimals=0),
                column("zipf_exponent", "", "Slope of log count over log rank, sign turned", decimals=3),
                column("position_entropy", "bits", "Entropy at a place of the grid, mean over places"),
                column("bigram_entropy", "bits", "Entropy of (left neighbour, token)"),
                column("conditional_entropy", "bits", "Entropy of a token given its left neighbour"),
                column("conditional_entropy_mm", "bits", "The same, Miller-Madow", level=False),
                column("bits_per_token", "bits", "Order-0 entropy-coded bits a token"),
                column("bits_per_token_conditional", "bits", "Coded given the left neighbour"),
                column("bpp_conditional", "bit/pixel", "Rate coded given the left neighbour", better=False),
                column("kbps_conditional", "kbit/s", "Rate coded given the left neighbour", better=False, decimals=3),
            ),
        )  # fmt: skip

    def init(self) -> State:
        """Return the empty state: a missing key is zero."""
        return {}

    def update(self, state: State, sample: Sample) -> State:
        """Return `state` with a batch added; `state` itself is left as it is.

        `tail/<codebook>`, a tab and a key hold the tokens of one row; only rows that can be among the last 65,536 tokens
        are kept. No two rows have one key, so these too merge by addition.

        Raises:
            ContractError: A malformed stream, or two streams or batches of one id that differ in codebook_size.
            UsageError: The code has no streams, or sound has no sample rate.
        """
        streams, rows = sample.code.streams, sample.reference.shape[0]
        if not streams:
            raise UsageError(f"tokens counts discrete tokens; {sample.spec.name} emitted no stream")
        new = merge_states(state, {**extent_of(sample), "side_bits": torch.tensor(rows * sample.code.side_bits)})
        books = {stream.codebook for stream in streams}
        room = 2 ** int(math.log2(PAIR_LIMIT // len(books)))
        places = sum(math.prod(stream.indices.shape[1:]) * stream.codebook_size for stream in streams)
        for order, stream in enumerate(streams):
            tokens = valid_tokens(stream, rows)
            if stream.codebook_size > DENSE_LIMIT:
                _add(new, f"uncounted/{stream.codebook}", 1, torch.zeros_like(tokens))
                continue
            _add(new, _COUNTS + stream.codebook, stream.codebook_size, tokens)
            _add_positions(new, order, stream, rows, counted=places <= POSITION_LIMIT)
            _add_pairs(new, stream, room)
        _add_tail(new, sample)
        return new

    def bound(self, state: State) -> State:
        """Return an equal state without the rows that are not among the last 65,536 tokens."""
        new = dict(state)
        for book in {key[len(_TAIL) :].partition("\t")[0] for key in state if key.startswith(_TAIL)}:
            for key in _tail_keys(new, book)[1]:
                del new[key]
        return new

    def compute(self, state: State) -> dict[str, float | None]:
        """Return the corpus columns, the usage curve, and each codebook's numbers where there is more than one."""
        names = [key[len(_COUNTS) :] for key in keys_under(state, _COUNTS)]
        whole = not keys_under(state, "uncounted/")
        books = [book for book in (_Book.of(state, name) for name in names) if book.tokens] if whole else []
        entries = sum(book.size for book in books)
        tails = [_last_used(state, book.name) for book in books]
        out: dict[str, float | None] = {
            "usage_at": _curve_at(books, LAST),
            "usage_llamagen": sum(t for t in tails if t) / entries if books and None not in tails else None,
            "dead_codes": float(entries - sum(book.used for book in books)) if books else None,
            "zipf_exponent": mean_of([book.zipf for book in books]),
            **_positions(state),
            "bigram_entropy": mean_of([book.joint for book in books]),
            "conditional_entropy": mean_of([book.conditional for book in books]),
            "conditional_entropy_mm": mean_of([book.conditional_mm for book in books]),
        }
        tokens = sum(book.tokens for book in books)
        plain = math.fsum(book.tokens * book.entropy for book in books)
        coded = [book.coded for book in books]
        bits = math.fsum(c for c in coded if c is not None) if books and None not in coded else None
        out["bits_per_token"] = plain / tokens if tokens else None
        out["bits_per_token_conditional"] = None if bits is None else bits / tokens
        total = None if bits is None else bits + int(state["side_bits"])
        pixels, seconds = (int(state[PIXELS]) if PIXELS in state else 0), seconds_of(state)
        if not state or PIXELS in state:
            out["bpp_conditional"] = total / pixels if total is not None and pixels else None
        if not state or any(key.startswith(CLOCKS) for key in state):
            out["kbps_conditional"] = total / seconds / 1000 if total is not None and seconds else None
        for step in range(10, 63):
            value = _curve_at(books, 2**step)
            if value is None:
                break
            out[f"usage_at/{2**step}"] = value
        if len(books) > 1:
            for book, tail in zip(books, tails, strict=True):
                out[f"dead_codes/{book.name}"] = float(book.size - book.used)
                out[f"usage_llamagen/{book.name}"] = None if tail is None else tail / book.size
                out[f"zipf_exponent/{book.name}"] = book.zipf
                out[f"bigram_entropy/{book.name}"] = book.joint
                out[f"conditional_entropy/{book.name}"] = book.conditional
                out[f"conditional_entropy_mm/{book.name}"] = book.conditional_mm
                out[f"bits_per_token/{book.name}"] = book.entropy
        return out


def dead_entries(state: State) -> dict[str, Tensor]:
    """Return codebook id -> the entries that were never used, int64, of a state of `TokenStatistics`.

    `dead_entries_of` reads it of a finished run.
    """
    return {key[len(_COUNTS) :]: (state[key] == 0).nonzero()[:, 0] for key in keys_under(state, _COUNTS)}


def dead_entries_of(run: Path) -> dict[str, Tensor]:
    """Return `dead_entries` of a finished run, over all its shards.

    Args:
        run: The directory of its `result.json`.

    Raises:
        UsageError: No shard there has counts of the metric `tokens`.
    """
    from safetensors import safe_open

    start, counts = "tokens\n", State()
    for path in sorted(run.glob("shards/*/states.safetensors")):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(start + _COUNTS)]  # noqa: SIM118 - not a dict
            counts = merge_states(counts, {name.removeprefix(start): file.get_tensor(name) for name in names})
    if not counts:
        raise UsageError(
            f"{run}: no shard has counts of codes; run with `-m tokens` and name the folder of result.json"
        )
    return dead_entries(counts)


@dataclass(frozen=True)
class _Book:
    """One codebook's counts, and its pairs where they could be kept."""

    name: str
    size: int
    counts: npt.NDArray[np.int64]
    pairs: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]

    @classmethod
    def of(cls, state: State, name: str) -> _Book:
        counts = state[_COUNTS + name]
        pairs = state.get(_PAIRS + name, torch.zeros(0, dtype=torch.int64))
        # Counts of hashed pairs mean something only while collisions are rare.
        crowded = pairs.numel() != counts.numel() ** 2 and int((pairs > 0).sum()) * 16 > pairs.numel()
        left = state.get(_LEFT + name, torch.zeros(0, dtype=torch.int64))
        return cls(name, counts.numel(), positive(counts), positive(pairs[:0] if crowded else pairs), positive(left))

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    @property
    def used(self) -> int:
        return self.counts.size

    @property
    def entropy(self) -> float:
        return plug_in_entropy(self.counts)

    @property
    def joint(self) -> float | None:
        return plug_in_entropy(self.pairs) if self.pairs.size else None

    @property
    def conditional(self) -> float | None:
        joint = self.joint
        return None if joint is None else max(0.0, joint - plug_in_entropy(self.left))

    @property
    def conditional_mm(self) -> float | None:
        if self.conditional is None:
            return None
        return self.conditional + (self.pairs.size - self.left.size) / (2 * int(self.pairs.sum()) * math.log(2))

    @property
    def coded(self) -> float | None:
        """Bits of all tokens: those with a left neighbour given it, the others by the order-0 entropy."""
        if self.conditional is None:
            return None
        pairs = int(self.pairs.sum())
        return pairs * self.conditional + (self.tokens - pairs) * self.entropy

    @property
    def zipf(self) -> float | None:
        if self.used < 2:
            return None
        ranks = np.log(np.arange(1, self.used + 1, dtype=np.float64))
        counts = np.log(np.sort(self.counts)[::-1].astype(np.float64))
        ranks -= ranks.mean()
        return float(-(ranks * (counts - counts.mean())).sum() / (ranks * ranks).sum())

    def expected_used(self, tokens: int) -> float:
        """Return how many entries a draw of `tokens` of the counted tokens, without replacement, is expected to hold."""
        from scipy.special import gammaln

        total = self.tokens
        sizes, times = np.unique(self.counts, return_counts=True)
        rest = total - sizes
        absent = np.zeros(sizes.size)
        can = rest >= tokens
        # C(rest, tokens) / C(total, tokens), by logarithms of factorials.
        absent[can] = np.exp(
            gammaln(rest[can] + 1) - gammaln(rest[can] - tokens + 1) - gammaln(total + 1) + gammaln(total - tokens + 1)
        )
        return float((times * (1 - absent)).sum())


def _add(state: State, key: str, size: int, places: Tensor) -> None:
    """Count `places` into a new tensor under `key`; the one that was there is left as it is."""
    old = state.get(key)
    if old is not None and old.numel() != size:
        raise ContractError(f"codebook {key.partition('/')[2]!r} changed its size from {old.numel()} to {size}")
    counts = torch.zeros(size, dtype=torch.int64) if old is None else old.clone()
    flat = places.reshape(-1).cpu()
    state[key] = counts.index_add_(0, flat, torch.ones_like(flat))


def _add_positions(state: State, order: int, stream: Stream, rows: int, *, counted: bool) -> None:
    grid = _SEVERAL if stream.lengths is not None else "x".join(map(str, stream.indices.shape[1:]))
    start = f"{_GRID}{order}/"
    known = {key.removeprefix(start) for key in state if key.startswith(start)}
    if known - {grid}:
        grid = _SEVERAL  # a second shape: undefined from here on, whatever else comes
    state[start + grid] = state.get(start + grid, torch.tensor(0)) + rows
    if grid == _SEVERAL:
        for key in [key for key in state if key.startswith(f"{_POSITION}{order}/")]:
            del state[key]
    elif counted:
        places = math.prod(stream.indices.shape[1:])
        flat = stream.indices.reshape(rows, places).long()
        keys = torch.arange(places, device=flat.device) * stream.codebook_size + flat
        _add(state, f"{_POSITION}{order}/{grid}", places * stream.codebook_size, keys)


def _add_pairs(state: State, stream: Stream, room: int) -> None:
    if stream.indices.ndim < 2:
        return
    mask = valid(stream)[..., 1:]
    left, right = stream.indices[..., :-1][mask].long(), stream.indices[..., 1:][mask].long()
    size = stream.codebook_size
    pairs = left * size + right
    if size * size > room:
        pairs = ((pairs * _MULTIPLIER) >> (63 - (room.bit_length() - 1))) & (room - 1)
    _add(state, _PAIRS + stream.codebook, min(size * size, room), pairs)
    _add(state, _LEFT + stream.codebook, size, left)


def _add_tail(state: State, sample: Sample) -> None:
    books: dict[str, list[Stream]] = {}
    for stream in sample.code.streams:
        books.setdefault(stream.codebook, []).append(stream)
    for book, streams in books.items():
        if streams[0].codebook_size > DENSE_LIMIT:
            continue
        masks = [valid(stream) for stream in streams]
        for row, key in enumerate(sample.keys):
            parts = [s.indices[row][m[row]].reshape(-1) for s, m in zip(streams, masks, strict=True)]
            place = f"{_TAIL}{book}\t{key}"
            if place in state:
                raise ContractError(f"two rows have the key {key!r}; their tokens have no order")
            state[place] = torch.cat(parts).long().cpu().clone()
        for key in _tail_keys(state, book)[1]:
            del state[key]


def _tail_keys(state: State, book: str) -> tuple[list[str], list[str]]:
    """Return the keys that hold the last 65,536 tokens, last row first, and those that do not."""
    prefix, held = f"{_TAIL}{book}\t", 0
    keys = sorted((key for key in state if key.startswith(prefix)), key=lambda key: key[len(prefix) :], reverse=True)
    for index, key in enumerate(keys):
        if held >= LAST:
            return keys[:index], keys[index:]
        held += state[key].numel()
    return keys, []


def _last_used(state: State, book: str) -> int | None:
    """Return how many entries the last 65,536 tokens in key order use; None where there are fewer."""
    keys, _ = _tail_keys(state, book)
    tokens = torch.cat([state[key] for key in reversed(keys)]) if keys else torch.zeros(0, dtype=torch.int64)
    return None if tokens.numel() < LAST else int(np.unique(tokens[-LAST:].numpy()).size)


def _positions(state: State) -> dict[str, float | None]:
    out: dict[str, float | None] = {"position_entropy": None}
    orders = {key.split("/")[1] for key in keys_under(state, _GRID)}
    grids = keys_under(state, _GRID)
    tables = keys_under(state, _POSITION)
    if not tables or len(grids) != len(orders) or len(tables) != len(orders):
        return out
    entropies: list[float] = []
    sequence = all("x" not in key.split("/")[2] for key in tables)
    for key in tables:
        order, grid = key.split("/")[1:]
        places = math.prod(int(side) for side in grid.split("x")) if grid else 1
        each = [plug_in_entropy(positive(row)) for row in state[key].reshape(places, -1)]
        if sequence and places <= _SHOWN_POSITIONS:
            prefix = f"position_entropy/{order}/" if len(tables) > 1 else "position_entropy/"
            out |= {f"{prefix}{place}": value for place, value in enumerate(each)}
        entropies += each
    out["position_entropy"] = math.fsum(entropies) / len(entropies)
    out["position_entropy/min"], out["position_entropy/max"] = min(entropies), max(entropies)
    return out


def _curve_at(books: Sequence[_Book], tokens: int) -> float | None:
    if not books or min(book.tokens for book in books) < tokens:
        return None
    return math.fsum(book.expected_used(tokens) for book in books) / sum(book.size for book in books)
