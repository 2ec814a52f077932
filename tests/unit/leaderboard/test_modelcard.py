"""The model card block is YAML, holds the measured numbers, and no name breaks out of it."""

from __future__ import annotations

import pytest

from tokbench.errors import UsageError
from tokbench.modelcard import model_card


def test_the_block_is_yaml_with_the_numbers(entry) -> None:
    yaml = pytest.importorskip("yaml")
    evil = 'x"\n---\nlicense: stolen # |'
    found = [entry("mine", [30.0, 31.0, 32.0]), entry(evil, [1.0, 2.0]), entry("cut", [1.0, 2.0], limit=2)]
    front, _, table = model_card("mine", "mit", found).removeprefix("---\n").partition("\n---\n")
    about = yaml.safe_load(front)
    (result,) = about["model-index"][0]["results"]
    assert about["license"] == "mit"
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"bpp": 0.3, "psnr": 31.0}
    assert "| small | aaaaaaaa | psnr | 31.00 |" in table
    hostile = yaml.safe_load(model_card(evil, "mit", found).removeprefix("---\n").partition("\n---\n\n")[0])
    assert hostile["license"] == "mit"
    assert hostile["model-index"][0]["name"] == evil
    with pytest.raises(UsageError, match="no complete result of cut"):
        model_card("cut", "mit", found)
