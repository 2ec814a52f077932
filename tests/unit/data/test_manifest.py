"""A manifest is a function of the files alone, and the cache never changes it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tokbench.data import Manifest, manifest, open_source
from tokbench.data.folder import FolderSource
from tokbench.data.manifest import default_cache


def old(folder: Path) -> None:
    """Date the files back, as files of a dataset are."""
    for path in folder.iterdir():
        os.utime(path, (1_600_000_000, 1_600_000_000))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which keys are really read."""
    read: list[str] = []
    real = FolderSource.sha256

    def spy(self: FolderSource, key: str) -> str:
        read.append(key)
        return real(self, key)

    monkeypatch.setattr(FolderSource, "sha256", spy)
    return read


def test_entries_are_the_sha256_of_the_bytes_in_key_order(tmp_path: Path, pictures_of: Callable[..., Path]) -> None:
    folder = pictures_of(3)
    found = manifest(open_source(str(folder), "image"), tmp_path / "cache")
    assert found.entries == tuple(
        (name, hashlib.sha256((folder / name).read_bytes()).hexdigest())
        for name in ("0000.png", "0001.png", "0002.png")
    )
    assert found.keys == ("0000.png", "0001.png", "0002.png")
    assert len(found) == 3


def test_the_digest_depends_on_names_and_bytes_not_on_the_place(
    tmp_path: Path, pictures_of: Callable[..., Path]
) -> None:
    one, two = pictures_of(3, "one"), pictures_of(3, "two")
    cache = tmp_path / "cache"
    first = manifest(open_source(str(one), "image"), cache)
    assert manifest(open_source(f"folder:{two}", "image"), cache) == first
    (two / "0001.png").rename(two / "000x.png")
    assert manifest(open_source(str(two), "image"), cache).digest != first.digest
    assert first.slice(0, 2) == Manifest(first.entries[:2])
    assert first.slice(0, 2).digest != first.digest


def test_unchanged_files_are_not_read_again(
    tmp_path: Path, pictures_of: Callable[..., Path], counted: list[str]
) -> None:
    folder = pictures_of(4)
    old(folder)
    source = open_source(str(folder), "image")
    first = manifest(source, tmp_path / "cache")
    assert sorted(counted) == list(source.keys())
    counted.clear()
    assert manifest(source, tmp_path / "cache") == first
    assert counted == []


def test_a_changed_file_is_read_again(tmp_path: Path, pictures_of: Callable[..., Path], counted: list[str]) -> None:
    folder = pictures_of(4)
    old(folder)
    source = open_source(str(folder), "image")
    first = manifest(source, tmp_path / "cache")
    counted.clear()
    (folder / "0002.png").write_bytes((folder / "0003.png").read_bytes())
    changed = manifest(source, tmp_path / "cache")
    assert counted == ["0002.png"]
    assert changed.entries[2][1] == first.entries[3][1]


def test_a_file_just_written_is_not_trusted_to_keep_its_stamp(
    tmp_path: Path, pictures_of: Callable[..., Path], counted: list[str]
) -> None:
    source = open_source(str(pictures_of(1)), "image")
    manifest(source, tmp_path / "cache")
    manifest(source, tmp_path / "cache")
    assert counted == ["0000.png", "0000.png"]


def test_an_unreadable_file_is_an_entry(tmp_path: Path, pictures_of: Callable[..., Path]) -> None:
    folder = pictures_of(1)
    (folder / "gone.png").symlink_to(folder / "nowhere")
    (folder / "empty.png").touch()
    entries = dict(manifest(open_source(str(folder), "image"), tmp_path / "cache").entries)
    assert entries["gone.png"] == entries["empty.png"] == "unreadable"
    assert len(entries["0000.png"]) == 64


@pytest.mark.parametrize("state", ["damaged", "locked", "a file in the way"])
def test_a_cache_that_does_not_work_changes_nothing(
    tmp_path: Path, pictures_of: Callable[..., Path], state: str
) -> None:
    folder = pictures_of(2)
    old(folder)
    source = open_source(str(folder), "image")
    expected = manifest(source, tmp_path / "good")
    cache = tmp_path / "bad"
    if state == "a file in the way":
        cache.touch()
    else:
        cache.mkdir()
        (cache / "digests.sqlite3").write_bytes(b"not a data base" * 100)
    if state == "locked":
        (cache / "digests.sqlite3").unlink()
        (cache / "digests.sqlite3").mkdir()
    assert manifest(source, cache) == expected


def test_two_processes_may_share_a_cache(tmp_path: Path, pictures_of: Callable[..., Path]) -> None:
    folder = pictures_of(40)
    old(folder)
    code = (
        "import sys; from pathlib import Path; from tokbench.data import manifest, open_source\n"
        "print(manifest(open_source(sys.argv[1], 'image'), Path(sys.argv[2])).digest)"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = [process.communicate(timeout=120)[0].strip() for process in running]
    assert digests[0] == digests[1] == manifest(open_source(str(folder), "image"), tmp_path / "other").digest
    with sqlite3.connect(tmp_path / "cache" / "digests.sqlite3") as connection:
        assert connection.execute("SELECT COUNT(*) FROM files").fetchone() == (40,)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKBENCH_CACHE", str(tmp_path / "here"))
    assert default_cache() == tmp_path / "here"
    monkeypatch.delenv("TOKBENCH_CACHE")
    assert default_cache().name == "tokbench"


def test_ground_truth_is_part_of_what_a_dataset_is(tmp_path: Path, pictures_of: Callable[..., Path]) -> None:
    root = pictures_of(2)
    bare = manifest(open_source(str(root), "image"), tmp_path / "cache")
    (root / "0000.json").write_text('{"boxes": [[1, 2, 3, 4]]}')
    told = manifest(open_source(str(root), "image"), tmp_path / "cache")
    assert told.entries[0][1] != bare.entries[0][1]
    assert told.entries[1] == bare.entries[1]
    (root / "0000.json").write_text('{"boxes": [[1, 2, 3, 5]]}')
    assert manifest(open_source(str(root), "image"), tmp_path / "cache").digest != told.digest
