"""The tensors and protocols that tokenizers, metrics and the engine exchange, for all three modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tokbench.spec import Card, MetricSpec, TokenizerSpec

FloatArray = npt.NDArray[np.float32]

State = dict[str, Tensor]
"""Sums of a corpus metric: float64 or int64 tensors that merge by key-wise addition; a missing key is zero."""


@dataclass(frozen=True)
class Stream:
    """The indices one codebook emitted for a batch.

    Attributes:
        codebook: Identifies the table; streams that share one table share the id.
        codebook_size: Entries of the table.
        indices: (B, *grid) int64 in [0, codebook_size).
        lengths: (B,) valid tokens along the last axis of a ragged batch; None when every token counts.
    """

    codebook: str
    codebook_size: int
    indices: Tensor
    lengths: Tensor | None = None


@dataclass(frozen=True)
class Code:
    """What `encode` emits for a batch of B rows: streams, latents, or payload bytes.

    Attributes:
        streams: Discrete tokens, one stream a codebook (parallel, residual, multi-scale).
        latents: (B, C, *grid) continuous code.
        payload: One byte string a row (classical codecs): the whole bit stream a receiver needs.
        side: What `decode` needs beside them, e.g. a scale: tensors whose first axis is the batch.
        side_bits: Bits a row of `side` costs to send; counted in every rate.
    """

    streams: tuple[Stream, ...] = ()
    latents: Tensor | None = None
    payload: tuple[bytes, ...] | None = None
    side: Mapping[str, Tensor] = field(default_factory=dict)
    side_bits: int = 0


@dataclass(frozen=True)
class Sample:
    """A batch as metrics see it: canonical range, float32, on the device.

    Attributes:
        keys: B stable sample keys.
        reference: Exactly what was encoded: (B, 3, H, W), (B, 3, T, H, W) or (B, C, T).
        reconstruction: Same shape, clamped to the canonical range, the protocol's rounding applied.
        raw: The decoder's own output in the canonical range, un-padded, neither clamped nor rounded.
        code: What the tokenizer emitted for this batch.
        spec: Of the tokenizer.
        sample_rate: Hz (audio), else None.
        fps: Frames a second (video) when known, else None.
        groups: The file each row was cut from (clips of one video share it).
        annotations: Ground truth per row that a dataset carries (text boxes, key points), else empty mappings.
        memo: Work that several metrics share on this batch (features of one extractor), keyed by what it is; dies with it.
        readings: What metrics read from references, by metric name and row key, over the whole shard; see `readings`.
        codec: Runs the tokenizer again on signals or codes shaped like this batch's, for metrics that probe it (idempotence,
            perturbed codes); None where the reconstruction was resized back to the file's own size (`tokbench-pad`).
    """

    keys: tuple[str, ...]
    reference: Tensor
    reconstruction: Tensor
    raw: Tensor
    code: Code
    spec: TokenizerSpec
    sample_rate: int | None = None
    fps: float | None = None
    groups: tuple[str, ...] = ()
    annotations: tuple[Mapping[str, object], ...] = ()
    memo: dict[str, object] = field(default_factory=dict, compare=False, repr=False)
    readings: dict[str, dict[str, object]] = field(default_factory=dict, compare=False, repr=False)
    codec: Codec | None = field(default=None, compare=False, repr=False)


def take_code(code: Code, index: int) -> Code:
    """Return the code of row `index` as that of a batch of one."""
    one = slice(index, index + 1)
    return replace(
        code,
        streams=tuple(
            replace(
                stream, indices=stream.indices[one], lengths=None if stream.lengths is None else stream.lengths[one]
            )
            for stream in code.streams
        ),
        latents=None if code.latents is None else code.latents[one],
        payload=None if code.payload is None else code.payload[one],
        side={name: value[one] for name, value in code.side.items()},
    )


def take_row(sample: Sample, index: int) -> Sample:
    """Return the batch of one that holds row `index`."""
    one = slice(index, index + 1)
    return replace(
        sample,
        keys=sample.keys[one],
        reference=sample.reference[one],
        reconstruction=sample.reconstruction[one],
        raw=sample.raw[one],
        groups=sample.groups[one],
        annotations=sample.annotations[one],
        memo={},
        code=take_code(sample.code, index),
    )


@runtime_checkable
class Tokenizer(Protocol):
    """A published tokenizer behind two methods. Duck-typed: no base class is needed.

    `encode` takes (B, 3, H, W), (B, 3, T, H, W) or (B, C, T) float32 in `spec.input_range`, padded to `spec.downsample`, on
    the device of the tokenizer; `decode` returns the same shape in the same range (a decoder of sound may be a few samples
    short or long; the engine cuts and counts). Neither may keep state between calls.
    A tokenizer that holds a torch module also has `to(device, dtype)`, see `Movable`.
    """

    @property
    def spec(self) -> TokenizerSpec: ...

    def encode(self, x: Tensor) -> Code: ...

    def decode(self, code: Code) -> Tensor: ...


class Codec(Protocol):
    """The tokenizer with all that the engine does around it, on one batch's shape: range, resampling, padding, rounding.

    What `Sample.codec` holds. Signals are canonical and shaped like `Sample.reference`; `keys` seed a stochastic tokenizer
    row by row, which is why such a tokenizer sees batches of one. `decode(encode(x))` of the reference is `Sample.raw`
    (unless both draw: each is seeded anew).
    """

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def seed(self) -> int:
        """Of the protocol; a metric that draws random numbers seeds them by (seed, key)."""
        ...

    def encode(self, x: Tensor, keys: Sequence[str]) -> Code:
        """Map canonical signals, shaped like `Sample.reference`, to a code."""
        ...

    def decode(self, code: Code, keys: Sequence[str]) -> Tensor:
        """Map a code to canonical signals shaped like `Sample.reference`, neither clamped nor rounded."""
        ...

    def finish(self, raw: Tensor) -> Tensor:
        """Clamp and round as the protocol does: what `decode` gave becomes what `Sample.reconstruction` would hold."""
        ...

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what the quantizer of a `LatentSource` saw of the signals: (B, *grid, D).

        Raises:
            NotApplicable: The tokenizer is no `LatentSource`.
        """
        ...


