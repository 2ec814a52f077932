"""Runs jobs: in this process, or in local worker processes of which a crash kills one job and nothing else."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from tokbench.errors import TokbenchError, UsageError
from tokbench.execute import Outcome, Settings, Work, worker

_POLL_SECONDS = 0.5  # how often a shard that another process holds is looked at again


class Reporter(Protocol):
    """Told what happens, in the parent process."""

    def started(self, work: Work) -> None: ...

    def advanced(self, work: Work, rows: int) -> None: ...

    def finished(self, work: Work, outcome: Outcome) -> None: ...


@dataclass(frozen=True)
class Finished:
    """A job and what became of it."""

    work: Work
    outcome: Outcome


def launch(jobs: Sequence[Work], settings: Settings, reporter: Reporter, workers: int = 0) -> list[Finished]:
    """Do all jobs and return what became of each, in the order they ended.

    Args:
        jobs: Jobs of one tokenizer together, so that it is loaded once.
        settings: How.
        reporter: Told of every step.
        workers: 0 or 1: in this process. More: that many processes, on the CPU with one thread each.

    Raises:
        KeyboardInterrupt: Passed on; finished shards are kept.
    """
    count = max(1, min(workers, len(jobs)))
    settings = replace(settings, processes=count, expected_rows=sum(len(job.keys) for job in jobs))
    if workers <= 1:
        return _in_process(jobs, settings, reporter)
    return _Local(settings, reporter, count).run(jobs)


def machine_share(text: str | None, environ: Mapping[str, str]) -> tuple[int, int]:
    """Return (index, count) of this machine from `i/n`, or from SLURM's or torchrun's variables, else (0, 1).

    `SLURM_ARRAY_TASK_ID` counts from `SLURM_ARRAY_TASK_MIN`; torchrun's `RANK` and `WORLD_SIZE` and srun's `SLURM_PROCID` and
    `SLURM_NTASKS` count from 0.

    Raises:
        UsageError: Not of the form i/n with 0 <= i < n.
    """
    if text:
        index, _, count = text.partition("/")
        try:
            share = (int(index), int(count))
        except ValueError as error:
            raise UsageError(f"--shard {text}: write i/n, e.g. 0/4") from error
    elif "SLURM_ARRAY_TASK_ID" in environ and "SLURM_ARRAY_TASK_COUNT" in environ:
        first = int(environ.get("SLURM_ARRAY_TASK_MIN", "0"))
        step = int(environ.get("SLURM_ARRAY_TASK_STEP", "1"))
        share = ((int(environ["SLURM_ARRAY_TASK_ID"]) - first) // step, int(environ["SLURM_ARRAY_TASK_COUNT"]))
    elif "RANK" in environ and "WORLD_SIZE" in environ:
        share = (int(environ["RANK"]), int(environ["WORLD_SIZE"]))
    elif "SLURM_PROCID" in environ and "SLURM_NTASKS" in environ:
        share = (int(environ["SLURM_PROCID"]), int(environ["SLURM_NTASKS"]))
    else:
        share = (0, 1)
    if not 0 <= share[0] < share[1]:
        raise UsageError(f"--shard {share[0]}/{share[1]}: the index runs from 0 to {share[1] - 1}")
    return share


def _in_process(jobs: Sequence[Work], settings: Settings, reporter: Reporter) -> list[Finished]:
    done: list[Finished] = []
    queue = deque(jobs)
    busy_in_a_row = 0
    with worker(settings) as own:
        while queue:
            work = queue.popleft()
            reporter.started(work)
            outcome = own.do(work, lambda rows, work=work: reporter.advanced(work, rows))  # type: ignore[misc]
            if outcome.status == "busy":
                queue.append(work)
                busy_in_a_row += 1
                if busy_in_a_row >= len(queue):
                    time.sleep(_POLL_SECONDS)
                continue
            busy_in_a_row = 0
            reporter.finished(work, outcome)
            done.append(Finished(work, outcome))
    return done


@dataclass
class _Slot:
    process: BaseProcess
    pipe: Connection
    work: Work | None = None


class _Local:
    """A parent that hands one job at a time to each of N processes and replaces those that die."""

    def __init__(self, settings: Settings, reporter: Reporter, count: int) -> None:
        self.settings, self.reporter, self.count = settings, reporter, count
        self.context = mp.get_context("spawn")
        self.slots: list[_Slot] = []

    def run(self, jobs: Sequence[Work]) -> list[Finished]:
        queue, later, done = deque(jobs), deque[Work](), list[Finished]()
        try:
            self.slots = [self._spawn() for _ in range(self.count)]
            while queue or later or any(slot.work for slot in self.slots):
                if not queue and later and not any(slot.work for slot in self.slots):
                    time.sleep(_POLL_SECONDS)
                    queue, later = later, deque()
                for slot in self.slots:
                    if slot.work is None and queue:
                        self._give(slot, queue.popleft())
                for finished in self._listen():
                    if finished.outcome.status == "busy":
                        later.append(finished.work)
                    else:
                        self.reporter.finished(finished.work, finished.outcome)
                        done.append(finished)
        finally:
            self._close()
        return done

    def _spawn(self) -> _Slot:
        parent, child = self.context.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self.count) if self.settings.device != "cpu" else 1
        process = self.context.Process(target=_serve, args=(child, self.settings, threads, os.getpid()))
        process.start()
        child.close()
        return _Slot(process, parent)

    def _give(self, slot: _Slot, work: Work) -> None:
        slot.work = work
        self.reporter.started(work)
        slot.pipe.send(work)

    def _listen(self) -> list[Finished]:
        ended: list[Finished] = []
        busy = {slot.pipe: slot for slot in self.slots if slot.work is not None}
        for pipe in wait(list(busy), timeout=1.0) if busy else []:
            slot = busy[pipe]  # type: ignore[index]
            work = slot.work
            if work is None:
                continue
            try:
                message: int | Outcome | TokbenchError = slot.pipe.recv()
            except (EOFError, OSError):
                ended.append(Finished(work, self._buried(slot)))
                continue
            if isinstance(message, int):
                self.reporter.advanced(work, message)
            elif isinstance(message, Outcome):
                slot.work = None
                ended.append(Finished(work, message))
            else:
                raise message
        return ended

    def _buried(self, slot: _Slot) -> Outcome:
        slot.process.join()
        code = slot.process.exitcode or 0
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.slots[self.slots.index(slot)] = self._spawn()
        return Outcome("failed", "failed", f"the worker process died ({cause})", "run again to retry this shard")

    def _close(self) -> None:
        for slot in self.slots:
            slot.pipe.close()
            if slot.work is not None:
                slot.process.terminate()
        for slot in self.slots:
            slot.process.join(timeout=10)
            if slot.process.is_alive():
                slot.process.kill()


def _serve(pipe: Connection, settings: Settings, threads: int, parent: int) -> None:
    """Serve jobs from the pipe until the parent closes it or dies."""
    from tokbench.device import pin_numerics

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pin_numerics(threads)
    with worker(settings) as own:
        while os.getppid() == parent:
            try:
                work: Work = pipe.recv()
            except (EOFError, OSError):
                return
            try:
                answer: Outcome | TokbenchError = own.do(work, pipe.send)
            except TokbenchError as error:
                answer = error
            try:
                pipe.send(answer)
            except OSError:
                return
