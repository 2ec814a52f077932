"""The HTML report of a comparison: pictures of the samples that lost most, or the command that keeps them; harmless names."""

from __future__ import annotations

import html as escaping
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tokbench.cli import app
from tokbench.compare import compare, find
from tokbench.gallery import FOLDER, Keeper, Wanted, settle
from tokbench.report import to_html
from tokbench.spec import TokenizerSpec
from tokbench.types import Code, Sample

EVIL = "<script>alert(1)</script>"
PSNR = list(np.random.default_rng(2).normal(30, 2, 40))
KEYS = [f"{i:04d}" for i in range(40)]


def _keep(place: Path, *keys: str, worse: float = 0.0) -> None:
    keeper = Keeper(place / FOLDER, Wanted(0, keys))
    for key in keys:
        x = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(int(key)))
        y = (x * 0.9 + worse).clamp(0, 1)
        keeper(Sample((key,), x, y, y, Code(), TokenizerSpec("t", "image", "none")))
    settle(place / FOLDER, dict.fromkeys(KEYS, "ok"), Wanted(0, keys))


@pytest.fixture
def sides(make):
    """Return two results, of which the candidate lost most on 0007 and then on 0011."""
    new = [value - 0.5 for value in PSNR]
    new[7] -= 4
    new[11] -= 3
    base, candidate = make("base", {"psnr": PSNR}), make("new", {"psnr": new})
    result = json.loads((candidate / "result.json").read_text())
    result["tokenizer"]["name"] = EVIL
    result["provenance"]["argv"] = ["tokbench", "run", "-s", "small", "-o", "elsewhere", "--keep-samples=3", "-t", EVIL]
    (candidate / "result.json").write_text(json.dumps(result))
    return base, candidate


def _report(base: Path, candidate: Path, **options: int) -> str:
    return to_html(compare(find(str(base)), find(str(candidate)), worst=2), **options)


def _json(page: str, name: str):
    return json.loads(page.partition(f'id="{name}">')[2].partition("</script>")[0])


def test_where_nothing_was_kept_the_commands_that_keep_it_are_given(sides) -> None:
    base, candidate = sides
    page = _report(base, candidate)
    assert page == _report(base, candidate)
    assert page.count("No pictures: not kept by the base and the candidate") == 2
    first, second = (shlex.split(escaping.unescape(text)) for text in re.findall(r"<pre><code>(.*?)</code>", page))
    keep = ["--keep-samples", "key=0007", "--keep-samples", "key=0011"]
    assert first == ["tokbench", "run", "-s", "small", "-t", "mine", "-o", str(base.parents[2]), *keep]
    assert second == ["tokbench", "run", "-s", "small", "-t", EVIL, "-o", str(candidate.parents[2]), *keep]


def test_samples_that_both_kept_are_shown_and_the_others_say_who_did_not(sides) -> None:
    base, candidate = sides
    _keep(base, "0007", "0011")
    _keep(candidate, "0007", worse=0.05)
    page = _report(base, candidate)
    (only,) = _json(page, "viewers")
    assert [pane["title"] for pane in only["panes"]] == ["original", "base", "candidate"]
    assert [pane.get("minus") for pane in only["panes"]] == [None, 0, 0]
    assert len(_json(page, "media")) == 3
    assert "not kept by the candidate; the command below keeps it" in page
    assert page.count("<pre>") == 1
    full = _report(base, candidate, budget=100)
    assert "The page holds no more pictures." in full
    assert _json(full, "media") == []
    _keep(candidate, "0011")
    folder = candidate / FOLDER
    next(folder.glob("0011-*.original.png")).write_bytes(next(folder.glob("0007-*.original.png")).read_bytes())
    next(folder.glob("0007-*.reconstruction.png")).write_bytes(b"GIF89a")
    page = _report(base, candidate)
    assert "the two sides kept different originals of this sample" in page
    assert "cannot be read" in page
    assert _json(page, "viewers") == []


def test_in_a_browser_the_worst_sample_is_open_with_its_differences_and_names_are_text(
    chromium, sides, tmp_path
) -> None:
    base, candidate = sides
    for place, worse in ((base, 0.0), (candidate, 0.05)):
        _keep(place, "0007", "0011", worse=worse)
    page_text = _report(base, candidate)
    assert "<script>alert" not in page_text
    path = tmp_path / "report.html"
    path.write_text(page_text, encoding="utf-8")
    context = chromium.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: heard.append(f"dialog {dialog.message}"))
    page.on("request", lambda r: heard.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    page.goto(path.as_uri())
    assert page.locator("h2").inner_text() == f"mine -> {EVIL} on small: worse"
    page.locator("canvas[data-shows='difference 8']").nth(1).wait_for()
    assert page.locator("canvas:visible").count() == 5
    page.locator("summary", has_text="0011").press("Enter")
    page.locator("canvas:visible").nth(9).wait_for()
    drawn = page.locator("canvas").nth(2).evaluate(
        "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    )  # fmt: skip
    a, b = (
        np.asarray(Image.open(next((base / FOLDER).glob(f"0007-*.{s}.png"))), int)
        for s in ("original", "reconstruction")
    )
    np.testing.assert_array_equal(np.array(drawn).reshape(12, 16, 4)[..., :3], np.minimum(255, abs(a - b) * 8))
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
    assert heard == []


def test_the_cli_writes_it_whatever_the_verdict(make, sides, tmp_path) -> None:
    base, candidate = sides
    other = make("other", {"psnr": PSNR}, protocol={"seed": 1})
    for index, (new, code) in enumerate(((candidate, 1), (base, 0), (other, 2))):
        path = tmp_path / "out" / f"{index}.html"
        done = CliRunner().invoke(app, ["compare", str(base), str(new), "--html", str(path)])
        assert done.exit_code == code
        assert "default-src 'none'" in path.read_text()
    assert "protocol.seed: 0 != 1" in path.read_text()