class Neighbours(Protocol):
    """What lies near an entry of a codebook; `tokbench.adapters.nn.neighbours` has one for each kind of quantizer."""

    def choose(self, indices: Tensor, delta: int, uniform: Tensor) -> Tensor:
        """Return for each of (N,) indices another entry, drawn from its neighbourhood of strength `delta`.

        `uniform` (N,) float64 in [0, 1) decides which: equal parts of [0, 1) belong to the members.
        """
        ...


@runtime_checkable
class LatentNeighbours(Protocol):
    """Neighbours in a table of vectors, which can be searched with a latent as well."""

    def choose_near(self, latents: Tensor, delta: int, uniform: Tensor) -> Tensor:
        """Return for each of (N, D) unquantized latents one of the `delta` entries nearest to it, the nearest included."""
        ...


@runtime_checkable
class Neighbouring(Protocol):
    """A tokenizer that knows what lies near an entry of each of its codebooks, for perturbation metrics."""

    def neighbours(self, codebook: str) -> Neighbours: ...


@runtime_checkable
class LatentSource(Protocol):
    """A tokenizer that shows what its quantizers see: (B, *grid, D) on the table's own scale, for one codebook id."""

    def unquantized(self, x: Tensor, codebook: str) -> Tensor: ...


@runtime_checkable
class Droppable(Protocol):
    """A 1-D tokenizer whose decoder takes fewer tokens than its encoder emits (mask tokens, zeros, a shorter sequence)."""

    def drop(self, code: Code, keep: Tensor) -> Code:
        """Return `code` without the tokens where `keep`, (B, N) bool, is False; `decode` takes the result."""
        ...


@runtime_checkable
class Movable(Protocol):
    """A tokenizer whose compute can move: `device` as torch spells it, `dtype` one of float32, bfloat16, float16."""

    def to(self, device: str, dtype: str) -> None: ...


Weights = Mapping[str, Path]
"""Role -> local file, for every `WeightFile` of a card, found and checked by `tokbench.weights`."""

AdapterFactory = Callable[[Card, Weights], Tokenizer]
"""How the registry builds a tokenizer that has a card. A class named as `path.py:Class` is called as `Class(**options)`."""


class PerSample(Protocol):
    """A metric with one value a row: PSNR, SSIM, SI-SDR. The engine keeps the rows and derives mean, interval and pairing.

    Returns column name -> (B,) float64 tensor on any device. NaN means "undefined for this row" and is stored as null, with
    `undefined` as the reason. A row's value must not depend on the rest of its batch, to the bit on CPU.
    """

    @property
    def spec(self) -> MetricSpec: ...

    def __call__(self, sample: Sample) -> Mapping[str, Tensor]: ...


