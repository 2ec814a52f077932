"""The HTML page: one file, harmless whatever names say, the same bytes every time, and usable in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tokbench.leaderboard import declared_boards, ranked_boards, to_csv, to_markdown
from tokbench.page import to_html
from tokbench.plots import Point, scatter
from tokbench.published import load_declared

ROOT = Path(__file__).parents[3] / "leaderboards"
EVIL = "<script>alert(1)</script>"
PATH = "../../etc/passwd</script><img src=x onerror=alert(2)>"
BASE = np.random.default_rng(8).normal(30, 3, 20)


@pytest.fixture
def boards(entry):
    """Return a board of measured rows, two of them with hostile names, and all published boards."""
    rows = [
        entry("jpeg?quality=10", list(BASE - 3), 0.2, kind="payload"),
        entry("jpeg?quality=30", list(BASE), 0.4, kind="payload"),
        entry("mine", list(BASE + 1), 0.3),
        entry(EVIL, list(BASE + 2), 0.3),
        entry(PATH, list(BASE + 3), 0.3),
    ]
    return [*ranked_boards(rows), *declared_boards(load_declared(ROOT), [])]


def test_the_page_is_one_file_that_asks_for_nothing(boards) -> None:
    html = to_html(boards)
    assert {link[:5] for link in re.findall(r'(?:src|href)="([^"]*)"', html)} == {"data:"}
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", html.partition("<script type")[0])
    assert "default-src 'none'" in html


def test_the_same_input_gives_the_same_bytes(boards) -> None:
    assert to_html(boards) == to_html(list(boards))


def test_hostile_names_are_text_everywhere(boards) -> None:
    html = to_html(boards)
    assert "<script>alert" not in html
    assert "<img" not in html
    assert html.count("</script>") == 2
    data = html.partition('id="data">')[2].partition("</script>")[0]
    names = [row["t"] for row in json.loads(data)[0]["rows"]]
    assert EVIL in names
    assert PATH in names
    markdown = to_markdown(boards)
    assert "<script>" not in markdown
    assert "<img" not in markdown
    assert EVIL in to_csv(boards)  # data stays data


def test_plots_escape_names_and_draw_the_front() -> None:
    points = [Point(0.1, 20, "a", "a"), Point(0.2, 30, EVIL, "b"), Point(0.3, 25, "c", "c", reported=True)]
    svg = scatter(points, x="bpp", y="psnr", log=True, higher_is_better=True)
    assert "<script>" not in svg
    assert svg.count("<circle") == 3
    assert svg.count('class="hollow') == 1
    front = re.search(r'class="front" points="([^"]*)"', svg)
    assert front is not None
    assert len(front[1].split()) == 2
    assert scatter([Point(0, 1, "a", "a"), Point(1, 1, "b", "b")], x="x", y="y", log=True, higher_is_better=True) == ""


@pytest.fixture
def page(chromium, boards, tmp_path):
    """Return the page opened in Chromium, with everything it said and asked for."""
    path = tmp_path / "board.html"
    path.write_text(to_html(boards), encoding="utf-8")
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    opened = context.new_page()
    heard: list[str] = []
    opened.on("console", lambda message: heard.append(message.text))
    opened.on("pageerror", lambda error: heard.append(str(error)))
    opened.on("dialog", lambda dialog: heard.append(f"dialog {dialog.message}"))
    opened.on(
        "request", lambda request: heard.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    opened.set_default_timeout(5000)
    opened.goto(path.as_uri())
    yield opened
    assert heard == []
    context.close()


def _names(page) -> list[str]:
    return page.locator("section:visible tbody th").evaluate_all(
        "cells => cells.map(cell => cell.firstChild.textContent)"
    )


def test_in_a_browser_columns_sort_by_mouse_and_keyboard(page) -> None:
    assert len(_names(page)) == 5
    page.get_by_role("button", name="psnr").click()
    assert _names(page)[0] == PATH
    head = page.locator("th[aria-sort]")
    assert head.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="psnr").press("Enter")
    assert _names(page)[0] == "jpeg?quality=10"
    assert head.get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="tokenizer").press("Space")
    assert _names(page)[-1] == "mine"


def test_in_a_browser_rows_filter_and_cells_say_n_and_interval(page) -> None:
    page.get_by_label("Code", exact=True).select_option("payload")
    assert _names(page) == ["jpeg?quality=10", "jpeg?quality=30"]
    assert page.locator("section:visible .status").inner_text() == "2 of 5 rows"
    page.get_by_label("from").fill("0.3")
    assert _names(page) == ["jpeg?quality=30"]
    page.get_by_label("Code", exact=True).select_option("")
    page.get_by_label("Name contains").fill("MINE")
    assert _names(page) == ["mine"]
    cell = page.locator("section:visible tbody td", has_text=f"{BASE.mean() + 1:.2f}").first
    assert re.match(r"n = 20; 95 % interval \d+\.\d\d to \d+\.\d\d", cell.get_attribute("title"))
    assert not page.get_by_text("95 % interval").first.is_visible()
    page.get_by_label("show n and intervals").check()
    assert page.get_by_text("95 % interval").first.is_visible()


def test_in_a_browser_boards_are_chosen_by_modality_and_ranks_shown(page) -> None:
    assert page.locator("section:visible").count() == 1
    row = page.locator("section:visible tbody tr", has_text="jpeg?quality=10")
    assert row.locator("td").first.inner_text() == "1"
    page.get_by_label("Modality").select_option("audio")
    heading = page.locator("section:visible h2").inner_text()
    page.get_by_label("Board", exact=True).select_option(label="LibriSpeech test-clean at 16 kHz (40)")
    assert page.locator("section:visible h2").inner_text() == "LibriSpeech test-clean at 16 kHz" != heading
    assert len(_names(page)) == 40
    assert {cell.inner_text() for cell in page.locator("section:visible tbody td:text-is('reported')").all()} == {
        "reported"
    }


def test_in_a_browser_it_is_dark_when_asked_and_fits_a_phone(page) -> None:
    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    page.get_by_role("button", name="Switch between light and dark").click()
    dark = background()
    assert dark != light
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert background() == dark
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("section:visible table").is_visible()


@pytest.mark.slow
def test_a_hundred_thousand_rows_render_and_page(chromium, entry, tmp_path) -> None:
    import time

    from tokbench.entries import Entry

    one = entry("x", list(BASE))
    found = []
    for index in range(100_000):
        result = {**one.result, "key": f"{index:064x}"}
        result["tokenizer"] = {**one.result["tokenizer"], "name": f"t?n={index}"}
        result["metrics"] = {**one.result["metrics"], "psnr": {**one.result["metrics"]["psnr"], "value": index / 1000}}
        found.append(Entry(result, one.place))
    start = time.perf_counter()
    html = to_html(ranked_boards(found))
    assert time.perf_counter() - start < 60  # far above what it takes; a quadratic step would be hours
    path = tmp_path / "large.html"
    path.write_text(html, encoding="utf-8")
    del html
    page = chromium.new_page()
    page.goto(path.as_uri())
    assert page.locator("section:visible tbody tr").count() == 100
    page.get_by_role("button", name="psnr").click()
    assert page.locator("section:visible tbody th").first.inner_text() == "t?n=99999"
    page.get_by_role("button", name="Next").click()
    assert page.locator(".pages span").inner_text() == "page 2 of 1000"
    page.close()


def test_the_cli_writes_csv_markdown_and_html(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tokbench.cli import app

    done = CliRunner().invoke(app, ["leaderboard", "--from", str(ROOT), "--to", str(tmp_path), "--html"])
    assert done.exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["leaderboard.csv", "leaderboard.html", "leaderboard.md"]
    assert "LlamaGen ds16" in (tmp_path / "leaderboard.html").read_text()
