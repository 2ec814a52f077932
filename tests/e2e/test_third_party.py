"""Two doors for a third party: one file, or a package with an entry point. Neither needs a fork."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_the_example_is_short() -> None:
    lines = (HERE / "my_tokenizer.py").read_text().splitlines()
    body = [line for line in lines[lines.index("class Mine:") :] if line.strip()]
    assert len(body) <= 20


def test_one_file_runs_from_the_command_line(tmp_path, tokbench_cli, mine, pictures, suite_file) -> None:
    done = tokbench_cli("run", "-t", mine, "-s", str(suite_file), "-d", str(pictures), "-o", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["tokenizer"]["name"] == "mine"
    assert result["metrics"]["bpp"]["value"] == pytest.approx(9 / 64)
    assert result["metrics"]["psnr"]["n"] == 11
    assert result["provenance"]["contract"]["passed"] is True


def test_an_edited_file_is_another_tokenizer(tmp_path, tokbench_cli, pictures, suite_file) -> None:
    copy = tmp_path / "mine.py"
    shutil.copy(HERE / "my_tokenizer.py", copy)
    words = (
        "run",
        "-t",
        f"{copy}:Mine",
        "-s",
        str(suite_file),
        "-d",
        str(pictures),
        "-o",
        str(tmp_path / "out"),
        "--json",
    )
    (before,) = json.loads(tokbench_cli(*words).stdout)
    copy.write_text(copy.read_text().replace("levels / 3.5 - 1", "levels / 3.5 - 0.9"))
    (after,) = json.loads(tokbench_cli(*words).stdout)
    assert before["key"] != after["key"]
    assert before["metrics"]["psnr"]["value"] != after["metrics"]["psnr"]["value"]


@pytest.mark.slow
def test_an_installed_plugin_registers_its_catalog(tmp_path, tokbench_cli, pictures, suite_file) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(tmp_path),
            str(HERE.parent / "plugin"),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    env = {"PYTHONPATH": str(tmp_path / "site")}
    listed = tokbench_cli("list", "tokenizers", "acme*", **env)
    assert "acme-grey" in listed.stdout
    words = (
        "run",
        "-t",
        "acme-grey?*",
        "-s",
        str(suite_file),
        "-d",
        str(pictures),
        "-o",
        str(tmp_path / "out"),
        "--json",
    )
    done = tokbench_cli(*words, **env)
    assert done.returncode == 0, done.stderr
    rates = {r["tokenizer"]["name"]: r["metrics"]["bpp"]["value"] for r in json.loads(done.stdout)}
    assert rates == {"acme-grey?levels=4": pytest.approx(2 / 64), "acme-grey?levels=16": pytest.approx(4 / 64)}


@pytest.mark.slow
def test_a_broken_plugin_is_reported_and_costs_nothing_else(tmp_path, tokbench_cli) -> None:
    site = tmp_path / "site"
    (site / "tokbench_bad").mkdir(parents=True)
    (site / "tokbench_bad" / "__init__.py").touch()
    (site / "tokbench_bad" / "bad.toml").write_text("[[tokenizer]]\nname = 'x'\nwrong = 1\n")
    info = site / "tokbench_bad-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tokbench-bad\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[tokbench.catalogs]\nbad = tokbench_bad\n")
    done = tokbench_cli("list", "tokenizers", PYTHONPATH=str(site))
    assert done.returncode == 0
    assert "jpeg" in done.stdout
    assert "tokbench-bad:bad was not loaded: bad.toml: x: unknown key 'wrong'" in done.stderr