class Summarising(Protocol):
    """A per-sample metric that also derives corpus numbers from its stored rows (pooled PSNR, per-video PSNR, bpp)."""

    def summarise(
        self, rows: Mapping[str, Sequence[float | None]], groups: Sequence[str]
    ) -> Mapping[str, float | None]:
        """Return corpus columns from row columns in key order; must not depend on shards or batches.

        Every declared row column is there; one that no row returned holds None throughout.
        """
        ...


class Corpus(Protocol):
    """A metric of the whole set whose states merge by addition: codebook usage, FID.

    `update` returns a new state with the batch added and leaves the old one as it was; every tensor is an exact sum (int64)
    or float64. `compute` returns None for a column that is undefined on this set.
    """

    @property
    def spec(self) -> MetricSpec: ...

    def init(self) -> State: ...

    def update(self, state: State, sample: Sample) -> State: ...

    def compute(self, state: State) -> Mapping[str, float | None]: ...


@runtime_checkable
class Referencing(Protocol):
    """A corpus metric part of whose state depends on the references alone.

    `update` then adds the reconstructions only. The engine keeps what `update_reference` gathers over a shard, beside the
    store, so that the next tokenizer under the same protocol does without that pass; the keys of the two parts differ.
    """

    def update_reference(self, state: State, sample: Sample) -> State: ...


@runtime_checkable
class Bounding(Protocol):
    """A corpus metric whose merged states would grow with the set: `bound` returns an equal, smaller one."""

    def bound(self, state: State) -> State: ...


@runtime_checkable
class Subsets(Protocol):
    """A corpus metric of one column that can be computed of some of its samples, for the intervals of `tokbench compare`.

    While its state holds features row by row, they are called `reference/row/NAME` and `reconstruction/row/NAME`; both sides
    of a sample have one NAME.
    """

    @property
    def spec(self) -> MetricSpec: ...

    def on_subsets(
        self, reference: FloatArray, reconstruction: FloatArray, subsets: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return the column for each of (R, m) choices of m among N samples, given their (N, d) features: (R,)."""
        ...


@runtime_checkable
class Fetching(Protocol):
    """A metric that needs weights: `fetch` downloads those that are absent, unless `offline`, before its spec is read."""

    def fetch(self, *, offline: bool) -> None: ...


@runtime_checkable
class RowWise(Protocol):
    """A per-sample metric that is plain CPU code on one row at a time: PESQ, ViSQOL, a WORLD analysis.

    The engine runs `row` in processes of its own while the device codes the next batch; a process builds the metric anew
    from its registered name. `row` raises `tokbench.errors.Undefined` where the row has no value, saying why.
    """

    @property
    def spec(self) -> MetricSpec: ...

    def row(self, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> Mapping[str, float]:
        """Return the row columns of one pair of float32 arrays, shaped as a row of `Sample.reference`, canonical range."""
        ...


@runtime_checkable
class Reading(Protocol):
    """A per-sample metric that reads each reference at a cost: its text, its faces, its transcript.

    The engine keeps what was read beside the store, so that the next tokenizer under the same protocol does not pay again.
    The metric asks through `readings(metric, sample)`, never by calling `read` itself.
    """

    @property
    def spec(self) -> MetricSpec: ...

    def read(self, sample: Sample) -> Sequence[object]:
        """Return one value a row, of the references alone, made of what JSON knows (finite floats, str, lists, dicts)."""
        ...


@runtime_checkable
class Detailed(Protocol):
    """A per-sample metric whose rows have parts worth keeping (words, faces): called after `__call__` with the same sample.

    What the two share is in `Sample.memo`. Records hold str, int, float, bool or None; they go into the result's rows.
    """

    def details(self, sample: Sample) -> Sequence[Sequence[Mapping[str, str | int | float | bool | None]]]:
        """Return a list of records a row."""
        ...


Metric = PerSample | Corpus | RowWise


def readings(metric: Reading, sample: Sample) -> list[Any]:
    """Return what `metric` reads from each reference of the batch: what is known already, else by `metric.read`."""
    known = sample.readings.setdefault(metric.spec.name, {})
    if any(key not in known for key in sample.keys):
        known.update(zip(sample.keys, metric.read(sample), strict=True))
    return [known[key] for key in sample.keys]


def merge_states(a: State, b: State) -> State:
    """Add two states key by key; a key only one of them has is taken as it is.

    Raises:
        ValueError: Two tensors of one key differ in shape.
    """
    out = dict(a)
    for key, value in b.items():
        mine = out.get(key)
        if mine is not None and mine.shape != value.shape:
            raise ValueError(
                f"state {key!r} has shapes {tuple(mine.shape)} and {tuple(value.shape)}; they cannot merge"
            )
        out[key] = value.clone() if mine is None else mine + value
    return out
