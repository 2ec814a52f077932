"""Decodes files ahead of the device, in worker processes or one thread, and hands the items out in key order."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, cast

from tokbench.data.decode import Prepare, decode, reason
from tokbench.data.types import Failure, Item, Source
from tokbench.data.worker import Done, Task, receive
from tokbench.errors import DecodeError, NotAvailable, UsageError

Workers = int | Literal["auto"]
Entries = tuple[Item | Failure, ...]

_FEW = 512  # below it, starting a process costs more than decoding beside the compute
_MOST = 4
_PIPE = 1 << 20  # holds a picture, so that a worker need not wait until it is fetched
_AHEAD = 4  # files a worker may be ahead of the consumer
_BUDGET = 1 << 29  # bytes that may wait for the consumer before no further file is begun


def worker_count(workers: Workers, files: int) -> int:
    """Resolve `auto`: none for fewer than 512 files, else one less than the processors, between 1 and 4."""
    if workers != "auto":
        if workers < 0:
            raise UsageError(f"{workers} decode workers; 0 or more, or auto")
        return workers
    return 0 if files < _FEW else max(1, min(_MOST, _processors() - 1))


def stream(
    source: Source, keys: Sequence[str], prepare: Prepare, workers: Workers = "auto", fail_fast: bool = False
) -> Iterator[Item | Failure]:
    """Decode and prepare files with a pool of their own; see `DecodePool.stream`."""
    with DecodePool(workers) as pool:
        yield from pool.stream(source, keys, prepare, fail_fast=fail_fast)


class DecodePool:
    """Decode workers that live as long as the pool, so that they start once for all the jobs of a process.

    Workers are fresh interpreters that import neither torch nor the caller's `__main__`, so a script that opens a pool
    needs no `if __name__ == "__main__"` guard. They ignore Ctrl-C and end with the process that opened them. None is
    started before a stream needs it.

    Args:
        workers: Processes; 0 decodes in one thread of this process; `auto` chooses by the number of files.
    """

    def __init__(self, workers: Workers = "auto") -> None:
        self.workers = workers
        self._idle: list[_Worker] = []
        self._streaming = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        while self._idle:
            self._idle.pop().end()

    def stream(
        self, source: Source, keys: Sequence[str], prepare: Prepare, fail_fast: bool = False
    ) -> Iterator[Item | Failure]:
        """Yield the items and failures of `keys`, in the order of `keys`, whatever the number of workers.

        Memory is bounded: four files a worker are decoded ahead, fewer when they hold more than 512 MB together. A
        worker that dies is replaced and its file tried once more in a fresh one; when that dies too the file is a failure.
        Leaving the iterator early stops the workers. A pool runs one stream at a time.

        Args:
            source: The dataset.
            keys: Some of its keys.
            prepare: How a file becomes the reference.
            fail_fast: Raise at the first failure.

        Raises:
            DecodeError: A file could not be read and `fail_fast` is set.
            UsageError: The prepare step cannot be done on any file.
            NotAvailable: A library is missing.
        """
        if not self._streaming.acquire(blocking=False):
            raise RuntimeError("this pool is already streaming; finish or close that stream first")
        count = worker_count(self.workers, len(keys))
        job = _Job(source, tuple(keys), prepare, ahead=_AHEAD * max(1, count))
        threads = [
            threading.Thread(target=self._work, args=(job, count == 0), daemon=True) for _ in range(max(1, count))
        ]
        try:
            for thread in threads:
                thread.start()
            for entries in job.results():
                for entry in entries:
                    if fail_fast and isinstance(entry, Failure):
                        raise DecodeError(f"{entry.key} {entry.reason}")
                    yield entry
        finally:
            job.stop()
            for thread in threads:
                thread.join()
            self._streaming.release()

    def _work(self, job: _Job, in_process: bool) -> None:
        if in_process:
            job.run(lambda task: decode(task.key, task.origin, task.prepare, task.annotations))
            return
        seat = _Seat(job, self._idle.pop() if self._idle else None)
        job.run(seat.decode)
        if seat.worker is not None:
            self._idle.append(seat.worker)


class _Job:
    """The files of one stream: handed out in order, collected in any order, given back in order."""

    def __init__(self, source: Source, keys: tuple[str, ...], prepare: Prepare, ahead: int) -> None:
        self._source, self._keys, self._prepare, self._ahead = source, keys, prepare, ahead
        self._changed = threading.Condition()
        self._ready: dict[int, Entries] = {}
        self._begun = self._consumed = self._bytes = 0
        self._error: BaseException | None = None
        self._busy: set[_Worker] = set()
        self.stopped = False

    def run(self, work: Callable[[Task], Entries]) -> None:
        """Decode files until none is left or the job stops; the body of a thread."""
        try:
            while (index := self._take()) is not None:
                entries = self._decode(self._keys[index], work)
                with self._changed:
                    self._ready[index] = entries
                    self._bytes += _size(entries)
                    self._changed.notify_all()
        except BaseException as error:  # handed to the consumer, which raises it
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def results(self) -> Iterator[Entries]:
        """Yield what each file gave, in order."""
        for index in range(len(self._keys)):
            with self._changed:
                self._changed.wait_for(lambda: index in self._ready or self._error is not None)  # noqa: B023
                if index not in self._ready and self._error is not None:
                    raise self._error
                entries = self._ready.pop(index)
                self._bytes -= _size(entries)
                self._consumed = index + 1
                self._changed.notify_all()
            yield entries

    def stop(self) -> None:
        """Begin no further file and end the workers that hold one."""
        with self._changed:
            self.stopped = True
            for worker in self._busy:
                worker.interrupt()
            self._changed.notify_all()

    def begin(self, worker: _Worker) -> None:
        """Note that a worker holds a file."""
        with self._changed:
            self._busy.add(worker)
            if self.stopped:
                worker.interrupt()

    def end(self, worker: _Worker) -> None:
        """Note that a worker holds no file any more."""
        with self._changed:
            self._busy.discard(worker)

    def _take(self) -> int | None:
        with self._changed:
            self._changed.wait_for(self._may_go_on)
            if self.stopped or self._error is not None or self._begun == len(self._keys):
                return None
            self._begun += 1
            return self._begun - 1

    def _may_go_on(self) -> bool:
        if self.stopped or self._error is not None or self._begun == len(self._keys):
            return True
        wanted_next = self._begun == self._consumed
        return wanted_next or (self._begun < self._consumed + self._ahead and self._bytes < _BUDGET)

    def _decode(self, key: str, work: Callable[[Task], Entries]) -> Entries:
        try:
            task = Task(key, self._source.open(key), self._prepare, self._source.annotations(key))
        except (UsageError, NotAvailable):
            raise
        except Exception as error:  # a source may fail in any way its storage can
            return (Failure(key, key, reason(error)),)
        return work(task)


@dataclass
class _Seat:
    """The place of one thread's worker, which is filled anew when the worker dies."""

    job: _Job
    worker: _Worker | None

    def decode(self, task: Task) -> Entries:
        """Have a file decoded; a second death over the same file makes it a failure."""
        ended = ""
        for _ in range(2):
            worker = self.worker = self.worker or _Worker()
            self.job.begin(worker)
            try:
                return worker.ask(task)
            except (EOFError, BrokenPipeError):
                self.worker = None
                ended = worker.end()
                if self.job.stopped:
                    break
            finally:
                self.job.end(worker)
        return (Failure(task.key, task.key, f"decoder process died ({ended})"),)


