"""Sounds of several lengths in one batch give what each gives alone; a tokenizer that cannot decode is scored by its code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokbench.batches import batches
from tokbench.contract import check
from tokbench.data import Item
from tokbench.evaluate import applies, evaluate
from tokbench.reconstruct import Engine
from tokbench.registry import build_metric
from tokbench.rows import Row
from tokbench.spec import AudioPrepare, EvalProtocol, TokenizerSpec
from tokbench.summarise import timing_summary
from tokbench.types import Code, Stream

RATE = 8000
METRICS = ("si_sdr", "mel", "codebook", "rate")


class Causal:
    """A causal codec: the level of each 80 samples in 256 steps, held; two streams of different rates."""

    def __init__(self, padding_safe: bool = True, encode_only: bool = False, sample_rate: int = RATE) -> None:
        self.spec = TokenizerSpec(
            name="causal", modality="audio", kind="discrete", input_range=(-1.0, 1.0), downsample=(160,),
            sample_rate=sample_rate, channels=1, codebook_size=(256, 256), padding_safe=padding_safe,
            encode_only=encode_only,
        )  # fmt: skip
        self.batches: list[tuple[int, ...]] = []

    def encode(self, x: Tensor) -> Code:
        self.batches.append(tuple(x.shape))
        fine = x[:, 0].unflatten(-1, (-1, 80)).mean(-1)
        coarse = x[:, 0].unflatten(-1, (-1, 160)).mean(-1)
        return Code(streams=tuple(
            Stream(name, 256, ((level + 1) * 127.5).round().long().clamp(0, 255))
            for name, level in (("fine", fine), ("coarse", coarse))
        ))  # fmt: skip

    def decode(self, code: Code) -> Tensor:
        if self.spec.encode_only:
            raise AssertionError("decode was called")
        fine = code.streams[0].indices.float() / 127.5 - 1
        return fine.repeat_interleave(80, dim=-1)[:, None]


def sounds(lengths: Sequence[int]) -> list[Item]:
    rng = np.random.default_rng(1)
    return [
        Item(
            f"{i}.wav",
            f"{i}.wav",
            (0.2 * rng.standard_normal((1, n)).cumsum(1) / 9).clip(-1, 1).astype(np.float32),
            RATE,
        )
        for i, n in enumerate(lengths)
    ]


def score(tokenizer: Causal, items: Sequence[Item], batch_size: int) -> tuple[tuple[Row, ...], dict[str, float | None]]:
    protocol = EvalProtocol("audio", AudioPrepare(RATE), rounding="none")
    metrics = {name: build_metric(name) for name in METRICS}
    metrics = {name: metric for name, metric in metrics.items() if applies(metric, tokenizer)}
    result = evaluate(tokenizer, items, metrics, protocol, engine=Engine(), batch_size=batch_size)
    return result.rows, dict(metrics["codebook"].compute(result.states["codebook"]))  # type: ignore[union-attr]


LENGTHS = (4000, 4001, 6399, 8000, 4000, 12000, 5555, 7200, 4800)


def test_a_padded_batch_gives_what_each_row_gives_alone() -> None:
    batched, single = Causal(), Causal()
    many = score(batched, sounds(LENGTHS), 4)
    assert any(shape[0] == 4 for shape in batched.batches)
    assert many == score(single, sounds(LENGTHS), 1)
    seconds = [row.values["seconds"] for row in many[0]]
    assert seconds == [n / RATE for n in LENGTHS]
    frames = [-(-n // 160) for n in LENGTHS]
    assert [row.values["tokens"] for row in many[0]] == [3 * n for n in frames]


def test_a_tokenizer_that_is_not_padding_safe_gets_rows_of_one_length() -> None:
    tokenizer = Causal(padding_safe=False)
    score(tokenizer, sounds(LENGTHS), 4)
    assert max(shape[0] for shape in tokenizer.batches) == 2  # the two of 4,000 samples


def test_through_a_resampler_rows_are_not_padded() -> None:
    tokenizer = Causal(sample_rate=16_000)
    score(tokenizer, sounds(LENGTHS), 4)
    assert max(shape[0] for shape in tokenizer.batches) == 2


def test_padded_batches_hold_neighbours_in_length() -> None:
    found = list(batches(sounds([100, 900, 110, 890, 120, 880, 130, 870]), lambda: 2, padding_safe=True))
    lengths = [[item.signal.shape[-1] for item in batch] for batch in found if isinstance(batch, list)]
    assert sorted(map(tuple, lengths)) == [(100, 110), (120, 130), (870, 880), (890, 900)]


def test_the_contract_finds_a_codec_that_only_claims_to_be_padding_safe() -> None:
    class ZeroMean(Causal):
        def decode(self, code: Code) -> Tensor:
            decoded = super().decode(code)
            return decoded - decoded.mean(dim=-1, keepdim=True)

    honest = {item.name: item.verdict for item in check(Causal(), Engine())}
    assert honest["padding"] == honest["batch = single"] == "pass"
    caught = {item.name: item.verdict for item in check(ZeroMean(), Engine())}
    assert caught["batch = single"] == "pass"
    assert caught["padding"] == "fail"


def test_an_encode_only_tokenizer_is_scored_by_its_code_alone() -> None:
    tokenizer = Causal(encode_only=True)
    rows, codebook = score(tokenizer, sounds(LENGTHS), 4)
    assert all(row.status == "ok" for row in rows)
    assert [row.values["tokens"] for row in rows] == [3 * -(-n // 160) for n in LENGTHS]
    assert "si_sdr" not in rows[0].values
    assert codebook["codebook_usage"] is not None
    verdicts = {item.name: item.verdict for item in check(tokenizer, Engine())}
    assert verdicts["decode"] == "skip"
    assert "fail" not in verdicts.values()


def test_metrics_of_a_reconstruction_do_not_apply_where_there_is_none() -> None:
    spec = Causal(encode_only=True).spec
    assert "cannot decode" in build_metric("si_sdr").spec.mismatch(spec)
    assert build_metric("rate").spec.mismatch(spec) == ""
    assert torch.equal(Causal().encode(torch.zeros(1, 1, 160)).streams[1].indices, torch.tensor([[128]]))


def test_real_time_factors_are_of_the_sound_that_was_timed() -> None:
    protocol = EvalProtocol("audio", AudioPrepare(RATE), rounding="none")
    timing = evaluate(Causal(), sounds(LENGTHS), {}, protocol, engine=Engine(), batch_size=4).timing
    assert timing.signal_seconds == sum(LENGTHS) / RATE
    told = timing_summary([timing])
    assert told["encode_real_time_factor"] == timing.encode_seconds / timing.signal_seconds
    assert told["decode_real_time_factor"] > 0
