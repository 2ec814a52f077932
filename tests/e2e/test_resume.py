"""A run may die at any moment: what is finished stays, what is missing is done, and the numbers do not change by a bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def numbers(store: Path) -> dict[str, object]:
    """Return everything of the store's results that must not depend on how the run went."""
    found = {}
    for path in sorted(store.glob("*/*/*/result.json")):
        result = json.loads(path.read_text())
        found[str(path.parent.relative_to(store))] = (result["metrics"], result["samples"], result["protocol"])
    assert found
    return found


@pytest.fixture
def request_words(hostile: str, pictures: Path, suite_file: Path):
    def words(store: Path, *more: str) -> list[str]:
        base = ["run", "-t", f"{hostile}:KilledAtEncode", "-s", str(suite_file), "-d", str(pictures)]
        return [*base, "-o", str(store), "--shard-size", "3", "--batch-size", "2", "--device", "cpu", *more]

    return words


@pytest.mark.slow
@pytest.mark.parametrize("at", [4, 6, 8, 11])
def test_a_run_killed_at_any_point_resumes_to_the_same_bits(
    tmp_path: Path, tokbench_cli, request_words, at: int
) -> None:
    whole = tokbench_cli(*request_words(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    killed = tokbench_cli(*request_words(tmp_path / "killed"), TOKBENCH_TEST_KILL_AT=str(at))
    assert killed.returncode == -9
    kept = list((tmp_path / "killed").glob("*/*/*/shards/*/shard.json"))
    assert not list((tmp_path / "killed").glob("*/*/*/result.json"))
    resumed = tokbench_cli(*request_words(tmp_path / "killed"))
    assert resumed.returncode == 0, resumed.stderr
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    after = {path: path.stat().st_mtime_ns for path in kept}
    assert tokbench_cli(*request_words(tmp_path / "killed")).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == after


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_write_leaves_no_half_shard(tmp_path: Path, tokbench_cli, request_words) -> None:
    killed = tokbench_cli(*request_words(tmp_path / "killed"), TOKBENCH_TEST_KILL_IN_WRITE="1")
    assert killed.returncode == -9
    assert not list((tmp_path / "killed").glob("*/*/*/shards/*/shard.json"))
    assert tokbench_cli(*request_words(tmp_path / "killed")).returncode == 0
    assert tokbench_cli(*request_words(tmp_path / "whole")).returncode == 0
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_job_and_a_second_run_mends_it(
    tmp_path: Path, tokbench_cli, request_words, mine
) -> None:
    words = request_words(tmp_path / "store", "--workers", "2", "-t", mine)
    first = tokbench_cli(*words, TOKBENCH_TEST_KILL_AT="4")
    assert first.returncode == 1
    assert "worker process died (signal SIGKILL)" in first.stderr
    done = [json.loads(p.read_text()) for p in (tmp_path / "store").glob("*/*/*/result.json")]
    assert [r["tokenizer"]["name"] for r in done] == ["mine"]
    second = tokbench_cli(*words)
    assert second.returncode == 0, second.stderr
    assert len(numbers(tmp_path / "store")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c_exits_130_and_keeps_what_is_finished(
    tmp_path: Path, tokbench_cli, hostile, pictures, suite_file, workers
) -> None:
    store = tmp_path / "store"
    words = ["run", "-t", f"{hostile}:Slow", "-s", str(suite_file), "-d", str(pictures), "-o", str(store)]
    words += ["--shard-size", "2", "--batch-size", "1", "--device", "cpu", "--workers", workers]
    running = subprocess.Popen([sys.executable, "-m", "tokbench", *words], stderr=subprocess.PIPE, text=True)
    while not list(store.glob("*/*/*/shards/*/shard.json")):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in stderr
    assert "finished shards are kept" in stderr
    assert tokbench_cli(*words).returncode == 0
    assert len(numbers(store)) == 1


@pytest.mark.slow
def test_two_processes_share_one_store(tmp_path: Path, tokbench_cli, hostile, pictures, suite_file) -> None:
    import threading

    def words(store: Path) -> list[str]:
        base = ["run", "-t", f"{hostile}:Slow", "-s", str(suite_file), "-d", str(pictures), "-o", str(store)]
        return [*base, "--shard-size", "2", "--batch-size", "1", "--device", "cpu"]

    ended = []
    both = [threading.Thread(target=lambda: ended.append(tokbench_cli(*words(tmp_path / "both")))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [done.returncode for done in ended] == [0, 0], [done.stderr for done in ended]
    assert tokbench_cli(*words(tmp_path / "one")).returncode == 0
    assert numbers(tmp_path / "both") == numbers(tmp_path / "one")
    assert not list((tmp_path / "both").rglob(".tmp-*"))
    shards = [json.loads(p.read_text()) for p in (tmp_path / "both").glob("*/*/*/shards/*/shard.json")]
    assert len(shards) == 6