class _Worker:
    """One worker process and its two pipes."""

    def __init__(self) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from tokbench.data.worker import serve; serve({os.getpid()})"
        alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        posix = sys.platform != "win32"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **alone},
            # A process group of its own keeps the terminal's Ctrl-C away from the first instruction on.
            process_group=0 if posix else None,
            creationflags=0 if posix else 0x00000200,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks, self._answers = self._process.stdin, self._process.stdout
        _widen(self._answers.fileno())
        try:
            receive(self._answers)
        except (EOFError, pickle.UnpicklingError) as error:
            raise RuntimeError(
                f"a decode worker cannot start ({self.end()}); 0 workers decode in this process"
            ) from error

    def ask(self, task: Task) -> Entries:
        """Have a file decoded. Raises EOFError or BrokenPipeError when the process dies over it."""
        self._tasks.write(pickle.dumps(task, protocol=5))
        self._tasks.flush()
        found: list[Item | Failure] = []
        while True:
            try:
                message = receive(self._answers)
            except pickle.UnpicklingError as error:
                raise EOFError("the answer breaks off") from error
            if not isinstance(message, Done):
                found.append(cast("Item | Failure", message))
            elif message.error is not None:
                raise message.error
            else:
                return tuple(found)

    def interrupt(self) -> None:
        """Kill the process; the thread that waits for it notices."""
        with suppress(OSError):
            self._process.kill()

    def end(self, patience: float = 5.0) -> str:
        """Let the process end, make sure that it does, and say how it did."""
        with suppress(OSError):
            self._tasks.close()
        try:
            code = self._process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        with suppress(OSError):
            self._answers.close()
        return f"signal {-code}" if code < 0 else f"exit status {code}"


def _widen(pipe: int) -> None:
    """Enlarge a pipe's buffer where the system can and lets us."""
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)


def _size(entries: Entries) -> int:
    items = [entry for entry in entries if isinstance(entry, Item)]
    return sum(item.signal.nbytes + (0 if item.original is None else item.original.nbytes) for item in items)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
