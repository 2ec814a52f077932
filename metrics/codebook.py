"""How a tokenizer uses its codebooks over a whole set: usage, perplexity, entropy and the entropy-coded rate."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokbench.errors import ContractError, UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample, State, Stream, merge_states

from ._probe import valid

DENSE_LIMIT = 2**22
"""Entries up to which a codebook is counted entry by entry (32 MiB of counts); larger ones are counted by bit."""

_COUNTS, _ONES, _CODED = "counts/", "ones/", "coded/"
PIXELS, _SOUND, _FRAMES, _UNTIMED = "pixels", "sound_at/", "frames_at/", "frames_without_fps"
CLOCKS = (_SOUND, _FRAMES, _UNTIMED)

_NO_TOKENS = "no token was counted"
_BY_BIT = (
    f"{_NO_TOKENS}, or a codebook has more than {DENSE_LIMIT:,} entries and is implicit: counted by bit or not at all"
)
_NO_RATE = "a codebook has too many entries to count and is no power of two"


@dataclass(frozen=True)
class CodebookUsage:
    """Histogram of every codebook over the whole set, and what follows from it.

    State: int64 counts that merge by addition, so any order, batch and split gives the same numbers to the bit.
    Streams that share a codebook id share a table and are pooled; tokens beyond `Stream.lengths` are not counted.

    `codebook_usage` is the share of entries used at least once, pooled over codebooks (entries used / entries there
    are). With p the relative frequencies of a codebook's n tokens and m its used entries: `codebook_entropy` is
    -Σ p·log2 p in bits (plug-in), `codebook_entropy_mm` adds Miller and Madow's (m - 1) / (2n·ln 2),
    `codebook_perplexity` is 2^entropy; each is the plain mean over the codebooks that emitted a token.
    **All of them grow with the number of tokens** until the set is large against the codebook: a uniform source over
    65,536 entries shows a usage of 22 % after 16,000 tokens. Compare only numbers with the same `codebook_tokens`.

    `bpp_entropy` and `kbps_entropy` are what an ideal order-0 coder that knows these frequencies would send:
    Σ n·entropy over codebooks, plus `Code.side_bits`, over the reference's pixels (video: pixels of every frame) or
    seconds; an image has no `kbps_entropy`, sound no `bpp_entropy`, and those are not returned.

    With more than one codebook, `compute` returns the first four for each as well, in columns the spec does not list:
    `codebook_usage/<id>`, `codebook_perplexity/<id>`, `codebook_entropy/<id>`, `codebook_entropy_mm/<id>`.

    Implicit codebooks (LFQ, BSQ) have up to 2^62 entries and no table. One of more than 2^22 entries is not counted
    entry by entry: when its size is a power of two every bit of the index is counted on its own, which gives
    `bit_entropy` (mean bits per bit, 1 when balanced) and, as the cost of a bit-wise coder, its part of the
    entropy-coded rate (an upper bound of the order-0 rate). Usage, perplexity and entropy of the set are then None, and
    so is the rate when the size is no power of two.

    Reference: Miller 1955, "Note on the bias of information estimates"; usage over the whole evaluation set as
    SEED-Voken and 1d-tokenizer count it.
    """

    undefined: ClassVar[Mapping[str, str]] = {
        "codebook_usage": _BY_BIT,
        "codebook_perplexity": _BY_BIT,
        "codebook_entropy": _BY_BIT,
        "codebook_entropy_mm": _BY_BIT,
        "bit_entropy": f"no codebook of more than {DENSE_LIMIT:,} entries was counted by bit",
        "bpp_entropy": f"{_NO_TOKENS}, or {_NO_RATE}",
        "kbps_entropy": f"{_NO_TOKENS}, {_NO_RATE}, or the frame rate of a clip is unknown",
    }

    @property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        return MetricSpec(
            of_code=True,
            name="codebook",
            modalities=("image", "video", "audio"),
            kinds=("discrete",),
            summary="Codebook usage, perplexity, entropy and entropy-coded rate over the whole set",
            reference="Miller 1955; numpy.bincount",
            protocol={"dense_limit": DENSE_LIMIT, "pooling": "usage over entries; the rest mean over codebooks"},
            columns=(
                column("codebook_usage", "", "Share of entries used at least once over the set", better=True),
                column("codebook_perplexity", "entries", "2^entropy, mean over codebooks", better=True, decimals=1),
                column("codebook_entropy", "bits", "Plug-in entropy, mean over codebooks", better=True, level=False),
                column(
                    "codebook_entropy_mm", "bits", "Miller-Madow entropy, mean over codebooks", better=True, level=False
                ),
                column("codebook_tokens", "tokens", "Tokens counted", decimals=0, level=False),
                column(
                    "bit_entropy", "bits", "Entropy a bit, implicit codebooks counted by bit", better=True, level=False
                ),
                column("bpp_entropy", "bit/pixel", "Order-0 entropy-coded rate", better=False),
                column("kbps_entropy", "kbit/s", "Order-0 entropy-coded rate", better=False, decimals=3),
            ),
        )

    def init(self) -> State:
        """Return the empty state: a missing key is zero."""
        return {}

    def update(self, state: State, sample: Sample) -> State:
        """Return `state` with the tokens and the signal of a batch added; `state` itself is left as it is.

        Raises:
            ContractError: Indices are not integers in [0, codebook_size), a stream does not have one row per sample,
                its lengths do not fit, or two streams share an id and differ in codebook_size.
            UsageError: The code has no streams, or sound has no sample rate.
        """
        if not sample.code.streams:
            raise UsageError(f"codebook counts discrete tokens; {sample.spec.name} emitted no stream")
        rows = sample.reference.shape[0]
        batch: State = extent_of(sample)
        batch["samples"] = torch.tensor(rows)
        batch["side_bits"] = torch.tensor(rows * sample.code.side_bits)
        for stream in sample.code.streams:
            try:
                batch = merge_states(batch, _count(stream, valid_tokens(stream, rows)))
            except ValueError as error:
                raise ContractError(
                    f"codebook {stream.codebook!r} changed its size within one code: {error}"
                ) from error
        try:
            return merge_states(state, batch)
        except ValueError as error:
            raise ContractError(
                f"a codebook of {sample.spec.name} changed its size between batches: {error}"
            ) from error

    def compute(self, state: State) -> dict[str, float | None]:
        """Return the corpus columns, and one column a codebook and quantity where there is more than one codebook."""
        books = [_Book.from_counts(key[len(_COUNTS) :], state[key]) for key in keys_under(state, _COUNTS)]
        implicit = [_Implicit.from_state(state, key) for key in keys_under(state, _CODED)]
        used = [book for book in books if book.tokens]
        counted = [] if implicit else used
        by_bit = [book for book in implicit if book.tokens and book.bits is not None]
        bits, pixels, seconds = _coded_bits(state, books, implicit), _integer(state, PIXELS), seconds_of(state)
        out: dict[str, float | None] = {
            "codebook_usage": sum(b.used for b in books) / sum(b.size for b in books) if counted else None,
            "codebook_perplexity": mean_of([book.perplexity for book in counted]),
            "codebook_entropy": mean_of([book.entropy for book in counted]),
            "codebook_entropy_mm": mean_of([book.entropy_mm for book in counted]),
            "codebook_tokens": float(sum(b.tokens for b in books) + sum(b.tokens for b in implicit)),
            "bit_entropy": mean_of([(book.bits or 0.0) / (book.tokens * book.width) for book in by_bit]),
        }
        if not state or PIXELS in state:
            out["bpp_entropy"] = bits / pixels if bits is not None and pixels else None
        if not state or any(key.startswith(CLOCKS) for key in state):
            out["kbps_entropy"] = bits / seconds / 1000 if bits is not None and seconds else None
        if len(books) + len(implicit) > 1:
            for book in books:
                out[f"codebook_usage/{book.name}"] = book.used / book.size if book.tokens else None
                out[f"codebook_perplexity/{book.name}"] = book.perplexity if book.tokens else None
                out[f"codebook_entropy/{book.name}"] = book.entropy if book.tokens else None
                out[f"codebook_entropy_mm/{book.name}"] = book.entropy_mm if book.tokens else None
        return out


def column(
    name: str, unit: str, description: str, *, better: bool | None = None, decimals: int = 4, level: bool = True
) -> Column:
    """Return a column over the whole set; values are functions of counts, so they are compared to 1e-9."""
    return Column(name, unit, better, description, 1e-9, decimals, "corpus", level)


def valid_tokens(stream: Stream, rows: int) -> Tensor:
    """Return the indices of a stream that count, flat int64: all, or those before each row's length on the last axis.

    Raises:
        ContractError: Not one row per sample, not integers in [0, codebook_size), or lengths that do not fit.
    """
    indices = stream.indices
    check_stream(stream, rows)
    tokens = (indices.reshape(-1) if stream.lengths is None else indices[valid(stream)]).to(torch.int64)
    if tokens.numel():
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= stream.codebook_size:
            raise ContractError(
                f"codebook {stream.codebook!r} has {stream.codebook_size:,} entries but emitted index "
                f"{low if low < 0 else high}: indices must be in [0, codebook_size)"
            )
    return tokens


def check_stream(stream: Stream, rows: int) -> None:
    """Raise ContractError unless a stream has a table, integer indices, one row per sample and lengths that fit."""
    indices, lengths, name = stream.indices, stream.lengths, stream.codebook
    if stream.codebook_size < 1:
        raise ContractError(f"codebook {name!r}: codebook_size must be at least 1; got {stream.codebook_size}")
    if indices.dtype.is_floating_point or indices.dtype.is_complex or indices.dtype == torch.bool:
        raise ContractError(f"codebook {name!r}: indices must be integers; got {indices.dtype}")
    if indices.ndim < 1 or indices.shape[0] != rows:
        raise ContractError(f"codebook {name!r}: indices of shape {tuple(indices.shape)} for a batch of {rows} rows")
    if lengths is None:
        return
    longest = indices.shape[-1] if indices.ndim > 1 else -1
    if tuple(lengths.shape) != (rows,) or (rows and (int(lengths.min()) < 0 or int(lengths.max()) > longest)):
        raise ContractError(
            f"codebook {name!r}: lengths must be ({rows},) values in [0, {longest}], the last axis of the "
            f"indices {tuple(indices.shape)}; got {lengths.tolist()}"
        )


@dataclass(frozen=True)
class _Book:
    """A codebook counted entry by entry."""

    name: str
    size: int
    used: int
    tokens: int
    entropy: float

    @classmethod
    def from_counts(cls, name: str, counts: Tensor) -> _Book:
        values = positive(counts)
        return cls(name, counts.numel(), int(values.size), int(values.sum()), plug_in_entropy(values))

    @property
    def perplexity(self) -> float:
        return float(2.0**self.entropy)

    @property
    def entropy_mm(self) -> float:
        return self.entropy + (self.used - 1) / (2 * self.tokens * math.log(2))


@dataclass(frozen=True)
class _Implicit:
    """A codebook too large to count: `bits` is what a bit-wise coder sends for it, None where its size has no bits."""

    tokens: int
    width: int
    bits: float | None

    @classmethod
    def from_state(cls, state: State, key: str) -> _Implicit:
        tokens, ones = _integer(state, key), state.get(_ONES + key[len(_CODED) :])
        if ones is None:
            return cls(tokens, 0, None)
        each = [
            plug_in_entropy(np.array([n for n in (one, tokens - one) if n], dtype=np.int64)) for one in ones.tolist()
        ]
        return cls(tokens, len(each), tokens * math.fsum(each))


def _coded_bits(state: State, books: Sequence[_Book], implicit: Sequence[_Implicit]) -> float | None:
    """Return the bits an order-0 coder sends for all tokens; None without tokens or where a codebook has no counts."""
    parts = [book.tokens * book.entropy for book in books]
    for book in implicit:
        if book.bits is None:
            return None
        parts.append(book.bits)
    emitted = any(book.tokens for book in books) or any(book.tokens for book in implicit)
    return math.fsum([*parts, _integer(state, "side_bits")]) if emitted else None


def _count(stream: Stream, tokens: Tensor) -> State:
    """Return the counts of one stream as a state."""
    size, name = stream.codebook_size, stream.codebook
    if size <= DENSE_LIMIT:
        return {_COUNTS + name: torch.bincount(tokens, minlength=size).cpu()}
    key = f"{size}/{name}"
    coded: State = {_CODED + key: torch.tensor(tokens.numel())}
    if size & (size - 1) == 0:
        width = size.bit_length() - 1
        ones = [((tokens >> bit) & 1).sum(dtype=torch.int64) for bit in range(width)]
        coded[_ONES + key] = torch.stack(ones).cpu()
    return coded


def extent_of(sample: Sample) -> State:
    """Return the extent of the references: pixels, frames by rate, or samples of sound by rate; all exact integers."""
    shape = sample.reference.shape
    if sample.spec.modality == "audio":
        if not sample.sample_rate:
            raise UsageError("codebook needs the sample rate in Hz for kbps_entropy: set Sample.sample_rate")
        return {f"{_SOUND}{sample.sample_rate}": torch.tensor(shape[0] * shape[-1])}
    if sample.spec.modality == "image":
        return {PIXELS: torch.tensor(shape[0] * math.prod(shape[-2:]))}
    frames = shape[0] * shape[2]
    key = f"{_FRAMES}{float(sample.fps)!r}" if sample.fps else _UNTIMED
    return {PIXELS: torch.tensor(frames * math.prod(shape[-2:])), key: torch.tensor(frames)}


def seconds_of(state: State) -> float | None:
    """Return the duration the state covers, None where part of it has no clock or it has none at all."""
    parts = list(_clocked(state))
    return math.fsum(parts) if parts and not _integer(state, _UNTIMED) else None


def keys_under(state: State, prefix: str) -> list[str]:
    """Return the keys under `prefix`, numbers in their ids in numeric order."""
    return sorted(
        (key for key in state if key.startswith(prefix)),
        key=lambda key: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", key)],
    )


def _clocked(state: State) -> Iterator[float]:
    for prefix in (_SOUND, _FRAMES):
        for key in sorted(key for key in state if key.startswith(prefix)):
            yield _integer(state, key) / float(key[len(prefix) :])


def plug_in_entropy(counts: npt.NDArray[np.int64]) -> float:
    """Return the plug-in entropy in bits of positive counts; 0.0 for none."""
    if counts.size < 2:
        return 0.0
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where there is no value, or one of them is None."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _integer(state: State, key: str) -> int:
    return int(state[key].item()) if key in state else 0


def positive(counts: Tensor) -> npt.NDArray[np.int64]:
    """Return the counts above 0."""
    values: npt.NDArray[np.int64] = counts.cpu().numpy()
    return values[values > 0]
