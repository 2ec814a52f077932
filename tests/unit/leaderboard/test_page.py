"""The HTML page: one file, harmless whatever names say, the same bytes every time, and usable in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tokbench.gallery import FOLDER, Keeper, Wanted, settle
from tokbench.leaderboard import declared_boards, ranked_boards
from tokbench.page import to_html
from tokbench.plots import Point, scatter
from tokbench.published import load_declared
from tokbench.renderings import to_csv, to_markdown
from tokbench.spec import TokenizerSpec
from tokbench.types import Code, Sample

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
    assert html.count("</script>") == 3
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


# ------------------------------------------------------------------------------------------------------ samples


KEYS = ("0001", EVIL, PATH, "0003")


def _keep(place: Path, seed: int, *, modality: str = "image") -> None:
    """Keep four samples beside a result: the same originals for every seed, reconstructions of its own."""
    torch = pytest.importorskip("torch")

    def noise(of: int, *shape: int) -> object:
        return torch.rand(1, *shape, generator=torch.Generator().manual_seed(of))

    shape = {"image": (3, 24, 300), "video": (3, 9, 16, 16), "audio": (1, 160_000)}[modality]
    keeper = Keeper(place / FOLDER, Wanted(None))
    spec = TokenizerSpec("t", modality, "none")  # type: ignore[arg-type]
    for index, key in enumerate(KEYS):
        x, y = noise(index, *shape), noise(100 + index + 10 * seed, *shape)
        rate = 16000 if modality == "audio" else None
        keeper(Sample((key,), x, y, y, Code(), spec, sample_rate=rate))  # type: ignore[arg-type]
    settle(place / FOLDER, dict.fromkeys(KEYS, "ok"), Wanted(None))


@pytest.fixture
def sampled(entry):
    """Return a function that makes a board of four rows, three of which kept samples."""

    def make(modality: str = "image"):
        rows = [entry(name, list(BASE + i), 0.3) for i, name in enumerate(("a", "b", EVIL, "without"))]
        for seed, row in enumerate(rows[:3]):
            _keep(row.place, seed, modality=modality)
        return ranked_boards(rows)

    return make


def test_the_page_holds_samples_within_its_budget_and_says_what_is_left_out(sampled) -> None:
    found = sampled()
    whole = to_html(found)
    assert whole == to_html(found)
    assert "<script>alert" not in whole
    assert "<img" not in whole
    shown = _gallery(whole)
    assert {sample["key"] for sample in shown["samples"]} == set(KEYS)
    assert all([name for name, *_ in sample["shown"]] == [EVIL, "a", "b"] for sample in shown["samples"])
    assert all(sample["about"] == "the middle 256x24 of 300x24" for sample in shown["samples"])
    assert any("psnr" in text for sample in shown["samples"] for _, _, text in sample["shown"])
    assert shown["said"] == []
    size = len(whole) - len(to_html(found, budget=0))
    smaller = to_html(found, budget=size // 2)
    shown = _gallery(smaller)
    assert len(smaller) < len(whole) - size // 2 + 2000
    assert 0 < len(shown["samples"]) < 4
    assert re.search(r"\d of 4 kept samples are left out", " ".join(shown["said"]))
    assert "gallery" not in json.loads(_script(to_html(found, budget=0), "data"))[0]


def test_samples_with_another_original_or_a_damaged_file_are_not_shown_beside_the_others(sampled, entry) -> None:
    found = sampled()
    place = found[0].places["b"] / FOLDER
    name = next(path for path in place.glob("0001-*.original.png"))
    name.write_bytes(next(place.glob("0003-*.original.png")).read_bytes())
    next(place.glob("0003-*.reconstruction.png")).write_bytes(b"no picture")
    shown = _gallery(to_html(found))
    by_key = {sample["key"]: [name for name, *_ in sample["shown"]] for sample in shown["samples"]}
    assert by_key["0001"] == by_key["0003"] == [EVIL, "a"]
    assert len(by_key[PATH]) == 3
    assert "b: its original of 0001 is not that of the others; not shown" in shown["said"]
    assert "b: what was kept of 0003 cannot be read" in shown["said"]


def test_a_file_that_unpacks_to_gigabytes_is_not_read(tmp_path: Path) -> None:
    import soundfile
    from PIL import Image

    from tokbench.errors import StoreError
    from tokbench.pictures import shown

    Image.new("1", (20_000, 4_000)).save(tmp_path / "large.png")
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 48_000, 2, "PCM_16") as file:
        for _ in range(61):
            file.write(np.zeros((500_000, 2), np.int16))
    for name, why in (("large.png", "20000x4000 is too large"), ("long.flac", "635 s are too long")):
        with pytest.raises(StoreError, match=why):
            shown(tmp_path / name)
    (tmp_path / "fake.png").write_bytes((tmp_path / "long.flac").read_bytes())
    with pytest.raises(StoreError, match="cannot be read"):
        shown(tmp_path / "fake.png")


def _script(html: str, name: str) -> str:
    return html.partition(f'id="{name}">')[2].partition("</script>")[0]


def _gallery(html: str):
    return json.loads(_script(html, "data"))[0]["gallery"]


@pytest.fixture
def opened(chromium, tmp_path):
    """Return a function that opens boards in Chromium and fails at the end if the page said or fetched anything."""
    heard: list[str] = []
    contexts = []

    def show(boards, **options):
        path = tmp_path / "samples.html"
        path.write_text(to_html(boards), encoding="utf-8")
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: heard.append(f"dialog {dialog.message}"))
        page.on("request", lambda r: heard.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.set_default_timeout(5000)
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert heard == []


_PIXELS = "all => all.map((c) => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data))"


def test_in_a_browser_the_difference_is_that_of_the_kept_pixels_times_the_stated_factor(opened, sampled) -> None:
    from PIL import Image

    found = sampled()
    page = opened(found)
    page.get_by_label("Sample", exact=True).select_option(label="0003")
    page.get_by_label("Difference", exact=True).select_option("4")
    assert page.get_by_text("× 4").count() >= 3
    page.locator("canvas[data-shows='difference 4']").nth(2).wait_for()
    page.locator("canvas[data-shows='picture']").nth(3).wait_for()
    drawn = page.locator(".view canvas").evaluate_all(_PIXELS)
    assert len(drawn) == 7  # the original, and a reconstruction and a difference for each of three
    folder = found[0].places[EVIL] / FOLDER
    a, b = (
        np.asarray(Image.open(next(folder.glob(f"0003-*.{s}.png"))), int)[:, 22:278]
        for s in ("original", "reconstruction")
    )
    for got, want in zip(drawn, (a, b, np.minimum(255, abs(a - b) * 4)), strict=False):
        np.testing.assert_array_equal(np.array(got).reshape(24, 256, 4)[..., :3], want)


def test_in_a_browser_samples_zoom_by_mouse_keyboard_and_slider_together(opened, sampled) -> None:
    page = opened(sampled())

    def scales() -> set[float]:
        styles = page.locator(".view canvas").evaluate_all("all => all.map(c => c.style.transform)")
        return {float(re.match(r"scale\(([\d.]+)\)", style)[1]) for style in styles}

    view = page.locator(".view").nth(1)
    assert scales() == {1}
    view.click()
    assert scales() == {4}
    view.press("+")
    assert scales() == {6}
    before = page.locator(".view canvas").first.get_attribute("style")
    view.press("ArrowRight")
    assert page.locator(".view canvas").first.get_attribute("style") != before
    view.press("0")
    assert scales() == {1}
    page.get_by_label("Zoom", exact=True).fill("8")
    assert scales() == {8}
    view.hover()
    page.mouse.wheel(0, 500)
    page.wait_for_function("document.querySelector('.view canvas').style.transform.startsWith('scale(6.4)')")
    assert scales() == {6.4}
    view.click()
    assert scales() == {1}
    page.get_by_role("checkbox", name="a", exact=True).uncheck()
    assert page.locator(".pane").count() == 3
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_in_a_browser_sound_plays_and_goes_on_where_the_other_was(opened, sampled) -> None:
    page = opened(sampled("audio"))
    players = page.locator("audio")
    assert players.count() == 4
    page.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.readyState > 0)")
    assert {round(d, 2) for d in players.evaluate_all("all => all.map(a => a.duration)")} == {6.0}
    assert page.get_by_text("Shown: the first 6 s of 10.0 s.").is_visible()
    times = players.evaluate_all(
        "async ([a, b]) => { a.muted = b.muted = true; a.currentTime = 3; await a.play(); await b.play();"
        " return [a.paused, b.currentTime >= 3]; }"
    )
    assert times == [True, True]


def test_a_clip_is_shown_by_two_of_its_frames(sampled) -> None:
    shown = _gallery(to_html(sampled("video")))
    assert shown["kind"] == "video"
    assert shown["samples"][0]["about"] == "first and last of the kept frames"


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
