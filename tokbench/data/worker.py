"""A decode worker: a process that reads tasks from its standard input and writes items to its standard output."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO

from tokbench.data.decode import Prepare, decode
from tokbench.data.types import Blob, Failure, Item, Made
from tokbench.errors import TokbenchError


@dataclass(frozen=True)
class Task:
    """One file to decode."""

    key: str
    origin: Blob | Made
    prepare: Prepare
    annotations: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """Ends the answer to one task; `error` when the run cannot go on."""

    error: TokbenchError | None = None


Message = Task | Item | Failure | Done


def send(pipe: IO[bytes], message: Message) -> None:
    """Write one message."""
    pickle.dump(message, pipe, protocol=5)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Message:
    """Read one message. Raises EOFError when the other side is gone.

    Both ends are one program and the pipe is private to them; nothing that was read from a dataset is unpickled.
    """
    message: Message = pickle.load(pipe)  # noqa: S301
    return message


def serve(parent: int) -> None:
    """Answer tasks until the input ends, which it does when the parent closes it or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    tasks = sys.stdin.buffer
    # Libraries may print; what they print must not run into the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    send(answers, Done())
    while True:
        try:
            task = receive(tasks)
        except EOFError:
            return
        assert isinstance(task, Task)
        try:
            error = None
            for entry in decode(task.key, task.origin, task.prepare, task.annotations):
                send(answers, entry)
        except TokbenchError as raised:
            error = raised
        except BrokenPipeError:
            return
        try:
            send(answers, Done(error))
        except BrokenPipeError:
            return


def _leave_with(parent: int) -> None:
    """End the process when its parent has gone while a decoder was busy or stuck."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
