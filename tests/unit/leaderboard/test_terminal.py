"""Boards and comparisons in a terminal: in one piece where there is room, in several that fit where there is not."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from tokbench.cli.compare import _notes, _tables
from tokbench.cli.run import _failures
from tokbench.leaderboard import Board, boards
from tokbench.renderings import to_csv, to_markdown, to_tables
from tokbench.verdicts import ColumnReport, PairReport


def _lines(tables, width: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width)
    for table in tables:
        console.print(table)
    return out.getvalue().splitlines()


@pytest.fixture
def board(entry) -> Board:
    rows = []
    for name, psnr in (("one", [30.0, 31.0]), ("a-long-name?option=of-it", [20.0, 21.0])):
        result = entry(name, psnr, store=False).result
        more = {f"column_number_{i}": {**result["metrics"]["psnr"]} for i in range(9)}
        columns = ["bpp", "psnr", *more]
        rows.append({**result, "board": columns, "metrics": {**result["metrics"], **more}})
    failed = {**rows[0], "status": "failed", "reason": "every sample failed; the first: " + "why " * 40}
    failed["tokenizer"] = {**failed["tokenizer"], "name": "broken"}
    absent = {
        key: rows[0][key] for key in ("schema_version", "key", "suite", "modality", "board", "dataset", "protocol")
    }
    absent |= {"status": "not run", "state": "weights absent", "reason": "r", "fix": "f"}
    absent["tokenizer"] = {**rows[0]["tokenizer"], "name": "gone"}
    (found,) = boards([*rows, failed, absent])
    return found


def test_with_room_or_in_a_pipe_a_board_is_one_table(board: Board) -> None:
    for width in (None, 400):
        (table,) = to_tables(board, width)
        lines = _lines([table], 400)
        assert all(
            any(name in line for line in lines) for name in ("one", "a-long-name?option=of-it", "broken", "gone")
        )
        assert "psnr ↑ (dB)" in lines[1]
        assert not any("why why" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_in_a_narrow_terminal_it_is_several_that_fit_and_hold_every_column_once(board: Board, width: int) -> None:
    tables = to_tables(board, width)
    assert len(tables) > 1
    lines = _lines(tables, width)
    assert max(map(cell_len, lines)) <= width
    assert all(any(name in line for line in lines) for name in ("not run:", "weights absent", "failed"))
    headings = [str(column.header).partition(" ")[0] for table in tables for column in table.columns]
    assert headings.count("tokenizer") == len(tables)
    wanted = [*board.columns, "enc/s", "dec/s"]
    assert [heading for heading in headings if heading != "tokenizer"] == wanted
    assert "…" not in "".join(lines)
    for table in tables[1:]:
        assert table.row_count == 2  # rows without numbers stand in the first alone


def _column(name: str, verdict: str, note: str) -> ColumnReport:
    return ColumnReport(
        name, "dB", True, 4, 28.1234, 27.9876, -0.1358, (-0.2, -0.1), 500, 0, 1e-6, 0.001, verdict, True, note
    )


def test_a_comparison_keeps_the_verdict_beside_the_numbers_in_a_narrow_terminal() -> None:
    columns = (_column("psnr_both_truncated", "worse", ""), _column("codebook_usage", "same", "no interval"))
    pair = PairReport("a", "b", "s", columns=(*columns, replace(columns[1], column="codebook_perplexity")))
    assert len(_tables(pair, None)) == len(_tables(pair, 200)) == 1
    first, second = _tables(pair, 80)
    lines = _lines([first, second], 80)
    assert max(map(cell_len, lines)) <= 80
    (line,) = (line for line in lines if "psnr_both_truncated" in line and "28.1234" in line)
    assert "worse" in line
    assert any("psnr_both_truncated" in line and "-0.2000 .. -0.1000" in line for line in lines)
    assert _notes(pair) == [("dim", "codebook_usage, codebook_perplexity: no interval")]


def test_samples_that_failed_are_counted_once_a_row_and_named_below(entry) -> None:
    result = entry("one", [30.0, 31.0, 33.0], failed=1, store=False).result
    cells = {name: {**cell, "n_failed": 1} for name, cell in result["metrics"].items()}
    failures = [{"key": "bad.png", "reason": "is not an image"}]
    result = {**result, "metrics": cells, "samples": {**result["samples"], "failures": failures}}
    other = {**result, "key": "f" * 64, "tokenizer": {**result["tokenizer"], "name": "two"}}
    (board,) = boards([result, other])
    lines = _lines(to_tables(board), 200)
    assert "failed" in lines[1]
    assert not any("missing" in line for line in lines)
    assert _failures(board) == ["failed: bad.png: is not an image (every tokenizer)"]
    assert "1 missing" in to_markdown([board])


def test_a_board_of_failures_alone_blames_no_version(entry) -> None:
    (board,) = boards(
        [{**entry("one", [30.0], store=False).result, "status": "failed", "reason": "every sample failed"}]
    )
    assert board.notes == ()
    assert _failures(board) == ["one: failed: every sample failed"]


def test_a_column_of_the_suite_that_has_no_value_says_why(entry) -> None:
    (board,) = boards([entry("one", [None, None], store=False).result])
    assert board.notes == ("psnr: no value on this set: silence",)
    (board,) = boards([entry("one", [None, None], store=False).result, entry("two", [3.0, 4.0], store=False).result])
    assert board.notes == ()


def test_counts_are_whole_numbers_in_the_csv_also_beside_an_absence(entry) -> None:
    result = entry("one", [30.0, 31.0], store=False).result
    absent = {
        key: result[key] for key in ("schema_version", "key", "suite", "modality", "board", "dataset", "protocol")
    }
    absent |= {"status": "not run", "state": "weights absent", "reason": "r", "fix": "f"}
    absent["tokenizer"] = {**result["tokenizer"], "name": "gone"}
    (board,) = boards([result, absent])
    first, second = csv.DictReader(io.StringIO(to_csv([board])))
    assert (first["samples"], first["failed"], first["psnr_n"]) == ("2", "0", "2")
    assert (second["samples"], second["failed"], second["psnr_n"]) == ("", "", "")


@pytest.mark.parametrize(("seconds", "text"), [(2.0, "0.5"), (0.0123, "81.3"), (1e-3, "1,000"), (1.773e-6, "564,000")])
def test_speeds_are_no_powers_of_ten(entry, seconds: float, text: str) -> None:
    result = entry("one", [30.0, 31.0], store=False).result
    timing = {"encode_seconds_per_sample": seconds, "decode_seconds_per_sample": None}
    (board,) = boards([{**result, "timing": timing}])
    assert f"| {text} | – |" in to_markdown([board])
