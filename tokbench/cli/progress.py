"""Progress on stderr: bars on a terminal, one line a job elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from tokbench.execute import Outcome, Work


class Progress:
    """A `tokbench.launch.Reporter` for people."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._since: dict[str, float] = {}

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bars = Bars(*columns, console=Console(stderr=True))
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def started(self, work: Work) -> None:
        """Open a bar for a job."""
        name = _name(work)
        self._since[name] = time.monotonic()
        if self._bars is not None and name not in self._tasks:
            # Clips and segments make more rows than files: the total is a lower bound until the job ends.
            self._tasks[name] = self._bars.add_task(name, total=len(work.keys))

    def advanced(self, work: Work, rows: int) -> None:
        """Move the job's bar."""
        if self._bars is not None and (task := self._tasks.get(_name(work))) is not None:
            self._bars.advance(task, rows)

    def finished(self, work: Work, outcome: Outcome) -> None:
        """Close the job's bar, or print its line."""
        name = _name(work)
        seconds = time.monotonic() - self._since.pop(name, time.monotonic())
        line = (
            f"{name}: {outcome.status} in {seconds:.1f} s" if outcome.status == "done" else f"{name}: {outcome.reason}"
        )
        if self._bars is None:
            print(line, file=sys.stderr, flush=True)  # noqa: T201
            return
        task = self._tasks.pop(name, None)
        if task is not None:
            self._bars.remove_task(task)
        self._bars.console.print(line, markup=False, highlight=False)


def _name(work: Work) -> str:
    name = f"{work.run.card.spec.name} on {work.run.suite.name}"
    return name if len(work.run.shards) == 1 else f"{name} [{work.shard.start}:{work.shard.stop}]"
