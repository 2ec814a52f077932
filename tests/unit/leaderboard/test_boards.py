"""Declared boards, published numbers and ranks: strict files, never a silent mixture, ties where nothing is shown."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tokbench.errors import UsageError
from tokbench.leaderboard import declared_boards, ranked_boards
from tokbench.published import Budget, load_declared
from tokbench.ranks import ranks
from tokbench.renderings import to_csv, to_frame, to_markdown

ROOT = Path(__file__).parents[3] / "leaderboards"
RNG = np.random.default_rng(3)
BASE = RNG.normal(30, 4, 80)


def _noisy(by: float, spread: float = 0.3) -> list[float]:
    return list(BASE + by + RNG.normal(0, spread, 80))


BOARD = """
title = "A board"
modality = "image"
suite = "small"
reported = ["paper/adm"]
columns = ["bpp", "psnr", "ssim"]
sort = "psnr"
[budget]
column = "bpp"
edges = [0.25, 0.5]
[[plots]]
x = "bpp"
y = "psnr"
"""
PAPER = """
modality = "image"
dataset = "somewhere"
date = "2026-11-21"
size = [256, 256]
[[column]]
name = "psnr"
unit = "dB"
higher_is_better = true
[[column]]
name = "ssim"
higher_is_better = true
decimals = 4
[[table]]
preset = "adm"
protocol = "as ADM"
source = "a paper"
[[table.row]]
tokenizer = "Mine, as published"
card = "mine"
kind = "discrete"
tokens = 256
codebook_size = 1024
values = { psnr = 29.90, ssim = [0.80, 0.82] }
unverified = ["ssim"]
"""


def _declare(folder: Path, board: str = BOARD, paper: str = PAPER) -> Path:
    for name, text in (("boards/one", board), ("reported/paper", paper)):
        path = folder / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_the_committed_boards_and_published_numbers_are_valid() -> None:
    declared = load_declared(ROOT)
    numbers = sum(len(row.values) for table in declared.tables.values() for row in table.rows)
    assert numbers > 1000
    assert len(declared.boards) > 35
    used = {name for board in declared.boards for name in board.reported}
    assert used == set(declared.tables)
    for board in declared_boards(declared, []):
        assert board.rows
        assert board.columns
        assert {row["status"] for row in board.rows} == {"reported"}


def test_published_cards_are_cards_of_tokbench() -> None:
    from tokbench.registry import catalogs

    known = set(catalogs().cards)
    cards = {
        row.card.partition("?")[0] for table in load_declared(ROOT).tables.values() for row in table.rows if row.card
    }
    assert len(cards) > 20
    assert cards <= known


def test_published_digits_are_those_of_the_source() -> None:
    (row,) = [row for row in load_declared(ROOT).tables["imagenet-256/adm"].rows if row.tokenizer == "LlamaGen ds16"]
    assert (row.values["rfid_adm"].value, row.values["rfid_adm"].text) == (2.19, "2.19")
    (dc_ae,) = load_declared(ROOT).tables["imagenet-other/dc-ae-512"].rows
    assert {key: value.text for key, value in dc_ae.values.items()} == {
        "rfid_dc_ae": "0.2168", "psnr": "26.149", "ssim_reflect": "0.7105", "lpips_alex": "0.0802"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("board", "paper", "message"),
    [
        (BOARD.replace("sort", "sorted"), PAPER, "one.toml: unknown key 'sorted'"),
        (BOARD.replace("paper/adm", "paper/titok"), PAPER, "no reported table 'paper/titok'"),
        (BOARD.replace('modality = "image"', 'modality = "smell"'), PAPER, "modality is one of image, video, audio"),
        (BOARD.replace("[0.25, 0.5]", "[0.5, 0.25]"), PAPER, "budget.edges rise"),
        (BOARD.replace('title = "A board"', "title = 3"), PAPER, "title is str, not 3"),
        (BOARD.replace('title = "A board"', ""), PAPER, "missing 1 required positional argument: 'title'"),
        (BOARD, PAPER.replace("psnr = 29.90", "pnsr = 29.90"), "unknown column pnsr"),
        (BOARD, PAPER.replace("29.90", '"good"'), "a number, or"),
        (BOARD, PAPER.replace("[0.80, 0.82]", "[0.82, 0.80]"), "from low to high"),
        (BOARD, PAPER.replace("2026-11-21", "last year"), "date is YYYY-MM-DD"),
        (BOARD, PAPER.replace('kind = "discrete"', 'kind = "magic"'), "kind is one of"),
        (BOARD, PAPER.replace("tokens = 256", "token = 256"), "unknown key 'token'"),
        (BOARD, "x =", "paper.toml"),
    ],
)
def test_a_file_with_a_mistake_is_refused(tmp_path: Path, board: str, paper: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        load_declared(_declare(tmp_path, board, paper))


def test_measured_and_reported_stand_apart_and_show_their_difference(tmp_path: Path, entry) -> None:
    found = [entry("mine", _noisy(0)), entry("other", _noisy(1))]
    (board,) = declared_boards(load_declared(_declare(tmp_path)), found)
    frame = to_frame(board)
    assert frame["origin"].tolist() == ["measured", "measured", "reported"]
    published = frame.iloc[2]
    measured = frame[frame["tokenizer"] == "mine"].iloc[0]
    assert published["psnr"] == 29.9
    assert published["psnr_measured_difference"] == pytest.approx(measured["psnr"] - 29.9)
    assert (published["ssim"], published["ssim_upper"], published["unverified"]) == (0.80, 0.82, "ssim")
    assert published["bpp"] == pytest.approx(256 * 10 / 65536)
    assert pd.isna(published["rank"])
    text = to_markdown([board])
    assert "reported: a paper, 2026-11-21" in text
    assert "29.90 (measured" in text
    assert "0.80–0.82 (?)" in text
    assert "not verified in its source" in text


@pytest.mark.parametrize(("samples", "compared"), [(80, True), (50_000, False)])
def test_only_results_of_as_many_files_are_set_against_published_numbers(
    tmp_path: Path, entry, samples: int, compared: bool
) -> None:
    paper = PAPER.replace("size = [256, 256]", f"size = [256, 256]\nsamples = {samples}")
    (board,) = declared_boards(load_declared(_declare(tmp_path, paper=paper)), [entry("mine", _noisy(0))])
    frame = to_frame(board)
    assert ("psnr_measured_difference" in frame and frame["psnr_measured_difference"].notna().any()) == compared
    assert ("measured on 80 files, published on 50,000: not comparable" in board.notes) != compared


@pytest.mark.parametrize(("samples", "stands"), [(80, True), (50_000, False)])
def test_a_run_on_a_whole_copy_of_the_data_stands_beside_published_numbers(
    tmp_path: Path, entry, samples: int, stands: bool
) -> None:
    paper = PAPER.replace("size = [256, 256]", f"size = [256, 256]\nsamples = {samples}")
    found = declared_boards(
        load_declared(_declare(tmp_path, paper=paper)),
        [entry("mine", _noisy(0), suite="small+val"), entry("other", _noisy(0), suite="smaller")],
    )
    assert [(board.suite, len(board.rows)) for board in found] == (
        [("small+val", 2), ("smaller", 1)] if stands else [("one", 1), ("small+val", 1), ("smaller", 1)]
    )


def test_a_board_without_results_shows_published_numbers_only(tmp_path: Path) -> None:
    (board,) = declared_boards(load_declared(_declare(tmp_path)), [])
    assert [row["tokenizer"]["name"] for row in board.rows] == ["Mine, as published"]
    assert "enc/s" not in to_markdown([board])


def test_results_of_another_protocol_get_their_own_board_and_undeclared_suites_come_last(tmp_path: Path, entry) -> None:
    found = [entry("mine", _noisy(0)), entry("far", _noisy(0), hash_="f" * 64), entry("lone", _noisy(0), suite="else")]
    boards = declared_boards(load_declared(_declare(tmp_path)), found)
    assert [(board.suite, board.protocol[:1]) for board in boards] == [("small", "a"), ("small", "f"), ("else", "a")]


def test_rows_that_cannot_be_told_apart_share_a_rank(entry) -> None:
    found = [
        entry("best", _noisy(2)),
        entry("twin a", _noisy(0)),
        entry("twin b", _noisy(0)),
        entry("worst", _noisy(-2)),
    ]
    (board,) = ranked_boards(found)
    assert {name: (rank.place, rank.tied) for name, rank in board.ranks.items()} == {
        "best": (1, False), "twin a": (2, True), "twin b": (2, True), "worst": (4, False)
    }  # fmt: skip


def test_no_row_is_ranked_behind_one_with_a_lower_mean(entry) -> None:
    noise = RNG.normal(0, 6, 80)
    middle, wide = BASE - 0.5, BASE - 0.7 + noise - noise.mean()
    found = [entry("best", list(BASE)), entry("close but worse", list(middle)), entry("wide", list(wide))]
    (board,) = ranked_boards(found)
    assert {name: rank.place for name, rank in board.ranks.items()} == {"best": 1, "close but worse": 1, "wide": 1}
    assert all(rank.tied for rank in board.ranks.values())
    reference = ranked_boards([entry("resize", list(BASE), kind="none")])[0]
    assert reference.ranks["resize"].reason == "a reference, no tokenizer"


def test_ranks_stay_within_a_budget_group_and_want_full_coverage(entry) -> None:
    found = [
        entry("cheap", _noisy(0), bpp=0.2),
        entry("dear", _noisy(5), bpp=0.9),
        entry("holes", [None, *_noisy(3)[1:]], bpp=0.2),
        entry("broken", _noisy(3), bpp=0.2, failed=1),
        entry("fails its contract", _noisy(3), bpp=0.2, passed=False),
        entry("no rows", _noisy(3), bpp=0.2, store=False),
    ]
    (board,) = ranked_boards(found)
    assert {name: (rank.place, rank.reason) for name, rank in board.ranks.items()} == {
        "cheap": (1, ""),
        "dear": (1, ""),
        "holes": (None, "covers 79/80 samples"),
        "broken": (None, "covers 80/80 samples"),
        "fails its contract": (None, "fails its contract"),
        "no rows": (None, "its rows are not here"),
    }
    (limited,) = ranked_boards([entry("mine", _noisy(0), limit=10)])
    assert limited.ranks["mine"].reason == "limited to the first files"


def test_a_budget_covers_every_value_once() -> None:
    budget = Budget("bpp", (0.25, 0.5))
    values = [0.1, 0.25, 0.3, 0.5, 0.6, None]
    assert [budget.group(value) for value in values] == [
        "bpp ≤ 0.25", "bpp ≤ 0.25", "bpp 0.25–0.5", "bpp 0.25–0.5", "bpp > 0.5", "no bpp"
    ]  # fmt: skip


def test_csv_says_which_is_which_on_every_row(tmp_path: Path, entry) -> None:
    boards = declared_boards(load_declared(_declare(tmp_path)), [entry("mine", _noisy(0))])
    frame = pd.read_csv(io.StringIO(to_csv(boards)))
    assert frame["origin"].tolist() == ["measured", "reported"]
    assert frame["rank"].tolist()[0] == 1


def test_ratios_of_sums_are_ranked_by_a_paired_test_of_the_ratios(entry) -> None:
    from dataclasses import replace

    from tokbench.rows import Row, write_rows

    words = RNG.integers(3, 30, 80)
    share = RNG.beta(8, 2, 80)
    found = []
    for name, loss in (("best", 0.0), ("same", 0.0), ("worse", 0.1)):
        right = RNG.binomial(words, np.clip(share - loss, 0, 1))
        made = entry(name, [1.0] * 80)
        write_rows(made.place / "rows.parquet", [
            Row(f"{i:04d}", f"{i:04d}", values={"right": float(right[i]), "there": float(words[i]), "bpp": 0.3})
            for i in range(80)
        ])  # fmt: skip
        cell = {
            **made.result["metrics"]["psnr"], "value": right.sum() / words.sum(), "where": "corpus", "n": int(words.sum()),
            "ratio": [["right", "there"]],
        }  # fmt: skip
        found.append(replace(made, result={**made.result, "metrics": {**made.result["metrics"], "psnr": cell}}))
    spec = replace(ranked_boards(found)[0].spec, sort="psnr")
    ranked = ranks({item.name: item.result for item in found}, {item.name: item.place for item in found}, spec)
    assert {name: (rank.place, rank.tied) for name, rank in ranked.items()} == {
        "best": (1, True),
        "same": (1, True),
        "worse": (3, False),
    }
    found[0].result["metrics"]["psnr"]["n_undefined"] = 2
    again = ranks({item.name: item.result for item in found}, {item.name: item.place for item in found}, spec)
    assert again["best"].reason == "covers 78/80 samples"


def test_with_ones_below_the_test_of_ratios_is_that_of_means() -> None:
    from tokbench.paired import paired_ratio_t, paired_t

    groups = [f"{i // 2}" for i in range(60)]
    a, b = RNG.normal(size=60), RNG.normal(0.3, 1, size=60)
    one = np.ones(60)
    mean, p = paired_ratio_t(np.stack([b, one], 1), np.stack([a, one], 1), groups)
    assert (mean, p) == pytest.approx(paired_t(a - b, groups))
