"""Pages made from data are as the data is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_tokenizers_is_current() -> None:
    spec = importlib.util.spec_from_file_location("tokenizers_page", ROOT / "docs" / "tokenizers.py")
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    text = page.table()
    assert text.count("| golden |") >= 60
    assert (ROOT / "docs" / "tokenizers.md").read_text() == text, "run python docs/tokenizers.py"
