"""What boards and reports cost at scale: a board of many results, results of many rows, and a browser on the page.

    python benchmarks/pages.py                  # 100,000 rows; about two minutes
    python benchmarks/pages.py --rows 10000     # a quick look

Prints seconds and bytes; the browser part needs Debian's chromium and playwright, and is left out without them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tokbench.compare import compare, find
from tokbench.entries import Entry, entries
from tokbench.leaderboard import ranked_boards
from tokbench.page import to_html
from tokbench.renderings import to_csv, to_markdown
from tokbench.report import to_html as report_html
from tokbench.rows import Row, statistic, write_rows

T = TypeVar("T")


def timed(what: str, call: Callable[[], T]) -> T:
    start, cpu = time.perf_counter(), time.process_time()
    out = call()
    size = f", {len(out) / 1e6:.1f} MB" if isinstance(out, str) else ""
    wall = time.perf_counter() - start
    print(f"{what}: {wall:.1f} s ({time.process_time() - cpu:.1f} s of CPU){size}", flush=True)
    return out


def result(name: str, key: str, values: Sequence[float]) -> dict[str, Any]:
    """Return a complete result with five columns over the given rows."""
    cells = {}
    for index, column in enumerate(("bpp", "psnr", "ssim", "ms_ssim", "mae")):
        found = statistic([value + index for value in values])
        cells[column] = {
            "metric": "rate" if column == "bpp" else column, "version": 1, "unit": "", "decimals": 3, "level": True,
            "higher_is_better": column not in {"bpp", "mae"}, "value": found.value, "stderr": found.stderr,
            "ci95": [found.low, found.high], "n": found.n, "n_undefined": 0, "n_failed": 0, "where": "row", "status": "ok",
            "reason": "", "atol": 1e-6,
        }  # fmt: skip
    metrics = {cell["metric"]: {"version": 1} for cell in cells.values()}
    return {
        "schema_version": 1, "status": "complete", "reason": "", "key": key, "suite": "bench", "modality": "image",
        "board": list(cells), "dataset": {"uri": "folder:x", "manifest": "b" * 64},
        "protocol": {"hash": "a" * 64, "limit": None, "metrics": metrics},
        "tokenizer": {"name": name, "family": name, "kind": "discrete", "licence": "MIT", "identity": {}, "weights": ""},
        "samples": {"total": len(values), "files": len(values), "rows": len(values), "ok": len(values), "failed": 0},
        "metrics": cells,
        "timing": {"encode_seconds_per_sample": 0.1, "decode_seconds_per_sample": 0.1, "batch_size": 8, "shards": []},
        "provenance": {"device": {"name": "cpu"}, "shards": [], "contract": {"passed": True, "checks": []}},
    }  # fmt: skip


def many_results(count: int, folder: Path) -> None:
    """A board of `count` results, and a browser that opens, sorts and pages it."""
    one = result("x", "0" * 64, list(np.random.default_rng(0).normal(0.3, 0.1, 20)))
    found = []
    for index in range(count):
        cells = {name: {**cell, "value": cell["value"] + index / count} for name, cell in one["metrics"].items()}
        about = {**one["tokenizer"], "name": f"family{index % 500}?n={index}"}
        found.append(Entry({**one, "key": f"{index:064x}", "tokenizer": about, "metrics": cells}, folder / "none"))
    boards = timed(f"board of {count:,} results: group, order, rank", lambda: ranked_boards(found))
    html = timed("  HTML", lambda: to_html(boards))
    timed("  CSV", lambda: to_csv(boards))
    timed("  Markdown", lambda: to_markdown(boards))
    page = folder / "board.html"
    page.write_text(html, encoding="utf-8")
    browse(page)


def browse(path: Path) -> None:
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("  browser: not here")
        return
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        timed("  browser: open", lambda: page.goto(path.as_uri()))
        timed("  browser: sort", lambda: page.get_by_role("button", name="psnr").click())
        timed("  browser: filter", lambda: page.get_by_label("Name contains").fill("family7?"))
        print(f"  browser: {page.locator('section:visible .status').inner_text()}")
        browser.close()


def many_rows(count: int, folder: Path) -> None:
    """Results of `count` rows each: read, rank, compare, report."""
    rng = np.random.default_rng(1)
    base = rng.normal(30, 3, count)
    for index in range(4):
        values = base - 0.1 * index + rng.normal(0, 0.5, count)
        place = folder / "store" / f"t{index}" / "bench@aaaaaaaa" / "key"
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps(result(f"t{index}", f"{index:064x}", list(values))))
        columns = ("bpp", "psnr", "ssim", "ms_ssim", "mae")
        rows = [
            Row(f"{i:08d}", f"{i:08d}", values={name: value + k for k, name in enumerate(columns)})
            for i, value in enumerate(values.tolist())
        ]
        write_rows(place / "rows.parquet", rows)
    found = entries(folder / "store")
    timed(f"four results of {count:,} rows: boards with ranks, HTML", lambda: to_html(ranked_boards(found)))
    sides = [find(f"{folder / 'store'}:{name}") for name in ("t0", "t1")]
    verdict = timed("  compare two of them", lambda: compare(*sides))
    timed("  its report", lambda: report_html(verdict))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    count = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        many_results(count, Path(folder))
        many_rows(count, Path(folder))


if __name__ == "__main__":
    main()
