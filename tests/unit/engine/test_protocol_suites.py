"""The preset suites load, name metrics that exist, and are all explained in docs/protocols.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokbench.metrics.frechet import PRESETS
from tokbench.plan import check_columns
from tokbench.registry import build_metric
from tokbench.spec import ImagePrepare
from tokbench.suite import load_suites, suite_names

SUITES = [name for name in suite_names() if name.startswith("imagenet-")]
DOCS = (Path(__file__).parents[3] / "docs" / "protocols.md").read_text(encoding="utf-8")


FIXED = {
    "adm": (ImagePrepare("adm", 256), "round", {"isc_10", "ssim_range2", "usage_llamagen"}),
    "torch-fidelity": (ImagePrepare("adm", 256), "round", {"isc_10", "kid"}),
    "titok": (ImagePrepare("pil-bicubic", 256), "round", {"isc"}),
    "seed-voken": (ImagePrepare("pil-bilinear", 256), "none", {"psnr_both_truncated", "ssim_both_truncated"}),
    "bsq": (ImagePrepare("pil-lanczos", 256), "none", {"ms_ssim", "lpips_alex"}),
    "pytorch-fid": (ImagePrepare("pil-bilinear", 256), "round", {"ssim_signed", "lpips_unclamped_vgg"}),
    "dc-ae": (ImagePrepare("adm", 512), "round", {"ssim_reflect", "lpips_alex"}),
    "clean": (ImagePrepare("adm", 256), "round", {"ssim_y"}),
    "torchmetrics": (ImagePrepare("lanczos-cover", 256), "truncate", {"lpips_unmapped_alex"}),
}
"""Preset -> crop, rounding, and what its projects publish beside rFID and plain PSNR."""


def test_every_preset_has_a_suite() -> None:
    named = {metric for suite in load_suites(SUITES) for metric in suite.metrics if metric.startswith("rfid")}
    assert named == {f"rfid?preset={preset}" for preset in PRESETS}


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_stands(name: str) -> None:
    (suite,) = load_suites([name])
    assert suite.name == name
    assert suite.expected_samples == 50_000
    preset = name.split("-", 2)[2]
    assert f"rfid?preset={preset}" in suite.metrics
    specs = [build_metric(metric).spec for metric in suite.metrics]
    check_columns(specs)
    prepare, rounding, published = FIXED[preset]
    assert (suite.prepare, suite.rounding) == (prepare, rounding)
    assert published <= set(suite.board)
    columns = {column.name for spec in specs for column in spec.columns}
    assert set(suite.board) <= columns | {"bpp"}
    assert f"`{name}`" in DOCS
    (rfid,) = (spec for spec in specs if spec.name.startswith("rfid"))
    assert f"`{rfid.columns[0].name}`" in DOCS


def test_the_documentation_states_what_presets_fix() -> None:
    fronts = {"tf1": "TensorFlow 1 bilinear", "bilinear": "`F.interpolate` bilinear", "clean": "PIL BICUBIC in float32",
              "antialias": "`F.interpolate` bilinear, antialias"}  # fmt: skip
    variants = {"round": "round", "truncate": "**truncate**", "clamp": "**not rounded**", "raw": "**not even clamped**"}
    for name, preset in PRESETS.items():
        (row,) = (line for line in DOCS.splitlines() if line.startswith(f"| `{name}` ") and line.count("|") == 7)
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[4] == fronts[preset.front]
        assert variants[preset.variant] in cells[3]
