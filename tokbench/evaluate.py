"""One pass: streams samples through a tokenizer in batches and feeds every metric, giving rows, states and timings."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, cast

import torch
from torch import Tensor

from tokbench.batches import batches
from tokbench.blocks import Blocks
from tokbench.data import Failure, Item
from tokbench.device import is_out_of_memory, peak_memory_bytes, reset_peak_memory
from tokbench.errors import NotApplicable, NotAvailable, TokbenchError
from tokbench.reconstruct import Engine, Reconstructed, reconstruct
from tokbench.rowpool import RowPool
from tokbench.rows import NOT_APPLICABLE, Record, Row
from tokbench.spec import AudioPrepare, EvalProtocol
from tokbench.types import (
    Corpus,
    Detailed,
    Metric,
    PerSample,
    Referencing,
    RowWise,
    Sample,
    State,
    Tokenizer,
    merge_states,
    take_row,
)

BatchSize = int | Literal["auto"]
_NONE: Mapping[str, State] = MappingProxyType({})
_AHEAD = 8  # rows a process of the row pool that may wait to be scored, so that memory stays bounded

_AUTO = {"cpu": {"image": 8, "video": 1, "audio": 8}, "cuda": {"image": 64, "video": 4, "audio": 32}}


@dataclass(frozen=True)
class Timing:
    """Seconds of `encode` and `decode` alone (no resizing, no metrics), after a warm-up, synchronised on both sides.

    Attributes:
        samples: Rows that were timed in batches.
        batch_size: Largest batch that ran.
        single_encode_seconds: One warm batch of one row: the latency.
        peak_memory_bytes: Of the device, or of the process on the CPU.
        signal_seconds: Sound only: how long the timed rows play; with the two times it gives the real-time factors.
        length_error: Sound only: samples the decoder returned more or fewer than asked, extreme over the batches.
    """

    samples: int = 0
    batch_size: int = 0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    single_encode_seconds: float | None = None
    single_decode_seconds: float | None = None
    peak_memory_bytes: int = 0
    signal_seconds: float = 0.0
    length_error: int = 0


@dataclass(frozen=True)
class ShardResult:
    """What one (tokenizer, shard) gives: rows in key order, corpus states by metric name, and timings.

    Attributes:
        references: Of `Referencing` metrics, the part of their states that the next tokenizer shares: empty when a row
            failed, because then it is not of the whole shard.
        readings: What `Reading` metrics read from the references, by metric and row key, old and new.
        absent: Metrics that could not run here, and why.
    """

    rows: tuple[Row, ...]
    states: Mapping[str, State]
    timing: Timing
    references: Mapping[str, State] = field(default_factory=dict)
    absent: Mapping[str, NotAvailable] = field(default_factory=dict)
    readings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


@dataclass
class _Cells:
    """What the metrics say of one row, gathered as it comes."""

    values: dict[str, float | None] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    details: dict[str, Sequence[Record]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Waiting:
    """A row that a process of the pool scores."""

    name: str
    metric: RowWise
    cells: _Cells
    future: Future[Mapping[str, float]]


@dataclass
class _Pass:
    """One pass over one shard: what is given, and what it gathers."""

    tokenizer: Tokenizer
    metrics: Mapping[str, Metric]
    protocol: EvalProtocol
    engine: Engine
    size: int
    states: dict[str, State]
    references: dict[str, State]
    pool: RowPool
    keep: Callable[[Sample], None] | None = None
    readings: dict[str, dict[str, object]] = field(default_factory=dict)
    waiting: deque[_Waiting] = field(default_factory=deque)
    blocks: Blocks = field(default_factory=Blocks)
    absent: dict[str, NotAvailable] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)
    timed: list[tuple[int, float, float]] = field(default_factory=list)
    single: tuple[float, float] | None = None
    signal_seconds: float = 0.0
    length_error: int = 0

    def batch(self, items: list[Item]) -> list[Row]:
        """Evaluate a batch; an error is traced to its rows by halving (memory) or by running them one by one."""
        if len(items) > self.size:
            return self._parts(items, self.size)
        try:
            if self.single is None:
                # Warm-up on one row, then the same row again: the batch-1 latency.
                self._reconstruct(items[:1])
                one = self._reconstruct(items[:1])
                self.single = (one.encode_seconds, one.decode_seconds)
            done = self._reconstruct(items)
            cells, states, references = self._score(done, items)
        except NotApplicable:
            raise
        except Exception as error:
            memory = is_out_of_memory(error)
            if memory:
                self.size = max(1, len(items) // 2)
                if self.engine.device.startswith("cuda"):
                    torch.cuda.empty_cache()
            if len(items) > 1:
                return self._parts(items, self.size if memory else 1)
            reason = "out of memory with a batch of one" if memory else _sentence(error)
            return [Row(items[0].key, items[0].group, "failed", reason, notes=items[0].notes)]
        self.states = {name: self.blocks.moved(self.states[name], state) for name, state in states.items()}
        self.references = {name: self.blocks.moved(self.references[name], state) for name, state in references.items()}
        for sample in done.samples:
            self._submit(sample, cells)
            if self.keep is not None:
                self.keep(sample)
        self.signal_seconds += sum(_seconds(item) for item in items)
        self.timed.append((len(items), done.encode_seconds, done.decode_seconds))
        if abs(done.length_error) > abs(self.length_error):
            self.length_error = done.length_error
        return [
            Row(
                item.key,
                item.group,
                values=cells[item.key].values,
                undefined=cells[item.key].undefined,
                notes=item.notes,
                details=cells[item.key].details,
            )
            for item in items
        ]

    def _reconstruct(self, items: list[Item]) -> Reconstructed:
        return reconstruct(self.tokenizer, items, self.protocol, self.engine)

    def _score(
        self, done: Reconstructed, items: Sequence[Item]
    ) -> tuple[dict[str, _Cells], dict[str, State], dict[str, State]]:
        """Feed every metric; states are returned, not changed, so that a batch that fails half-way is not counted twice."""
        cells = {item.key: _Cells() for item in items}
        states, references = dict(self.states), dict(self.references)
        for bare in done.samples:
            sample = replace(bare, readings=self.readings)
            for name, metric in self.metrics.items():
                if name in self.absent or isinstance(metric, RowWise):
                    continue
                try:
                    if is_corpus(metric):
                        states[name] = _corpus(metric).update(states[name], sample)
                        if name in references:
                            references[name] = cast("Referencing", metric).update_reference(references[name], sample)
                    else:
                        _fill(cast("PerSample", metric), sample, cells)
                except NotAvailable as error:
                    # What is not on this machine for one batch is not for the next: say it once, a cell, not a row.
                    self.absent[name] = error
                except NotApplicable as error:
                    self.partial.add(name)
                    for key in sample.keys:
                        _excuse(metric, cells[key], _sentence(error))
        return cells, states, references

    def _submit(self, sample: Sample, cells: Mapping[str, _Cells]) -> None:
        """Hand the batch's rows to the metrics that score single rows; their values arrive in the cells by `settle`."""
        wanted = {
            name: metric
            for name, metric in self.metrics.items()
            if isinstance(metric, RowWise) and name not in self.absent
        }
        if not wanted:
            return
        reference, reconstruction = sample.reference.cpu().numpy(), sample.reconstruction.cpu().numpy()
        for index, key in enumerate(sample.keys):
            for name, metric in wanted.items():
                rate = sample.sample_rate
                future = self.pool.submit(name, metric, reference[index], reconstruction[index], rate)
                self.waiting.append(_Waiting(name, metric, cells[key], future))
        self.settle(_AHEAD * len(wanted) * self.pool.workers)

    def settle(self, most: int) -> None:
        """Take in scored rows, oldest first, until at most `most` are waiting."""
        while len(self.waiting) > most:
            oldest = self.waiting.popleft()
            try:
                scored = oldest.future.result()
            except NotAvailable as error:
                self.absent[oldest.name] = error
            except Exception as error:
                oldest.cells.values.update(_empty(oldest.metric))
                _excuse(oldest.metric, oldest.cells, _sentence(error))
            else:
                for column, number in scored.items():
                    _put(oldest.metric, oldest.cells, column, number)

    def _parts(self, items: list[Item], size: int) -> list[Row]:
        return [row for start in range(0, len(items), size) for row in self.batch(items[start : start + size])]

    def timing(self) -> Timing:
        """Add up what was timed."""
        single: tuple[float | None, float | None] = self.single or (None, None)
        return Timing(
            samples=sum(n for n, _, _ in self.timed),
            batch_size=max((n for n, _, _ in self.timed), default=0),
            encode_seconds=math.fsum(encode for _, encode, _ in self.timed),
            decode_seconds=math.fsum(decode for _, _, decode in self.timed),
            single_encode_seconds=single[0],
            single_decode_seconds=single[1],
            peak_memory_bytes=peak_memory_bytes(self.engine.device),
            signal_seconds=self.signal_seconds,
            length_error=self.length_error,
        )


