"""Codebook counts: exact, mergeable, and honest where they cannot be had."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tokbench.errors import ContractError, UsageError
from tokbench.metrics.codebook import CodebookUsage
from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, Sample, State, Stream, merge_states

METRIC = CodebookUsage()
SHAPES: dict[Modality, tuple[int, ...]] = {"image": (3, 16, 24), "video": (3, 5, 16, 24), "audio": (1, 8000)}


def sample(
    *streams: Stream,
    modality: Modality = "image",
    rows: int | None = None,
    rate: int | None = 16_000,
    fps: float | None = None,
    side_bits: int = 0,
) -> Sample:
    rows = streams[0].indices.shape[0] if rows is None else rows
    x = torch.zeros(rows, *SHAPES[modality])
    spec = TokenizerSpec(name="t", modality=modality, kind="discrete")
    code = Code(streams=streams, side_bits=side_bits)
    rate = rate if modality == "audio" else None
    return Sample(tuple(map(str, range(rows))), x, x, x, code, spec, sample_rate=rate, fps=fps)


def indices(rows: int, *grid: int, size: int, seed: int = 0) -> Tensor:
    drawn = torch.rand(rows, *grid, generator=torch.Generator().manual_seed(seed)).pow(3) * size
    return drawn.long().clamp(max=size - 1)


def of(*samples: Sample) -> dict[str, float | None]:
    state = METRIC.init()
    for each in samples:
        state = METRIC.update(state, each)
    return dict(METRIC.compute(state))


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_a_hand_counted_codebook() -> None:
    out = of(sample(Stream("0", 8, torch.tensor([[0, 0, 0, 0, 1, 1, 2, 3]]))))
    assert out["codebook_usage"] == 0.5
    assert out["codebook_entropy"] == 1.75
    assert out["codebook_perplexity"] == 2**1.75
    assert out["codebook_entropy_mm"] == pytest.approx(1.75 + 3 / (16 * math.log(2)), abs=1e-12)
    assert out["codebook_tokens"] == 8
    assert out["bpp_entropy"] == 14 / (16 * 24)
    assert "kbps_entropy" not in out  # an image has no duration
    assert out["bit_entropy"] is None
    assert not any("/" in name for name in out)  # one codebook: nothing to break down


def test_a_collapsed_codebook_costs_nothing() -> None:
    out = of(sample(Stream("0", 1024, torch.full((2, 4, 4), 7))))
    assert (out["codebook_entropy"], out["codebook_perplexity"], out["bpp_entropy"]) == (0.0, 1.0, 0.0)
    assert math.copysign(1, out["codebook_entropy"] or 0.0) == 1
    assert out["codebook_usage"] == 1 / 1024


def test_several_codebooks_are_pooled_for_usage_and_averaged_for_the_rest() -> None:
    a, b = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0, 0, 1, 1]])
    out = of(sample(Stream("a", 4, a), Stream("b", 12, b)))
    assert out["codebook_usage"] == 6 / 16
    assert out["codebook_entropy"] == 1.5
    assert out["codebook_perplexity"] == 3.0
    assert (out["codebook_usage/a"], out["codebook_usage/b"]) == (1.0, 2 / 12)
    assert (out["codebook_entropy/a"], out["codebook_entropy/b"]) == (2.0, 1.0)
    assert (out["codebook_perplexity/a"], out["codebook_perplexity/b"]) == (4.0, 2.0)
    assert out["codebook_entropy_mm/b"] == pytest.approx(1 + 1 / (8 * math.log(2)))
    assert out["bpp_entropy"] == (4 * 2 + 4 * 1) / (16 * 24)


def test_multi_scale_streams_of_one_table_are_one_codebook() -> None:
    scales = [Stream("vq", 64, indices(2, k, k, size=64, seed=k)) for k in (1, 2, 4)]
    flat = torch.cat([s.indices.reshape(2, -1) for s in scales], dim=1)
    assert of(sample(*scales)) == of(sample(Stream("vq", 64, flat)))


def test_tokens_past_the_length_are_not_counted() -> None:
    ragged = torch.tensor([[0, 1, 9, 9], [2, 3, 4, 9]])
    out = of(sample(Stream("0", 10, ragged, torch.tensor([2, 3])), modality="audio"))
    assert out["codebook_tokens"] == 5
    assert out["codebook_usage"] == 0.5
    grid = torch.stack([ragged, ragged], dim=1)  # (B, 2, L): lengths cut the last axis of every row of the grid
    assert of(sample(Stream("0", 10, grid, torch.tensor([2, 3])), modality="audio"))["codebook_tokens"] == 10


def test_padding_beyond_the_length_may_hold_anything() -> None:
    ragged = torch.tensor([[0, 1, -1, 99]])
    assert of(sample(Stream("0", 4, ragged, torch.tensor([2]))))["codebook_tokens"] == 2


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_order_batch_and_split_do_not_change_a_bit(modality: Modality) -> None:
    tokens = indices(9, 2, 7, size=300)
    lengths = torch.tensor([7, 3, 0, 5, 7, 1, 2, 6, 4])

    def part(rows: list[int]) -> Sample:
        streams = (Stream("0", 300, tokens[rows], lengths[rows]), Stream("1", 300, tokens[rows].flip(2)))
        return sample(*streams, modality=modality, fps=12.5 if modality == "video" else None, side_bits=3)

    whole = METRIC.update(METRIC.init(), part(list(range(9))))
    for cuts in ([0, 1, 2, 9], [0, 3, 6, 9], [0, 8, 9]):
        states = [METRIC.update(METRIC.init(), part(list(range(a, b)))) for a, b in pairwise(cuts)]
        merged = METRIC.init()
        for state in reversed(states):
            merged = merge_states(merged, state)
        assert same(merged, whole)
        assert METRIC.compute(merged) == METRIC.compute(whole)
    shuffled = METRIC.update(METRIC.init(), part([4, 8, 0, 2, 6, 1, 3, 7, 5]))
    assert same(shuffled, whole)


def test_states_form_a_monoid() -> None:
    a, b, c = (
        METRIC.update(METRIC.init(), sample(Stream(name, 16, indices(2, 6, size=16, seed=seed))))
        for seed, name in ((1, "x"), (2, "x"), (3, "y"))
    )
    assert same(merge_states(METRIC.init(), a), a)
    assert same(merge_states(a, METRIC.init()), a)
    assert same(merge_states(merge_states(a, b), c), merge_states(a, merge_states(b, c)))
    assert same(merge_states(a, b), merge_states(b, a))
    assert all(value.dtype == torch.int64 for value in a.values())


def test_update_leaves_its_state_alone() -> None:
    first = METRIC.update(METRIC.init(), sample(Stream("0", 16, indices(2, 6, size=16))))
    before = {key: value.clone() for key, value in first.items()}
    METRIC.update(first, sample(Stream("0", 16, indices(2, 6, size=16, seed=5))))
    assert same(first, before)


def test_rates_by_modality() -> None:
    tokens = torch.tensor([[0, 1, 2, 3]] * 2)  # 2 bits a token, 8 tokens
    video = of(sample(Stream("0", 4, tokens), modality="video", fps=10.0))
    assert video["bpp_entropy"] == 16 / (2 * 5 * 16 * 24)
    assert video["kbps_entropy"] == 16 / 1.0 / 1000
    assert of(sample(Stream("0", 4, tokens), modality="video"))["kbps_entropy"] is None
    audio = of(sample(Stream("0", 4, tokens), modality="audio", side_bits=8))
    assert "bpp_entropy" not in audio
    assert audio["kbps_entropy"] == (16 + 2 * 8) / 1.0 / 1000
    mixed = of(*(sample(Stream("0", 4, tokens), modality="audio", rate=rate) for rate in (16_000, 8_000)))
    assert mixed["kbps_entropy"] == 32 / 3.0 / 1000
    untimed = of(*(sample(Stream("0", 4, tokens), modality="video", fps=fps) for fps in (10.0, None)))
    assert untimed["kbps_entropy"] is None  # part of the set has no clock: no rate rather than a wrong one


def test_a_codebook_of_2_to_the_18_is_counted_entry_by_entry() -> None:
    tokens = torch.tensor([[0, 2**18 - 1, 5, 5]])
    out = of(sample(Stream("0", 2**18, tokens)))
    assert out["codebook_usage"] == 3 / 2**18
    assert out["codebook_entropy"] == 1.5


def test_an_implicit_codebook_is_counted_by_bit() -> None:
    tokens = torch.tensor([[0, 2**36 - 1, 1, 2**36 - 2]])  # every bit is 1 in two of four
    state = METRIC.update(METRIC.init(), sample(Stream("0", 2**36, tokens)))
    assert max(value.numel() for value in state.values()) == 36
    out = METRIC.compute(state)
    assert out["bit_entropy"] == 1.0
    assert out["codebook_tokens"] == 4
    assert out["bpp_entropy"] == 4 * 36 / (16 * 24)
    for name in ("codebook_usage", "codebook_perplexity", "codebook_entropy", "codebook_entropy_mm"):
        assert out[name] is None
        assert "implicit" in CodebookUsage.undefined[name]
    lower = of(sample(Stream("0", 2**36, torch.tensor([[0, 1, 0, 0]]))))  # only bit 0 moves: H(1/4)
    h = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert lower["bpp_entropy"] == pytest.approx(4 * h / (16 * 24), rel=1e-12)
    assert lower["bit_entropy"] == pytest.approx(h / 36, rel=1e-12)


def test_a_huge_codebook_without_bits_has_no_rate() -> None:
    out = of(sample(Stream("0", 5**12, torch.tensor([[0, 5**12 - 1]]))))
    assert out["codebook_tokens"] == 2
    assert out["bpp_entropy"] is None
    assert out["bit_entropy"] is None


def test_nothing_counted_is_none_and_not_zero() -> None:
    empty = METRIC.compute(METRIC.init())
    assert empty.pop("codebook_tokens") == 0
    assert set(empty.values()) == {None}
    silent = of(sample(Stream("0", 4, torch.zeros(1, 3, dtype=torch.long), torch.tensor([0])), modality="audio"))
    assert silent["codebook_entropy"] is None
    assert silent["kbps_entropy"] is None


def test_codebooks_are_listed_in_numeric_order() -> None:
    out = of(sample(*(Stream(str(i), 4, torch.zeros(1, 2, dtype=torch.long)) for i in (10, 2, 1))))
    assert [name for name in out if name.startswith("codebook_usage/")] == [f"codebook_usage/{i}" for i in (1, 2, 10)]


def test_columns_are_the_declared_ones() -> None:
    declared = {c.name for c in METRIC.spec.columns}
    assert set(of(sample(Stream("0", 4, torch.zeros(1, 2, dtype=torch.long)), modality="video"))) == declared
    assert all(c.where == "corpus" for c in METRIC.spec.columns)
    assert set(CodebookUsage.undefined) == declared - {"codebook_tokens"}


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (Stream("cb", 4, torch.tensor([[0, 4]])), "emitted index 4"),
        (Stream("cb", 4, torch.tensor([[-1, 0]])), "emitted index -1"),
        (Stream("cb", 4, torch.tensor([[0.0, 1.0]])), "must be integers"),
        (Stream("cb", 4, torch.tensor([[0], [1]])), "for a batch of 1 rows"),
        (Stream("cb", 0, torch.tensor([[0]])), "at least 1"),
        (Stream("cb", 4, torch.tensor([[0, 1]]), torch.tensor([3])), "lengths"),
        (Stream("cb", 4, torch.tensor([[0, 1]]), torch.tensor([-1])), "lengths"),
        (Stream("cb", 4, torch.tensor([[0, 1]]), torch.tensor([1, 1])), "lengths"),
        (Stream("cb", 4, torch.tensor([0]), torch.tensor([0])), "lengths"),
    ],
)
def test_a_malformed_stream_names_its_codebook(stream: Stream, says: str) -> None:
    with pytest.raises(ContractError, match=says) as error:
        METRIC.update(METRIC.init(), sample(stream, rows=1))
    assert "'cb'" in str(error.value)


def test_a_table_keeps_its_size() -> None:
    one, two = Stream("0", 4, torch.tensor([[0]])), Stream("0", 8, torch.tensor([[0]]))
    with pytest.raises(ContractError, match="changed its size"):
        METRIC.update(METRIC.init(), sample(one, two))
    with pytest.raises(ContractError, match="changed its size"):
        METRIC.update(METRIC.update(METRIC.init(), sample(one)), sample(two))


def test_a_code_without_streams_is_refused() -> None:
    with pytest.raises(UsageError, match="no stream"):
        METRIC.update(METRIC.init(), sample(rows=1))
    with pytest.raises(UsageError, match="sample rate"):
        METRIC.update(METRIC.init(), sample(Stream("0", 4, torch.tensor([[0]])), modality="audio", rate=None))
