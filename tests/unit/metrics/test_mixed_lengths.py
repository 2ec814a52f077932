"""A padded batch of mixed lengths gives every speech metric the bits each row has alone."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from voice import at_snr, voice

from tokbench.data import Item
from tokbench.evaluate import evaluate
from tokbench.metrics.cepstral import Mcd
from tokbench.metrics.lsd import Lsd
from tokbench.metrics.pesq import PesqWb
from tokbench.metrics.pitch import F0
from tokbench.metrics.spectral_variants import MelL2Db, StftDac
from tokbench.metrics.stoi import Estoi, Stoi
from tokbench.metrics.visqol import VisqolSpeechPoly
from tokbench.reconstruct import Engine
from tokbench.spec import AudioPrepare, EvalProtocol, TokenizerSpec
from tokbench.types import Code, Metric, Stream

RATE = 16_000
METRICS: tuple[Metric, ...] = (PesqWb(), Stoi(), Estoi(), Lsd(), MelL2Db(), StftDac(), Mcd(), F0(), VisqolSpeechPoly())


class Steps:
    """Samples in 64 steps: padding-safe, so the engine pads its batches."""

    spec = TokenizerSpec(
        name="steps", modality="audio", kind="discrete", input_range=(-1.0, 1.0), downsample=(1,), sample_rate=RATE,
        channels=1, codebook_size=(64,), padding_safe=True,
    )  # fmt: skip

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def encode(self, x: Tensor) -> Code:
        self.shapes.append(tuple(x.shape))
        return Code(streams=(Stream("a", 64, ((x[:, 0] + 1) * 31.5).round().long().clamp(0, 63)),))

    def decode(self, code: Code) -> Tensor:
        return code.streams[0].indices.float()[:, None] / 31.5 - 1


def test_a_padded_batch_is_each_row_alone() -> None:
    signals = [at_snr(voice(seconds, seed=seed), 40) for seed, seconds in enumerate((1.02, 1.3, 1.11))]
    items = [Item(f"{i}.wav", f"{i}.wav", x[None], RATE) for i, x in enumerate(signals)]
    protocol = EvalProtocol("audio", AudioPrepare(RATE), rounding="none")
    metrics = {metric.spec.name: metric for metric in METRICS}
    rows = []
    for size in (3, 1):
        tokenizer = Steps()
        rows.append(evaluate(tokenizer, items, metrics, protocol, engine=Engine(), batch_size=size).rows)
        assert max(shape[0] for shape in tokenizer.shapes) == size
    assert rows[0] == rows[1]
    for row, x in zip(rows[0], signals, strict=True):
        y = np.round((x + 1) * 31.5).clip(0, 63) / 31.5 - 1
        alone = PesqWb().row(x[None], y[None].astype(np.float32), RATE)["pesq_wb"]
        assert row.values["pesq_wb"] == alone
        assert not row.undefined
