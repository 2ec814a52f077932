"""The packaging holds: links resolve, a wheel carries the adapters under tokbench, and nothing leaks."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tokbench

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("room", ["adapters", "metrics"])
def test_the_links_are_relative_and_resolve(room: str) -> None:
    link = ROOT / "tokbench" / room
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{room}"
    assert link.resolve() == ROOT / room


def test_the_top_level_is_what_the_design_says() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {path.partition("/")[0] for path in tracked if not path.startswith(".")}
    assert top == {
        "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tokbench", "adapters", "metrics", "leaderboards", "tests",
        "docs", "benchmarks",
    }  # fmt: skip


def test_public_names_are_sorted_and_exist() -> None:
    assert tokbench.__all__ == sorted(tokbench.__all__)
    for name in tokbench.__all__:
        assert getattr(tokbench, name) is not None
    with pytest.raises(AttributeError):
        tokbench.no_such_name  # noqa: B018


@pytest.mark.slow
def test_a_wheel_holds_adapters_and_metrics_under_tokbench_with_their_data(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert top == {"tokbench", f"tokbench-{tokbench.__version__}.dist-info"}
    assert len(names) == len(set(names))
    for needed in (
        "tokbench/adapters/image_codecs.toml",
        "tokbench/adapters/tiny.py",
        "tokbench/adapters/data/tokbench-tiny-image.safetensors",
        "tokbench/adapters/data/tokbench-tiny-audio.safetensors",
        "tokbench/metrics/ssim.py",
        "tokbench/suites/quick.toml",
        "tokbench/py.typed",
        "tokbench/result.schema.json",
        "tokbench/templates/boards.js",
        "tokbench/templates/boards.css",
        "tokbench/templates/boards.html.j2",
    ):
        assert needed in names