def evaluate(
    tokenizer: Tokenizer,
    stream: Iterable[Item | Failure],
    metrics: Mapping[str, Metric],
    protocol: EvalProtocol,
    *,
    engine: Engine,
    batch_size: BatchSize = "auto",
    fail_fast: bool = False,
    progress: Callable[[int], None] | None = None,
    references: Mapping[str, State] = _NONE,
    readings: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
    pool: RowPool | None = None,
    keep: Callable[[Sample], None] | None = None,
) -> ShardResult:
    """Evaluate a tokenizer on a stream of samples.

    Memory is O(batch): rows keep numbers, never tensors. On out of memory the batch is halved and run again; a batch of one
    that does not fit becomes a failed row. An error in a batch is traced to its rows by running them one by one.

    Args:
        tokenizer: Already on `engine.device`.
        stream: Items and failures, in key order.
        metrics: Name -> metric; only those that apply to the tokenizer (see `applies`).
        protocol: What was prepared and how to round.
        engine: Device, tokenizer dtype, seed.
        batch_size: Rows a batch, or `auto`.
        fail_fast: Raise on the first failed row instead of recording it.
        progress: Called with the number of rows that were just finished.
        references: What an earlier pass over the same shard left in `ShardResult.references`; those sums are taken from
            there. They hold every row, so where a row fails now, the result is to be thrown away and made without them.
        readings: What an earlier pass over the same shard left in `ShardResult.readings`.
        pool: Processes for `RowWise` metrics; without one they run here.
        keep: Shown every batch that was scored, e.g. to keep some of its samples.

    Raises:
        NotApplicable: The tokenizer cannot run under this protocol.
    """
    device_kind = "cuda" if engine.device.startswith("cuda") else "cpu"
    size = _AUTO[device_kind][protocol.modality] if batch_size == "auto" else batch_size
    states = {name: _corpus(metric).init() for name, metric in metrics.items() if is_corpus(metric)}
    new = {
        name: _corpus(metric).init()
        for name, metric in metrics.items()
        if isinstance(metric, Referencing) and name not in references
    }
    this = _Pass(
        tokenizer,
        metrics,
        protocol,
        engine,
        size if tokenizer.spec.deterministic else 1,
        states,
        new,
        pool or RowPool(0),
        keep,
        readings={name: dict(known) for name, known in readings.items()},
    )
    rows: dict[str, Row] = {}
    reset_peak_memory(engine.device)

    def record(row: Row) -> None:
        if fail_fast and row.status == "failed":
            raise TokbenchError(f"{row.key}: {row.reason}")
        rows[row.key] = row
        if progress is not None:
            progress(1)

    with torch.inference_mode():
        for batch in batches(stream, lambda: this.size, padding_safe=_padding_safe(tokenizer, protocol)):
            if isinstance(batch, Failure):
                record(Row(key=batch.key, group=batch.group, status="failed", reason=batch.reason))
            else:
                for row in this.batch(batch):
                    record(row)
        this.settle(0)
    shared = {**this.references, **references}
    whole = all(row.status == "ok" for row in rows.values())
    return ShardResult(
        rows=tuple(rows[key] for key in sorted(rows)),
        states={
            name: merge_states(state, shared.get(name, {}))
            for name, state in this.states.items()
            if name not in this.absent
        },
        timing=this.timing(),
        references={
            name: state
            for name, state in this.references.items()
            if whole and name not in this.absent and name not in this.partial
        },
        absent=this.absent,
        readings=this.readings,
    )


