"""Codebook numbers against brute force over the plain list of tokens, in NumPy and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tokbench.metrics.codebook import CodebookUsage
from tokbench.spec import TokenizerSpec
from tokbench.types import Code, Sample, Stream


@pytest.mark.parametrize(("size", "tokens"), [(7, 1), (1024, 400), (4096, 20_000), (65_536, 16_000), (262_144, 5000)])
def test_numbers_are_brute_force(size: int, tokens: int) -> None:
    from scipy.stats import entropy

    rng = np.random.RandomState(size)
    books = {str(q): np.minimum((rng.rand(tokens) ** (q + 1) * size).astype(np.int64), size - 1) for q in range(3)}
    metric = CodebookUsage()
    state = metric.init()
    for start in range(0, tokens, 3001):
        rows = {name: torch.from_numpy(ids[start : start + 3001])[:, None] for name, ids in books.items()}
        streams = tuple(Stream(name, size, ids) for name, ids in rows.items())
        x = torch.zeros(rows["0"].shape[0], 3, 2, 5)
        spec = TokenizerSpec(name="t", modality="image", kind="discrete")
        state = metric.update(state, Sample(("k",) * x.shape[0], x, x, x, Code(streams=streams), spec))
    out = metric.compute(state)

    counts = {name: np.unique(ids, return_counts=True)[1] for name, ids in books.items()}
    h = {name: float(entropy(c, base=2)) for name, c in counts.items()}
    mm = {name: h[name] + (len(c) - 1) / (2 * tokens * math.log(2)) for name, c in counts.items()}
    assert out["codebook_tokens"] == 3 * tokens
    assert out["codebook_usage"] == sum(len(set(ids.tolist())) for ids in books.values()) / (3 * size)
    assert out["codebook_entropy"] == pytest.approx(np.mean(list(h.values())), abs=1e-10)
    assert out["codebook_entropy_mm"] == pytest.approx(np.mean(list(mm.values())), abs=1e-10)
    assert out["codebook_perplexity"] == pytest.approx(np.mean([2**v for v in h.values()]), rel=1e-10)
    assert out["bpp_entropy"] == pytest.approx(sum(tokens * v for v in h.values()) / (10 * tokens), abs=1e-10)
    for name in books:
        assert out[f"codebook_usage/{name}"] == len(counts[name]) / size
        assert out[f"codebook_entropy/{name}"] == pytest.approx(h[name], abs=1e-10)


def test_bit_entropy_is_brute_force() -> None:
    rng = np.random.RandomState(0)
    bits = rng.rand(500, 40) < np.linspace(0.05, 0.95, 40)
    ids = (bits.astype(np.int64) << np.arange(40)).sum(axis=1)
    x = torch.zeros(1, 3, 4, 4)
    code = Code(streams=(Stream("bsq", 2**40, torch.from_numpy(ids)[None]),))
    sample = Sample(("k",), x, x, x, code, TokenizerSpec(name="t", modality="image", kind="discrete"))
    metric = CodebookUsage()
    out = metric.compute(metric.update(metric.init(), sample))
    p = bits.mean(axis=0)
    h = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert out["bit_entropy"] == pytest.approx(h.mean(), abs=1e-12)
    assert out["bpp_entropy"] == pytest.approx(500 * h.sum() / 16, rel=1e-12)
