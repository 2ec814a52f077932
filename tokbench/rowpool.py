"""Runs metrics that are plain CPU code on single rows in processes of their own, while the device codes the next batch."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from types import TracebackType
from typing import Self

from tokbench.registry import build_metric
from tokbench.types import FloatArray, RowWise

_FEW = 64  # rows below which starting processes (an import of torch each) costs more than it saves


class RowPool:
    """Processes that score rows with `RowWise` metrics; they start at the first row and live as long as the pool.

    Args:
        workers: Processes; 0 scores in this process.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=kind is None, cancel_futures=True)

    def submit(
        self, name: str, metric: RowWise, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None
    ) -> Future[Mapping[str, float]]:
        """Score one row; the future holds the metric's columns or what it raised.

        Args:
            name: Under which `tokbench.registry.build_metric` builds the metric in another process.
            metric: The metric itself, for scoring in this process.
            reference: As `RowWise.row` takes it.
            reconstruction: As `RowWise.row` takes it.
            sample_rate: Hz, or None.
        """
        if self.workers == 0:
            done: Future[Mapping[str, float]] = Future()
            try:
                done.set_result(metric.row(reference, reconstruction, sample_rate))
            except Exception as error:
                done.set_exception(error)
            return done
        try:
            return self._processes().submit(_row, name, reference, reconstruction, sample_rate)
        except BrokenProcessPool:
            # Native code killed a process: the rows that were in flight say so; those that follow get new processes.
            self._executor = None
            return self._processes().submit(_row, name, reference, reconstruction, sample_rate)

    def _processes(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(self.workers, mp.get_context("spawn"), initializer=_begin)
        return self._executor


def row_workers(rows: int, device: str, processes: int) -> int:
    """Return how many row processes suit a run: none for few rows or where processes share the cores already.

    Args:
        rows: Of the run, about.
        device: Where the tokenizer runs; on the CPU one core is left to it.
        processes: That evaluate shards at the same time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spare = cores // max(1, processes) - (1 if device == "cpu" else 0)
    return 0 if rows < _FEW else max(0, min(8, spare))


def _begin() -> None:
    from tokbench.device import pin_numerics

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pin_numerics(1)


@cache
def _metric(name: str) -> RowWise:
    metric = build_metric(name)
    if not isinstance(metric, RowWise):
        raise TypeError(f"{name} scores no single rows")
    return metric


def _row(name: str, reference: FloatArray, reconstruction: FloatArray, sample_rate: int | None) -> Mapping[str, float]:
    return _metric(name).row(reference, reconstruction, sample_rate)
