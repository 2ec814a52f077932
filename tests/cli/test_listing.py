"""What `tokbench list` prints: columns for a terminal, tabs for a pipe, and what it says when nothing fits."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from tokbench.cli import app
from tokbench.cli.tables import fitted
from tokbench.errors import UsageError

ROWS = [
    {"name": "short", "kind": "discrete", "long": "a,b,c", "summary": "one line about it that goes on for a while"},
    {"name": "a-rather-long-name", "kind": "payload", "long": "x" * 200, "summary": "two\nlines"},
]


def test_a_pipe_gets_every_value_in_full_separated_by_tabs() -> None:
    out = CliRunner().invoke(app, ["list", "suites"]).stdout
    cells = [line.split("\t") for line in out.splitlines()]
    assert {len(row) for row in cells} == {4}
    assert ["image-sample", "image", "sample:image"] in [row[:3] for row in cells]
    assert all(cell == cell.strip() and "  " not in cell for row in cells for cell in row)
    assert max(len(row[3]) for row in cells) > 100


def test_a_terminal_gets_aligned_lines_of_its_width() -> None:
    lines, left_out = fitted(ROWS, 66, less=("long", "kind"))
    assert left_out == ["long"]
    assert [line.split()[0] for line in lines] == ["name", "short", "a-rather-long-name"]
    assert all(cell_len(line) <= 66 for line in lines)
    assert len({line.index(word) for line, word in zip(lines, ("summary", "one", "two lines"), strict=True)}) == 1
    assert lines[1].endswith("…")


def test_names_are_never_cut_and_a_wide_terminal_leaves_nothing_out() -> None:
    lines, left_out = fitted(ROWS, 10, less=("long", "kind"))
    assert lines[2].startswith("a-rather-long-name  ")
    assert left_out == ["long", "kind"]
    lines, left_out = fitted(ROWS, 400, less=("long", "kind"))
    assert left_out == []
    assert "x" * 200 in lines[2]


def test_one_modality_can_be_asked_for() -> None:
    out = CliRunner().invoke(app, ["list", "suites", "--modality", "video"]).stdout
    assert [line.split("\t")[0] for line in out.splitlines()] == ["quick", "video-sample"]
    out = CliRunner().invoke(app, ["list", "tokenizers", "--modality", "video"]).stdout
    assert {line.split("\t")[1] for line in out.splitlines()} == {"video"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "tokenizers", "jpegg"], "no tokenizer fits 'jpegg'; did you mean jpeg"),
        (["list", "suites", "xyz*"], "no suite fits 'xyz*'. See `tokbench list suites`."),
        (["list", "tokenizers", "being-vl*"], "planned or unreleased (being-vl-0); add --all"),
        (["show", "image-sampel"], "no tokenizer, suite or metric is called 'image-sampel'; did you mean image-sample"),
        (["show", "psnr_yy"], "did you mean psnr_y"),
    ],
)
def test_what_is_not_there_is_said_and_what_is_near(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
    assert done.stdout == ""