def _padding_safe(tokenizer: Tokenizer, protocol: EvalProtocol) -> bool:
    """Tell whether sounds of several lengths may share a batch: not through a resampler, which looks past a row's end."""
    if not isinstance(protocol.prepare, AudioPrepare) or not tokenizer.spec.padding_safe:
        return False
    return tokenizer.spec.sample_rate in {None, protocol.prepare.sample_rate}


def _seconds(item: Item) -> float:
    return item.signal.shape[-1] / item.sample_rate if item.sample_rate else 0.0


def is_corpus(metric: Metric) -> bool:
    """Tell a corpus metric (`init`, `update`, `compute`) from a per-sample one (`__call__`)."""
    return hasattr(metric, "update")


def applies(metric: Metric, tokenizer: Tokenizer) -> bool:
    """Tell whether a metric means something for a tokenizer: its modality, the kind of code it emits, a decoder."""
    return not metric.spec.mismatch(tokenizer.spec)


def _fill(metric: PerSample, sample: Sample, cells: Mapping[str, _Cells]) -> None:
    # A metric that fails on a row loses that row's columns only; the others stand.
    try:
        scored = metric(sample)
        details = metric.details(sample) if isinstance(metric, Detailed) else [()] * len(sample.keys)
    except NotAvailable:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if len(sample.keys) > 1:
            for index in range(len(sample.keys)):
                _fill(metric, take_row(sample, index), cells)
            return
        one = cells[sample.keys[0]]
        one.values.update(_empty(metric))
        _excuse(metric, one, _sentence(error))
        return
    for name, tensor in scored.items():
        for key, number in zip(sample.keys, _numbers(tensor), strict=True):
            _put(metric, cells[key], name, number)
    for key, records in zip(sample.keys, details, strict=True):
        if records:
            cells[key].details[metric.spec.name] = records


def _put(metric: Metric, cells: _Cells, column: str, number: float) -> None:
    finite = math.isfinite(number)
    cells.values[column] = number if finite else None
    if not finite:
        why: Mapping[str, str] = getattr(metric, "undefined", {})
        cells.undefined[column] = why.get(column, f"{metric.spec.name} gave {number}")


def _empty(metric: Metric) -> dict[str, float | None]:
    return {column.name: None for column in metric.spec.columns if column.where == "row"}


def _excuse(metric: Metric, cells: _Cells, why: str) -> None:
    corpus = is_corpus(metric)
    for column in metric.spec.columns:
        if corpus or column.where == "row":
            cells.undefined[column.name] = why


def _numbers(tensor: Tensor) -> list[float]:
    return cast("list[float]", tensor.detach().to(device="cpu", dtype=torch.float64).tolist())


def _corpus(metric: Metric) -> Corpus:
    return cast("Corpus", metric)


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, NotApplicable):
        return f"{NOT_APPLICABLE}{text}"
    return text if isinstance(error, TokbenchError) else f"{type(error).__name__}: {text}"
