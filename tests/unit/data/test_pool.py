"""Files come out in key order whatever decodes them, and a dead worker costs only its file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tokbench.data import DecodePool, Failure, Item, Made, open_source, stream
from tokbench.data.pool import worker_count
from tokbench.errors import UsageError
from tokbench.spec import ImagePrepare

NATIVE = ImagePrepare(preset="native", size=None)
_HELPER = """
import os, signal, time
import numpy as np
from pathlib import Path
from tokbench.data import Raw

def picture(value):
    return Raw(np.full((4, 4, 3), value, np.uint8))

def slow_picture(value, seconds):
    time.sleep(seconds)
    return picture(value)

def die(how):
    os.kill(os.getpid(), how)

def leave(status):
    os._exit(status)

def die_once(flag, value):
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return picture(value)

def chatter(value):
    print("a library prints", flush=True)
    os.write(1, b"and writes to descriptor 1\\n")
    return picture(value)

def pid():
    return Raw(np.array([[[*os.getpid().to_bytes(3, "little")]]], np.uint8))
"""


class Table:
    """A source of made signals, by key."""

    uri, modality, ignored, hint = "table", "image", 0, ""

    def __init__(self, made: dict[str, Made]) -> None:
        self.made = made
        self.opened: list[str] = []

    def keys(self) -> tuple[str, ...]:
        return tuple(sorted(self.made))

    def open(self, key: str) -> Made:
        self.opened.append(key)
        return self.made[key]

    def sha256(self, key: str) -> str:
        return key

    def annotations(self, key: str) -> dict[str, object]:
        return {}


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Return a module that worker processes can import too."""
    (tmp_path / "decode_helper.py").write_text(_HELPER)
    monkeypatch.syspath_prepend(str(tmp_path))
    import decode_helper  # type: ignore[import-not-found]

    yield decode_helper
    del sys.modules["decode_helper"]


def value(entry: Item | Failure) -> int | str:
    return int(entry.signal.flat[0]) if isinstance(entry, Item) else entry.reason  # type: ignore[call-overload]


@pytest.mark.parametrize("workers", [0, 2])
def test_items_come_in_the_order_of_the_keys(pictures_of: Callable[..., Path], workers: int) -> None:
    source = open_source(str(pictures_of(30)), "image")
    assert [entry.key for entry in stream(source, source.keys(), NATIVE, workers)] == list(source.keys())
    keys = source.keys()[::-3]
    found = list(stream(source, keys, NATIVE, workers))
    assert [entry.key for entry in found] == list(keys)
    assert [value(entry) for entry in found] == list(range(29, -1, -3))


def test_slow_files_do_not_change_the_order(helper) -> None:
    slow = {f"{n:02d}": Made(partial(helper.slow_picture, n, 0.2 if n % 4 == 0 else 0.0)) for n in range(12)}
    source = Table(slow)
    assert [value(entry) for entry in stream(source, source.keys(), NATIVE, 2)] == list(range(12))


def test_workers_give_the_bits_of_this_process(pictures_of: Callable[..., Path]) -> None:
    source = open_source("sample:image", "image")
    keys = source.keys()[::4]
    prepare = ImagePrepare(size=64)
    for here, there in zip(stream(source, keys, prepare, 0), stream(source, keys, prepare, 1), strict=True):
        assert isinstance(here, Item)
        assert isinstance(there, Item)
        np.testing.assert_array_equal(here.signal, there.signal)
        assert (here.key, here.notes) == (there.key, there.notes)


@pytest.mark.parametrize(
    ("kill", "reason"),
    [
        (lambda helper: partial(helper.die, int(signal.SIGKILL)), "decoder process died (signal 9)"),
        (lambda helper: partial(helper.die, int(signal.SIGSEGV)), "decoder process died (signal 11)"),
        (lambda helper: partial(helper.leave, 7), "decoder process died (exit status 7)"),
    ],
)
def test_a_worker_that_dies_costs_only_its_file(helper, kill, reason: str) -> None:
    made = {f"{n:02d}": Made(partial(helper.picture, n)) for n in range(12)}
    made["05"] = Made(kill(helper))
    source = Table(made)
    found = [value(entry) for entry in stream(source, source.keys(), NATIVE, 2)]
    assert found == [0, 1, 2, 3, 4, reason, *range(6, 12)]


def test_a_worker_killed_from_outside_costs_nothing(helper, tmp_path: Path) -> None:
    source = Table({f"{n}": Made(partial(helper.die_once, str(tmp_path / f"flag{n}"), n)) for n in range(3)})
    assert [value(entry) for entry in stream(source, source.keys(), NATIVE, 1)] == [0, 1, 2]


