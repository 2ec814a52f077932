"""Rates equal what one computes by hand from the emitted code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tokbench.errors import ContractError, UsageError
from tokbench.metrics.rate import Rate
from tokbench.spec import CodeKind, Modality, TokenizerSpec
from tokbench.types import Code, Sample, Stream


def sample(
    reference: Tensor,
    code: Code,
    modality: Modality,
    kind: CodeKind = "discrete",
    rate: int | None = None,
    fps: float | None = None,
) -> Sample:
    spec = TokenizerSpec(name="t", modality=modality, kind=kind)
    keys = tuple(map(str, range(reference.shape[0])))
    return Sample(keys, reference, reference, reference, code, spec, sample_rate=rate, fps=fps)


def of(each: Sample) -> dict[str, list[float | None]]:
    """Row columns with NaN as None, as the engine stores them."""
    return {k: [None if math.isnan(x) else x for x in v.tolist()] for k, v in Rate()(each).items()}


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)


def test_a_payload() -> None:
    code = Code(payload=(b"x" * 100, b"x" * 37), side_bits=5)
    out = of(sample(torch.zeros(2, 3, 10, 16), code, "image", "payload"))
    assert out["bits_payload"] == out["bits"] == [805, 301]
    assert out["bpp"] == [805 / 160, 301 / 160]
    assert out["compression_ratio"] == [24 * 160 / 805, 24 * 160 / 301]
    for name in ("tokens", "bits_nominal", "latent_values"):
        assert out[name] == [None, None], name
    assert not {"kbps", "tokens_per_second", "seconds"} & set(out)  # an image has no duration


def test_an_image_grid_is_charged_over_unpadded_pixels() -> None:
    code = Code(streams=(Stream("0", 16384, zeros(1, 2, 2)),))  # a 30 x 20 picture padded to 32 x 32, stride 16
    out = of(sample(torch.zeros(1, 3, 30, 20), code, "image"))
    assert out["tokens"] == [4]
    assert out["bits"] == out["bits_nominal"] == [56]
    assert out["bpp"] == [56 / 600]


def test_residual_streams_with_lengths() -> None:
    lengths = torch.tensor([75, 40])
    books = tuple(Stream(str(q), 1024, zeros(2, 75), lengths) for q in range(8))
    out = of(sample(torch.zeros(2, 1, 24_000), Code(streams=books, side_bits=32), "audio", rate=24_000))
    assert out["tokens"] == [600, 320]
    assert out["bits"] == [6032, 3232]
    assert out["kbps"] == [6.032, 3.232]
    assert out["tokens_per_second"] == [600, 320]
    assert out["compression_ratio"] == [24_000 * 16 / 6032, 24_000 * 16 / 3232]
    assert not {"bpp", "pixels"} & set(out)


def test_fractional_bits_and_true_duration() -> None:
    code = Code(streams=(Stream("fsq", 1000, zeros(1, 3, 25)),))
    out = of(sample(torch.zeros(1, 2, 30_000), code, "audio", rate=44_100))
    assert out["bits"] == [75 * math.log2(1000)]
    assert out["seconds"] == [30_000 / 44_100]
    assert out["kbps"] == [75 * math.log2(1000) / (30_000 / 44_100) / 1000]
    assert out["compression_ratio"] == [2 * 30_000 * 16 / (75 * math.log2(1000))]


def test_multi_scale_streams() -> None:
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    code = Code(streams=tuple(Stream("var", 4096, zeros(1, k, k)) for k in sides))
    out = of(sample(torch.zeros(1, 3, 256, 256), code, "image"))
    assert out["tokens"] == [680]
    assert out["bits"] == [8160]


def test_implicit_codebooks_have_exact_bits() -> None:
    code = Code(streams=(Stream("bsq", 2**36, zeros(1, 16, 16)),))
    assert of(sample(torch.zeros(1, 3, 256, 256), code, "image"))["bpp"] == [256 * 36 / 65536]


def test_video_with_and_without_a_clock() -> None:
    reference = torch.zeros(1, 3, 17, 64, 64)
    code = Code(streams=(Stream("0", 65536, zeros(1, 5, 8, 8)),))
    out = of(sample(reference, code, "video", fps=25.0))
    bits = 320 * 16
    assert out["bpp"] == [bits / (17 * 64 * 64)]
    assert out["kbps"] == [bits / (17 / 25) / 1000]
    assert out["tokens_per_second"] == [320 / (17 / 25)]
    assert out["compression_ratio"] == [17 * 64 * 64 * 24 / bits]
    untimed = of(sample(reference, code, "video"))
    assert untimed["kbps"] == untimed["tokens_per_second"] == [None]
    assert untimed["bpp"] == out["bpp"]


def test_continuous_latents_have_a_size_and_no_rate() -> None:
    out = of(sample(torch.zeros(2, 3, 64, 64), Code(latents=torch.zeros(2, 4, 8, 8)), "image", "continuous"))
    assert out["latent_values"] == [256, 256]
    for name in ("tokens", "bits", "bits_nominal", "bits_payload", "bpp", "compression_ratio"):
        assert out[name] == [None, None]
    assert "no agreed rate" in Rate.undefined["bits"]
    assert Rate().summarise({**out, "seconds": [None, None]}, ("a", "b")) == {"bpp_pooled": None}


def test_an_identity_row_has_no_rate() -> None:
    out = of(sample(torch.zeros(1, 3, 8, 8), Code(), "image", "none"))
    assert out["bits"] == out["bpp"] == out["compression_ratio"] == [None]


def test_an_empty_code_has_no_ratio() -> None:
    out = of(sample(torch.zeros(1, 3, 8, 8), Code(payload=(b"",)), "image", "payload"))
    assert out["bits"] == out["bpp"] == [0]
    assert out["compression_ratio"] == [None]


def test_the_nominal_rate_is_the_headline_where_a_payload_exists_too() -> None:
    code = Code(streams=(Stream("0", 256, zeros(1, 10)),), payload=(b"xyz",))
    out = of(sample(torch.zeros(1, 3, 8, 8), code, "image"))
    assert (out["bits_nominal"], out["bits_payload"], out["bits"]) == ([80], [24], [80])


def test_pooled_rates_weigh_by_size_and_skip_failed_rows() -> None:
    metric = Rate()
    rows = {"bits": [100.0, 100.0, None], "pixels": [100.0, 300.0, 50.0], "seconds": [None, None, None]}
    assert metric.summarise(rows, ()) == {"bpp_pooled": 0.5}
    rows = {"bits": [1000.0, 5000.0], "pixels": [None, None], "seconds": [1.0, 2.0]}
    assert metric.summarise(rows, ()) == {"kbps_pooled": 2.0}


def test_any_batch_gives_the_same_bits() -> None:
    lengths = torch.tensor([9, 1, 5, 0, 7, 3, 2, 8])
    books = [zeros(8, 9), zeros(8, 9)]

    def part(rows: slice) -> Sample:
        streams = tuple(Stream(str(q), 1000 + q, book[rows], lengths[rows]) for q, book in enumerate(books))
        return sample(torch.zeros(8, 1, 700)[rows], Code(streams=streams), "audio", rate=16_000)

    whole = Rate()(part(slice(0, 8)))
    for size in (1, 3):
        parts = [Rate()(part(slice(i, i + size))) for i in range(0, 8, size)]
        for name, column in whole.items():
            assert column.dtype == torch.float64
            torch.testing.assert_close(torch.cat([p[name] for p in parts]), column, rtol=0, atol=0, equal_nan=True)
    assert whole["tokens"].tolist() == [2.0 * n for n in lengths.tolist()]


def test_columns_are_the_declared_ones() -> None:
    metric = Rate()
    out = metric(sample(torch.zeros(2, 3, 4, 8, 8), Code(payload=(b"a", b"b")), "video", "payload", fps=8.0))
    declared = metric.spec.columns
    assert set(out) == {c.name for c in declared if c.where == "row"}
    summary = metric.summarise({k: v.tolist() for k, v in out.items()}, ())
    assert set(summary) == {c.name for c in declared if c.where == "corpus"}
    assert set(Rate.undefined) == {c.name for c in declared} - {"pixels"}


def test_bad_code_is_named() -> None:
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ContractError, match="1 payloads for a batch of 2"):
        Rate()(sample(x, Code(payload=(b"a",)), "image", "payload"))
    with pytest.raises(ContractError, match="latents"):
        Rate()(sample(x, Code(latents=torch.zeros(1, 4)), "image", "continuous"))
    with pytest.raises(ContractError, match="codebook '0'"):
        Rate()(sample(x, Code(streams=(Stream("0", 4, zeros(3, 4)),)), "image"))
    with pytest.raises(UsageError, match="sample rate"):
        Rate()(sample(torch.zeros(1, 1, 9), Code(payload=(b"a",)), "audio", "payload"))
