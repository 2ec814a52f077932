"""The command line as a user meets it: what is printed where, exit codes, names, files and variables."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokbench.cli import app


@pytest.fixture
def small_run(tokbench_cli, mine, pictures, suite_file, tmp_path):
    def go(*more: str, **env: str):
        return tokbench_cli(
            "run", "-s", str(suite_file), "-d", str(pictures), "-o", str(tmp_path / "store"), *more, **env
        )

    return go


@pytest.mark.parametrize("words", [["--help"], ["list", "tokenizers"], ["run", "--help"], ["list", "suites"]])
def test_help_and_list_import_no_heavy_library(words: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['tokbench', *{words!r}]\n"
        "from tokbench.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'PIL', 'diffusers', 'transformers', 'skimage', 'scipy', 'av'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    assert done.stderr.strip().endswith("HEAVY []")


def test_list_json_is_data_on_stdout() -> None:
    done = CliRunner().invoke(app, ["list", "tokenizers", "jpeg*", "--json"])
    assert [row["name"] for row in json.loads(done.stdout)] == ["jpeg", "jpeg2000"]


def test_an_unknown_name_says_what_is_near_and_exits_2(small_run) -> None:
    done = small_run("-t", "jpegg")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "unknown tokenizer 'jpegg'; did you mean jpeg" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-t", "jpeg?quality=0"], "jpeg: quality=0 is out of bounds"),
        (["-t", "jpeg?size=3"], "jpeg has no option 'size'; its options: quality"),
        (["-t", "jpeg", "--batch-size", "none"], "--batch-size none: give a number or auto"),
        (["-t", "jpeg", "--rerun", "some"], "--rerun some: choose never, failed, all"),
        (["-t", "jpeg", "--shard", "3/2"], "--shard 3/2: the index runs from 0 to 1"),
        (["-t", "jpeg", "--device", "cuda:77"], "--device cuda:77: this machine has"),
        (["-t", "opus"], "nothing to run: opus"),
        (["-t", "jpeg", "--keep-samples", "some"], "--keep-samples some: give a number, all, or key=KEY"),
        (["-t", "nowhere.py:Class"], "nowhere.py: no such file"),
    ],
)
def test_wrong_use_says_what_is_wrong_and_exits_2(small_run, words: list[str], message: str) -> None:
    done = small_run(*words)
    assert done.returncode == 2
    assert message in done.stderr


def test_run_prints_a_board_and_leaderboard_writes_it(small_run, tokbench_cli, mine, tmp_path: Path) -> None:
    done = small_run("-t", mine, "-t", "resize", "-t", "jpeg?quality=[13]0")
    assert done.returncode == 0, done.stderr
    for name in ("mine", "resize", "jpeg?quality=10", "jpeg?quality=30", "psnr ↑ (dB)"):
        assert name in done.stdout
    board = tokbench_cli("leaderboard", "-o", str(tmp_path / "store"), "--to", str(tmp_path / "board"))
    assert board.returncode == 0, board.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "board" / "leaderboard.csv").read_text())))
    assert [row["tokenizer"] for row in rows] == ["resize", "mine", "jpeg?quality=10", "jpeg?quality=30"] or len(
        rows
    ) == 4
    by_name = {row["tokenizer"]: row for row in rows}
    assert float(by_name["jpeg?quality=10"]["psnr"]) < float(by_name["jpeg?quality=30"]["psnr"])
    assert int(by_name["mine"]["psnr_n"]) == 11
    assert (
        float(by_name["mine"]["psnr_ci_low"]) < float(by_name["mine"]["psnr"]) < float(by_name["mine"]["psnr_ci_high"])
    )
    assert "| mine |" in (tmp_path / "board" / "leaderboard.md").read_text()


def test_samples_are_kept_when_asked_for_and_shown_on_the_page(small_run, tokbench_cli, tmp_path: Path) -> None:
    assert small_run("-t", "jpeg?quality=10").returncode == 0
    assert list((tmp_path / "store").rglob("samples.json")) == []
    done = small_run("-t", "jpeg?quality=10", "--keep-samples", "2", "--keep-samples", "key=nothing")
    assert done.returncode == 0
    assert "--keep-samples key=nothing: no run has a row of that key" in done.stderr
    (index,) = (tmp_path / "store").rglob("samples.json")
    assert len(json.loads(index.read_text())["samples"]) == 2
    pages = []
    for megabytes in ("8", "0"):
        words = ("leaderboard", "-o", str(tmp_path / "store"), "--html", "--samples", megabytes)
        assert tokbench_cli(*words).returncode == 0
        pages.append((tmp_path / "store" / "leaderboard.html").read_text())
    assert ["data:image/webp" in page for page in pages] == [True, False]


def test_absent_weights_are_a_row_with_the_command_that_mends_it(small_run) -> None:
    done = small_run("-t", "taesd", "-t", "resize", "--offline", TOKBENCH_WEIGHTS="", HF_HOME="/nonexistent")
    assert done.returncode == 0
    assert "not run: weights absent" in done.stdout
    assert "taesd" in done.stderr
    assert "taesd: weights absent: run again without --offline" in done.stderr
    assert "`hf download madebyollin/taesd" in done.stderr


def test_the_limit_is_in_the_protocol_and_on_the_board(small_run, mine) -> None:
    done = small_run("-t", mine, "--limit", "4", "--json")
    (result,) = json.loads(done.stdout)
    assert result["protocol"]["limit"] == 4
    assert result["samples"] == {"total": 11, "files": 4, "rows": 4, "ok": 4, "failed": 0, "failures": []}
    assert "not a result to publish" in small_run("-t", mine, "--limit", "4").stderr


def test_a_config_file_and_variables_give_defaults_and_flags_win(small_run, mine, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'tokenizer = ["{mine}"]\nlimit = 5\nbatch-size = "2"\n')
    (result,) = json.loads(small_run("--config", str(config), "--json").stdout)
    assert (result["protocol"]["limit"], result["timing"]["batch_size"]) == (5, 2)
    (result,) = json.loads(small_run("--config", str(config), "--limit", "3", "--json").stdout)
    assert result["protocol"]["limit"] == 3
    (result,) = json.loads(small_run("-t", mine, "--json", TOKBENCH_LIMIT="2").stdout)
    assert result["protocol"]["limit"] == 2
    config.write_text("limits = 5\n")
    done = small_run("--config", str(config))
    assert done.returncode == 2
    assert "unknown key 'limits'" in done.stderr


def test_shares_of_two_machines_make_one_result(small_run, mine) -> None:
    first = small_run("-t", mine, "--shard-size", "4", "--shard", "0/2", "--json")
    assert json.loads(first.stdout) == []
    second = small_run("-t", mine, "--shard-size", "4", "--json", RANK="1", WORLD_SIZE="2")
    (result,) = json.loads(second.stdout)
    assert result["samples"]["rows"] == 11


def test_plan_runs_nothing_and_names_what_is_missing(tokbench_cli, tmp_path: Path, suite_file, pictures) -> None:
    words = (
        "plan",
        "-t",
        "resize",
        "-t",
        "taesd",
        "-s",
        str(suite_file),
        "-d",
        str(pictures),
        "-o",
        str(tmp_path / "none"),
    )
    done = tokbench_cli(*words, "--json", HF_HOME="/nonexistent")
    states = {row["tokenizer"]: row["state"] for row in json.loads(done.stdout)}
    assert states == {"resize": "ready", "taesd": "weights absent"}
    assert not (tmp_path / "none").exists()


def test_check_prints_one_line_a_check_and_its_exit_code_tells(tokbench_cli, mine, hostile) -> None:
    good = tokbench_cli("check", mine)
    assert good.returncode == 0
    assert all(line.startswith("mine  ") for line in good.stdout.splitlines())
    bad = tokbench_cli("check", f"{hostile}:WrongRange")
    assert bad.returncode == 1
    assert "fail  range" in bad.stdout


def test_show_tells_licence_weights_and_options(tokbench_cli) -> None:
    done = tokbench_cli("show", "sd-vae-ft-mse")
    assert "licence: MIT" in done.stdout
    assert "diffusion_pytorch_model" in done.stdout
    metric = tokbench_cli("show", "psnr", "--json")
    assert json.loads(metric.stdout)["columns"][0]["name"] == "psnr"


def test_a_store_of_another_schema_is_refused(small_run, mine, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text('{"schema_version": 99}')
    done = small_run("-t", mine)
    assert done.returncode == 2
    assert "schema 99" in done.stderr


def test_check_of_untrained_weights_skips_what_only_trained_ones_pass(tokbench_cli, hostile) -> None:
    done = tokbench_cli("check", f"{hostile}:WrongRange", "--untrained")
    assert done.returncode == 0
    assert "skip  range  the weights are not trained" in done.stdout
    assert "pass  deterministic" in done.stdout


def test_every_card_is_listed_and_shown_without_torch() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tokbench.cli.listing import Kind, list_\n"
        "from tokbench.cli.show import show\n"
        "from tokbench.registry import catalogs\n"
        "list_(Kind.tokenizers, '*', True, False)\n"
        "names = sorted(catalogs().cards)\n"
        "for name in names: show(name, False, Path('results'), False)\n"
        "assert not catalogs().broken\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "print('shown', len(names), sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    last = done.stdout.splitlines()[-1].split()
    assert int(last[1]) > 300
    assert last[2:] == ["[]"]