def test_what_libraries_print_does_not_reach_the_answers(helper) -> None:
    source = Table({f"{n}": Made(partial(helper.chatter, n)) for n in range(3)})
    assert [value(entry) for entry in stream(source, source.keys(), NATIVE, 1)] == [0, 1, 2]


def test_workers_start_once_and_serve_every_stream(helper) -> None:
    source = Table({f"{n}": Made(helper.pid) for n in range(3)})
    with DecodePool(1) as pool:
        pids = {bytes(entry.signal.ravel()) for _ in range(3) for entry in pool.stream(source, source.keys(), NATIVE)}
    (pid,) = pids
    number = int.from_bytes(pid, "little")
    assert number != os.getpid() & 0xFFFFFF
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_look_ahead_is_bounded(helper, workers: int) -> None:
    source = Table({f"{n:03d}": Made(partial(helper.picture, n)) for n in range(100)})
    with DecodePool(workers) as pool:
        entries = pool.stream(source, source.keys(), NATIVE)
        next(entries)
        time.sleep(0.5)
        assert 1 < len(source.opened) <= 1 + 4 * max(1, workers)
        assert len(list(entries)) == 99


@pytest.mark.parametrize("workers", [0, 2])
def test_leaving_early_leaves_the_pool_usable(helper, workers: int) -> None:
    source = Table({f"{n:03d}": Made(partial(helper.slow_picture, n, 0.05)) for n in range(60)})
    with DecodePool(workers) as pool:
        entries = pool.stream(source, source.keys(), NATIVE)
        assert value(next(entries)) == 0
        with pytest.raises(RuntimeError, match="already streaming"):
            next(pool.stream(source, source.keys(), NATIVE))
        entries.close()
        assert [value(entry) for entry in pool.stream(source, source.keys()[:3], NATIVE)] == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_impossible_prepare_step_is_an_error_not_a_row(pictures_of: Callable[..., Path], workers: int) -> None:
    source = open_source(str(pictures_of(3)), "image")
    with pytest.raises(UsageError, match="needs a size"):
        list(stream(source, source.keys(), ImagePrepare(preset="adm", size=None), workers))


def test_a_source_that_fails_gives_a_failed_row(helper) -> None:
    class Failing(Table):
        def open(self, key: str) -> Made:
            if key == "1":
                raise OSError(5, "Input/output error", "/secret/path")
            return super().open(key)

    source = Failing({f"{n}": Made(partial(helper.picture, n)) for n in range(3)})
    assert [value(entry) for entry in stream(source, source.keys(), NATIVE, 0)] == [0, "input/output error", 2]


def test_auto_takes_no_process_for_few_files() -> None:
    assert worker_count("auto", 511) == 0
    assert 1 <= worker_count("auto", 512) <= 4
    assert worker_count(3, 1) == 3
    with pytest.raises(UsageError, match="-1 decode workers"):
        worker_count(-1, 10)


def test_nothing_of_nothing(helper) -> None:
    assert list(stream(Table({}), (), NATIVE, 1)) == []


_SCRIPT = """
import gc, sys
if "decode_helper" in sys.modules or __name__ != "__main__":
    raise SystemExit("a worker imported the script")
import decode_helper
from functools import partial
from tokbench.data import DecodePool, Made
from tokbench.spec import ImagePrepare
class Source:
    def open(self, key): return Made(partial(decode_helper.slow_picture, 1, 0.01 if key == "0" else 60.0))
    def annotations(self, key): return {}
pool = DecodePool(2)
entries = pool.stream(Source(), [str(n) for n in range(9)], ImagePrepare(preset="native", size=None))
next(entries)
workers = [each for each in gc.get_objects() if type(each).__name__ == "_Worker"]
print(*(worker._process.pid for worker in workers), flush=True)
next(entries)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_do_not_outlive_their_parent(helper, tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "script.py"  # no guard: workers do not import __main__
    script.write_text(_SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.send_signal(how)
    _, errors = parent.communicate(timeout=60)
    assert parent.returncode != 0
    if how is signal.SIGINT:
        assert errors.count("KeyboardInterrupt") == 1
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers are still there"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_workers_import_no_torch(helper, tmp_path: Path) -> None:
    (tmp_path / "decode_probe.py").write_text(
        "import sys\nimport numpy as np\nfrom tokbench.data import Raw\n"
        "def probe():\n    return Raw(np.full((1, 1, 3), 'torch' in sys.modules, np.uint8))\n"
    )
    import decode_probe  # type: ignore[import-not-found]

    source = Table({"0": Made(decode_probe.probe)})
    assert [value(entry) for entry in stream(source, source.keys(), NATIVE, 1)] == [0]


def test_importing_the_room_is_light() -> None:
    heavy = {"torch", "av", "soundfile", "PIL", "scipy", "datasets", "skimage"}
    code = f"import sys, tokbench.data; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
