"""One pass: streams samples through a tokenizer in batches and feeds every metric, giving rows, states and timings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, cast

import torch
from torch import Tensor

from tokbench.batches import equal_shapes
from tokbench.data import Failure, Item
from tokbench.device import is_out_of_memory, peak_memory_bytes, reset_peak_memory
from tokbench.errors import NotApplicable, NotAvailable, TokbenchError
from tokbench.reconstruct import Engine, Reconstructed, reconstruct
from tokbench.rows import NOT_APPLICABLE, Row
from tokbench.spec import EvalProtocol
from tokbench.types import (
    Corpus,
    Metric,
    PerSample,
    Referencing,
    Sample,
    State,
    Tokenizer,
    merge_states,
    take_row,
)

BatchSize = int | Literal["auto"]
_NONE: Mapping[str, State] = MappingProxyType({})

_AUTO = {"cpu": {"image": 8, "video": 1, "audio": 8}, "cuda": {"image": 64, "video": 4, "audio": 32}}


@dataclass(frozen=True)
class Timing:
    """Seconds of `encode` and `decode` alone (no resizing, no metrics), after a warm-up, synchronised on both sides.

    Attributes:
        samples: Rows that were timed in batches.
        batch_size: Largest batch that ran.
        single_encode_seconds: One warm batch of one row: the latency.
        peak_memory_bytes: Of the device, or of the process on the CPU.
        length_error: Sound only: samples the decoder returned more or fewer than asked, extreme over the batches.
    """

    samples: int = 0
    batch_size: int = 0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    single_encode_seconds: float | None = None
    single_decode_seconds: float | None = None
    peak_memory_bytes: int = 0
    length_error: int = 0


@dataclass(frozen=True)
class ShardResult:
    """What one (tokenizer, shard) gives: rows in key order, corpus states by metric name, and timings.

    Attributes:
        references: Of `Referencing` metrics, the part of their states that the next tokenizer shares: empty when a row
            failed, because then it is not of the whole shard.
        absent: Metrics that could not run here, and why.
    """

    rows: tuple[Row, ...]
    states: Mapping[str, State]
    timing: Timing
    references: Mapping[str, State] = field(default_factory=dict)
    absent: Mapping[str, NotAvailable] = field(default_factory=dict)


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
    absent: dict[str, NotAvailable] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)
    timed: list[tuple[int, float, float]] = field(default_factory=list)
    single: tuple[float, float] | None = None
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
            rows, states, references = self._score(done, items)
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
        self.states, self.references = states, references
        self.timed.append((len(items), done.encode_seconds, done.decode_seconds))
        if abs(done.length_error) > abs(self.length_error):
            self.length_error = done.length_error
        return rows

    def _reconstruct(self, items: list[Item]) -> Reconstructed:
        return reconstruct(self.tokenizer, items, self.protocol, self.engine)

    def _score(
        self, done: Reconstructed, items: Sequence[Item]
    ) -> tuple[list[Row], dict[str, State], dict[str, State]]:
        """Feed every metric; states are returned, not changed, so that a batch that fails half-way is not counted twice."""
        values: dict[str, dict[str, float | None]] = {item.key: {} for item in items}
        reasons: dict[str, dict[str, str]] = {item.key: {} for item in items}
        states, references = dict(self.states), dict(self.references)
        for sample in done.samples:
            for name, metric in self.metrics.items():
                if name in self.absent:
                    continue
                try:
                    if is_corpus(metric):
                        states[name] = _corpus(metric).update(states[name], sample)
                        if name in references:
                            references[name] = cast("Referencing", metric).update_reference(references[name], sample)
                    else:
                        _fill(cast("PerSample", metric), sample, values, reasons)
                except NotAvailable as error:
                    # What is not on this machine for one batch is not for the next: say it once, a cell, not a row.
                    self.absent[name] = error
                except NotApplicable as error:
                    self.partial.add(name)
                    _excuse(metric, sample.keys, reasons, _sentence(error))
        rows = [
            Row(item.key, item.group, values=values[item.key], undefined=reasons[item.key], notes=item.notes)
            for item in items
        ]
        return rows, states, references

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
    this = _Pass(tokenizer, metrics, protocol, engine, size if tokenizer.spec.deterministic else 1, states, new)
    rows: dict[str, Row] = {}
    reset_peak_memory(engine.device)

    def record(row: Row) -> None:
        if fail_fast and row.status == "failed":
            raise TokbenchError(f"{row.key}: {row.reason}")
        rows[row.key] = row
        if progress is not None:
            progress(1)

    with torch.inference_mode():
        for batch in equal_shapes(stream, lambda: this.size):
            if isinstance(batch, Failure):
                record(Row(key=batch.key, group=batch.group, status="failed", reason=batch.reason))
            else:
                for row in this.batch(batch):
                    record(row)
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
    )


def is_corpus(metric: Metric) -> bool:
    """Tell a corpus metric (`init`, `update`, `compute`) from a per-sample one (`__call__`)."""
    return hasattr(metric, "update")


def applies(metric: Metric, tokenizer: Tokenizer) -> bool:
    """Tell whether a metric means something for a tokenizer: its modality and the kind of code it emits."""
    return tokenizer.spec.modality in metric.spec.modalities and tokenizer.spec.kind in metric.spec.kinds


def _fill(
    metric: PerSample,
    sample: Sample,
    values: Mapping[str, dict[str, float | None]],
    reasons: Mapping[str, dict[str, str]],
) -> None:
    # A metric that fails on a row loses that row's columns only; the others stand.
    why: Mapping[str, str] = getattr(metric, "undefined", {})
    try:
        scored = metric(sample)
    except NotAvailable:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if len(sample.keys) > 1:
            for index in range(len(sample.keys)):
                _fill(metric, take_row(sample, index), values, reasons)
            return
        values[sample.keys[0]].update({column.name: None for column in metric.spec.columns if column.where == "row"})
        _excuse(metric, sample.keys, reasons, _sentence(error))
        return
    for name, tensor in scored.items():
        for key, number in zip(sample.keys, _numbers(tensor), strict=True):
            finite = math.isfinite(number)
            values[key][name] = number if finite else None
            if not finite:
                reasons[key][name] = why.get(name, f"{metric.spec.name} gave {number}")


def _excuse(metric: Metric, keys: Sequence[str], reasons: Mapping[str, dict[str, str]], why: str) -> None:
    corpus = is_corpus(metric)
    for column in metric.spec.columns:
        if corpus or column.where == "row":
            for key in keys:
                reasons[key][column.name] = why


def _numbers(tensor: Tensor) -> list[float]:
    return cast("list[float]", tensor.detach().to(device="cpu", dtype=torch.float64).tolist())


def _corpus(metric: Metric) -> Corpus:
    return cast("Corpus", metric)


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, NotApplicable):
        return f"{NOT_APPLICABLE}{text}"
    return text if isinstance(error, TokbenchError) else f"{type(error).__name__}: {text}"
