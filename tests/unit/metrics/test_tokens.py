"""Token statistics against brute force over the tokens themselves, and as a monoid."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from torch import Tensor

from tokbench.errors import ContractError, UsageError
from tokbench.metrics import tokens as tokens_module
from tokbench.metrics.codebook import CodebookUsage
from tokbench.metrics.tokens import TokenStatistics, dead_entries, dead_entries_of
from tokbench.session import Request, run
from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, Sample, State, Stream, merge_states, take_row

METRIC = TokenStatistics()
SHAPES: dict[Modality, tuple[int, ...]] = {"image": (3, 16, 24), "audio": (1, 8000)}


def sample(*streams: Stream, keys: list[str] | None = None, modality: Modality = "image", side_bits: int = 0) -> Sample:
    rows = streams[0].indices.shape[0]
    x = torch.zeros(rows, *SHAPES[modality])
    spec = TokenizerSpec(name="t", modality=modality, kind="discrete")
    names = tuple(keys or map(str, range(rows)))
    code = Code(streams=streams, side_bits=side_bits)
    rate = 16_000 if modality == "audio" else None
    return Sample(names, x, x, x, code, spec, sample_rate=rate, groups=names, annotations=({},) * rows)


def drawn(*shape: int, size: int, seed: int = 0) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)).pow(2) * size).long()


def of(*samples: Sample) -> dict[str, float | None]:
    state = METRIC.init()
    for each in samples:
        state = METRIC.update(state, each)
    return METRIC.compute(state)


def bits(counts: list[int]) -> float:
    return float(scipy_entropy(counts, base=2))


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == torch.int64 for k in a)


def test_pairs_positions_and_ranks_by_brute_force() -> None:
    x = drawn(6, 5, 7, size=12)
    out = of(sample(Stream("0", 12, x), side_bits=3))
    rows = x.reshape(-1, 7).tolist()
    pairs = Counter((a, b) for row in rows for a, b in pairwise(row))
    left = Counter(a for row in rows for a in row[:-1])
    everything = Counter(v for row in rows for v in row)
    n, joint, context = sum(pairs.values()), bits(list(pairs.values())), bits(list(left.values()))
    assert out["bigram_entropy"] == pytest.approx(joint, abs=1e-12)
    assert out["conditional_entropy"] == pytest.approx(joint - context, abs=1e-12)
    correction = (len(pairs) - len(left)) / (2 * n * math.log(2))
    assert out["conditional_entropy_mm"] == pytest.approx(joint - context + correction, abs=1e-12)
    plain = bits(list(everything.values()))
    assert out["bits_per_token"] == pytest.approx(plain, abs=1e-12)
    total = n * (joint - context) + 30 * plain  # 30 rows of tokens begin without a left neighbour
    assert out["bits_per_token_conditional"] == pytest.approx(total / 210, abs=1e-12)
    assert out["bpp_conditional"] == pytest.approx((total + 6 * 3) / (6 * 16 * 24), abs=1e-12)
    assert "kbps_conditional" not in out
    each = [bits(list(Counter(x[:, i, j].tolist()).values())) for i in range(5) for j in range(7)]
    assert out["position_entropy"] == pytest.approx(np.mean(each), abs=1e-12)
    assert (out["position_entropy/min"], out["position_entropy/max"]) == (min(each), max(each))
    counts = sorted(everything.values(), reverse=True)
    slope = np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)[0]
    assert out["zipf_exponent"] == pytest.approx(-slope, abs=1e-9)
    assert out["dead_codes"] == 12 - len(everything)
    assert out["usage_llamagen"] is None
    assert out["usage_at"] is None


def test_a_repeated_token_costs_nothing_given_its_neighbour() -> None:
    x = torch.arange(8)[:, None].repeat(1, 1, 9).reshape(8, 1, 9)[:, 0]
    rows = torch.arange(8).repeat(4)[:, None].expand(32, 9)
    out = of(sample(Stream("0", 8, rows)))
    assert x.shape == (8, 9)
    assert out["conditional_entropy"] == pytest.approx(0.0, abs=1e-12)
    assert out["bits_per_token"] == pytest.approx(3.0, abs=1e-12)
    assert out["bits_per_token_conditional"] == pytest.approx(3 / 9, abs=1e-12)
    assert [out[f"position_entropy/{place}"] for place in range(9)] == [3.0] * 9


def test_bits_per_token_is_the_entropy_coded_rate_of_the_codebook_metric() -> None:
    batch = sample(Stream("a", 9, drawn(5, 40, size=9)), Stream("b", 30, drawn(5, 20, size=30, seed=1)))
    codebook = CodebookUsage()
    theirs = codebook.compute(codebook.update(codebook.init(), batch))
    mine = of(batch)
    assert theirs["bpp_entropy"] is not None
    assert mine["bits_per_token"] == pytest.approx(theirs["bpp_entropy"] * 5 * 16 * 24 / 300, abs=1e-12)
    assert mine["bits_per_token/a"] == theirs["codebook_entropy/a"]
    assert mine["zipf_exponent"] == pytest.approx((mine["zipf_exponent/a"] + mine["zipf_exponent/b"]) / 2)  # type: ignore[operator]
    assert mine["dead_codes"] == mine["dead_codes/a"] + mine["dead_codes/b"]  # type: ignore[operator]


def test_the_usage_curve_is_the_mean_over_every_draw() -> None:
    counts = [5, 3, 1, 1, 0]
    book = tokens_module._Book("0", 5, np.array(counts[:4]), np.array([]), np.array([]))
    tokens = [k for k, c in enumerate(counts) for _ in range(c)]
    for draw in (1, 3, 6, 10):
        every = [len(set(chosen)) for chosen in combinations(tokens, draw)]
        assert book.expected_used(draw) == pytest.approx(np.mean(every), abs=1e-9)


def test_usage_after_65536_tokens_expected_and_as_llamagen_counts_it() -> None:
    rows = [drawn(1, 2048, size=5000, seed=k) for k in range(40)]
    keys = [f"{(7 * k) % 40:02d}" for k in range(40)]  # the engine's key order, not the order of arrival
    out = of(*(sample(Stream("0", 5000, x), keys=[key]) for x, key in zip(rows, keys, strict=True)))
    in_order = torch.cat([x.flatten() for _, x in sorted(zip(keys, rows, strict=True), key=lambda pair: pair[0])])
    assert out["usage_llamagen"] == in_order[-65_536:].unique().numel() / 5000
    assert out["usage_llamagen"] != torch.cat(rows).flatten()[-65_536:].unique().numel() / 5000
    permuted = [
        in_order[torch.randperm(len(in_order), generator=torch.Generator().manual_seed(k))][:65_536].unique().numel()
        for k in range(5)
    ]
    assert out["usage_at"] == pytest.approx(np.mean(permuted) / 5000, abs=2e-3)
    assert out["usage_at/65536"] == out["usage_at"]
    curve = [out[f"usage_at/{2**k}"] for k in range(10, 17)]
    assert curve == sorted(curve)  # type: ignore[type-var]
    assert "usage_at/131072" not in out  # 81,920 tokens were counted


def test_last_tokens_may_begin_inside_a_row_and_the_state_stays_small() -> None:
    rows, state = [drawn(3, 999, size=700, seed=k) for k in range(60)], METRIC.init()
    for k, x in enumerate(rows):
        state = METRIC.update(state, sample(Stream("0", 700, x), keys=[f"{3 * k + j:04d}" for j in range(3)]))
    kept = sum(value.numel() for key, value in state.items() if key.startswith("tail/"))
    assert 65_536 <= kept < 65_536 + 999
    everything = torch.cat([x.flatten() for x in rows])
    assert METRIC.compute(state)["usage_llamagen"] == everything[-65_536:].unique().numel() / 700


def test_dead_entries_are_listed() -> None:
    x = torch.tensor([[0, 2, 2, 5]])
    state = METRIC.update(METRIC.init(), sample(Stream("0", 7, x), Stream("b", 6, x)))
    dead = dead_entries(state)
    assert {name: entries.tolist() for name, entries in dead.items()} == {"0": [1, 3, 4, 6], "b": [1, 3, 4]}


def test_dead_entries_of_a_run_are_those_no_shard_uses(tmp_path: Path) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text(
        'name = "mine"\nmodality = "image"\ndataset = "sample:image"\nmetrics = ["tokens", "rate"]\n'
        '[prepare]\npreset = "adm"\nsize = 32\n'
    )
    (result,) = run(
        Request(suites=(str(suite),), tokenizers=("tokbench-tiny-image",), output=tmp_path / "out", device="cpu",
                shard_size=5, decode_workers=0)
    ).results  # fmt: skip
    (place,) = (path.parent for path in (tmp_path / "out").rglob("result.json"))
    dead = dead_entries_of(place)
    assert len(list(place.glob("shards/*"))) > 1
    assert sum(len(entries) for entries in dead.values()) == result["metrics"]["dead_codes"]["value"] > 0
    with pytest.raises(UsageError, match="-m tokens"):
        dead_entries_of(tmp_path)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_any_split_order_and_batch_gives_the_same_numbers(modality: Modality) -> None:
    a, b = drawn(12, 4, 300, size=16), drawn(12, 50, size=200, seed=1)
    lengths = torch.randint(1, 51, (12,), generator=torch.Generator().manual_seed(2))
    keys = [f"{(5 * k) % 12:02d}" for k in range(12)]
    whole = sample(
        Stream("a", 16, a), Stream("b", 200, b, lengths), keys=keys, modality=modality, side_bits=2
    )  # fmt: skip
    expected = METRIC.update(METRIC.init(), whole)
    rows = [take_row(whole, k) for k in range(12)]
    for order in ([*range(12)], [*range(11, -1, -1)], [3, 7, 1, 0, 2, 11, 10, 9, 4, 5, 6, 8]):
        states = [METRIC.update(METRIC.init(), rows[k]) for k in order]
        left = METRIC.init()
        for state in states:
            left = merge_states(left, state)
        assert same(left, expected)
        running = METRIC.init()
        for k in order:
            before = {key: value.clone() for key, value in running.items()}
            after = METRIC.update(running, rows[k])
            assert same(running, before)  # update leaves the old state as it was
            running = after
        assert METRIC.compute(running) == METRIC.compute(expected)
    x, y, z = (METRIC.update(METRIC.init(), rows[k]) for k in (0, 5, 9))
    assert same(merge_states(merge_states(x, y), z), merge_states(x, merge_states(y, z)))
    assert same(merge_states(x, METRIC.init()), x)


def test_shards_whose_tails_were_cut_give_the_same_last_tokens() -> None:
    rows = [sample(Stream("0", 300, drawn(1, 30_000, size=300, seed=k)), keys=[f"{k:02d}"]) for k in range(9)]
    whole, shards = METRIC.init(), []
    for row in rows:
        whole = METRIC.update(whole, row)
    for start in (0, 3, 6):
        state = METRIC.init()
        for row in rows[start : start + 3]:
            state = METRIC.update(state, row)
        shards.append(state)
    merged = merge_states(merge_states(shards[2], shards[0]), shards[1])
    assert METRIC.compute(merged) == METRIC.compute(whole)
    assert same(METRIC.bound(merged), whole)


def test_grids_that_differ_have_no_positions_in_any_order() -> None:
    small = sample(Stream("0", 9, drawn(2, 3, 3, size=9)))
    large = sample(Stream("0", 9, drawn(2, 4, 4, size=9)), keys=["2", "3"])
    for pair in ((small, large), (large, small)):
        assert of(*pair)["position_entropy"] is None
    state = METRIC.init()
    for length in range(2, 30):  # clips of every length leave no trace each
        state = METRIC.update(state, sample(Stream("0", 9, drawn(1, length, size=9)), keys=[str(length)]))
    assert sum(key.startswith(("grid/", "position/")) for key in state) == 2
    merged = merge_states(METRIC.update(METRIC.init(), small), METRIC.update(METRIC.init(), large))
    assert METRIC.compute(merged)["position_entropy"] is None
    assert of(small)["position_entropy"] is not None
    ragged = sample(Stream("0", 9, drawn(2, 8, size=9), torch.tensor([8, 5])))
    assert of(ragged)["position_entropy"] is None


def test_ragged_rows_count_valid_tokens_and_pairs_only() -> None:
    x = drawn(2, 8, size=5)
    ragged = of(sample(Stream("0", 5, x, torch.tensor([8, 3]))))
    apart = of(sample(Stream("0", 5, x[:1])), sample(Stream("0", 5, x[1:, :3]), keys=["1"]))
    for name in ("bigram_entropy", "conditional_entropy", "bits_per_token", "zipf_exponent", "dead_codes"):
        assert ragged[name] == apart[name], name


def test_pairs_of_a_large_codebook_are_hashed_and_said_to_be_none_when_crowded() -> None:
    few = drawn(4, 2000, size=60_000)
    out = of(sample(Stream("0", 60_000, few)))
    pairs = Counter((a, b) for row in few.tolist() for a, b in pairwise(row))
    exact = bits(list(pairs.values()))
    assert out["bigram_entropy"] is not None
    assert exact - 0.01 < out["bigram_entropy"] <= exact + 1e-9
    many = torch.randint(0, 60_000, (1, 700_000), generator=torch.Generator().manual_seed(0))
    crowded = of(sample(Stream("0", 60_000, many)))
    for name in ("bigram_entropy", "conditional_entropy", "bits_per_token_conditional", "bpp_conditional"):
        assert crowded[name] is None
        assert "hashed" in METRIC.undefined[name]
    assert crowded["bits_per_token"] is not None


def test_the_state_stays_within_its_bounds() -> None:
    streams = [Stream(str(k), 4096, drawn(1, 1024, size=4096, seed=k)) for k in range(8)]
    state = METRIC.update(METRIC.init(), sample(*streams))
    held = {
        prefix: sum(v.numel() for k, v in state.items() if k.startswith(prefix)) for prefix in ("pairs", "position")
    }
    assert held == {"pairs": 2**23, "position": 0}  # 8 x 1024 x 4096 places times entries are over 2^22


def test_codebooks_too_large_to_count_and_no_tokens_are_undefined() -> None:
    huge = of(sample(Stream("0", 2**36, drawn(1, 9, size=2**30)), Stream("1", 4, drawn(1, 9, size=4))))
    empty = METRIC.compute(METRIC.init())
    for out in (huge, empty):
        assert out["usage_at"] is out["bits_per_token"] is out["zipf_exponent"] is out["bigram_entropy"] is None
    assert set(empty) >= {column.name for column in METRIC.spec.columns}
    assert set(METRIC.undefined) == {column.name for column in METRIC.spec.columns}
    with pytest.raises(UsageError, match="no stream"):
        METRIC.update(
            {}, Sample(("0",), *[torch.zeros(1, 3, 8, 8)] * 3, Code(), TokenizerSpec("t", "image", "discrete"))
        )
    one = METRIC.update({}, sample(Stream("0", 4, drawn(1, 9, size=4))))
    with pytest.raises(ContractError, match="size"):
        METRIC.update(one, sample(Stream("0", 5, drawn(1, 9, size=4)), keys=["1"]))
    with pytest.raises(ContractError, match="two rows"):
        METRIC.update(one, sample(Stream("0", 4, drawn(1, 9, size=4))))
