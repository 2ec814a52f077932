"""Stability, channel errors, tandem coding and look-ahead, against codecs of sound whose answers can be said in advance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tokbench.data import Item
from tokbench.errors import NotApplicable, UsageError
from tokbench.metrics.audio_robustness import AudioStability, ChannelErrors, Tandem, _concealed, _token_sources
from tokbench.metrics.latency import Latency, fed_samples, instants
from tokbench.reconstruct import Engine, reconstruct
from tokbench.spec import AudioPrepare, EvalProtocol, TokenizerSpec
from tokbench.types import Code, Sample, Stream, Tokenizer

RATE, FRAME = 16_000, 160


@dataclass(frozen=True)
class Frames:
    """The mean of each frame, in `size` steps, repeated: every token is its own frame, so damage is local and known.

    Attributes:
        look: Samples behind its end that a frame's mean takes in as well.
        late: Samples by which the decoder is late.
        whole: Let every token hear the whole clip.
        books: Codebooks; each one after the first codes what the ones before left.
    """

    size: int = 200
    look: int = 0
    late: int = 0
    whole: bool = False
    books: int = 1

    @property
    def spec(self) -> TokenizerSpec:
        return TokenizerSpec(
            "frames", "audio", "discrete", (-1.0, 1.0), (FRAME,), sample_rate=RATE, channels=1,
            codebook_size=(self.size,) * self.books,
        )  # fmt: skip

    def encode(self, x: Tensor) -> Code:
        ahead = torch.nn.functional.pad(x[:, 0], (0, self.look))
        means = ahead.unfold(1, FRAME + self.look, FRAME).mean(-1)
        if self.whole:
            means = means + x.mean(-1)
        rest, streams, span = means, [], 2.0
        for book in range(self.books):
            indices = ((rest / span + 0.5) * (self.size - 1)).round().long().clamp(0, self.size - 1)
            rest = rest - (indices / (self.size - 1) - 0.5) * span
            streams.append(Stream(str(book), self.size, indices))
            span /= self.size - 1
        return Code(tuple(streams))

    def decode(self, code: Code) -> Tensor:
        out, span = torch.zeros(()), 2.0
        for stream in code.streams:
            assert stream.indices.min() >= 0
            assert stream.indices.max() < self.size
            out = out + (stream.indices / (self.size - 1) - 0.5) * span
            span /= self.size - 1
        sound = out.float().repeat_interleave(FRAME, 1)[:, None]
        return torch.nn.functional.pad(sound, (self.late, 0))[..., : sound.shape[-1]] if self.late else sound


def sounds(rows: int = 2, samples: int = 8_000, seed: int = 0) -> list[Item]:
    rng = np.random.RandomState(seed)
    out = []
    for k in range(rows):
        slow = np.cumsum(rng.randn(samples)) * 0.01
        slow = 0.5 * (slow - slow.mean()) / np.abs(slow - slow.mean()).max()
        out.append(Item(f"row{k}", f"row{k}", slow[None].astype(np.float32), sample_rate=RATE))
    return out


def coded(tokenizer: Tokenizer, items: list[Item] | None = None, seed: int = 0) -> Sample:
    protocol = EvalProtocol("audio", AudioPrepare(RATE), rounding="none", seed=seed)
    (sample,) = reconstruct(tokenizer, items or sounds(), protocol, Engine(seed=seed)).samples
    return sample


def test_a_change_of_level_flips_the_tokens_it_moves_and_no_other() -> None:
    sample = coded(Frames(size=4))
    out = AudioStability(gain_db=1e-9, snr_db=300.0)(sample)
    for part in ("", "/gain_down", "/gain_up", "/noise"):
        assert out[f"token_flips{part}"].max() < 0.02  # nothing but a shift by one sample remains
    loud = AudioStability(gain_db=6.0)(sample)
    x = sample.reference * 10 ** (6 / 20)
    louder = sample.codec.encode(x.clamp(-1, 1), sample.keys).streams[0].indices  # type: ignore[union-attr]
    expected = (louder != sample.code.streams[0].indices).double().mean(1)
    torch.testing.assert_close(loud["token_flips/gain_up"], expected)
    assert loud["token_flips/gain_up"].min() > 0.05


def test_flips_of_the_first_book_are_told_from_those_of_all() -> None:
    out = AudioStability()(coded(Frames(size=16, books=3)))
    assert (out["token_flips_first"] < out["token_flips"]).all()  # the last book codes what is left, and noise is left
    parts = [out[f"token_flips{part}"] for part in ("/shift", "/gain_down", "/gain_up", "/noise")]
    torch.testing.assert_close(out["token_flips"], torch.stack(parts).mean(0))


def test_noise_is_a_rows_own_and_the_seeds() -> None:
    items = sounds(3)
    whole = AudioStability(snr_db=10.0)(coded(Frames(), items))
    alone = AudioStability(snr_db=10.0)(coded(Frames(), items[1:2]))
    for name, column in whole.items():
        assert torch.equal(column[1:2], alone[name]), name
    other = AudioStability(snr_db=10.0)(coded(Frames(), items, seed=1))
    assert not torch.equal(whole["token_flips/noise"], other["token_flips/noise"])


def test_channel_errors_hit_what_they_say_and_grow() -> None:
    items = sounds(2, 80_000)
    sample = coded(Frames(size=200), items)  # 8 bits, of which 56 patterns are no index
    out = ChannelErrors()(sample)
    for rate in (0.001, 0.003, 0.01):
        bits = 500 * 8
        spread = 4 * math.sqrt(rate * (1 - rate) / bits)
        assert (out[f"bit_errors_hit/{rate:g}"] - rate).abs().max() < spread
    for rate in (0.01, 0.05, 0.1):
        assert (out[f"frame_loss_hit/{rate:g}"] - rate).abs().max() < 4 * math.sqrt(rate / 500)
    for name, rates in (("bit_errors", ("0.001", "0.003", "0.01")), ("frame_loss", ("0.01", "0.05", "0.1"))):
        mel = torch.stack([out[f"{name}_mel/{rate}"] for rate in rates])
        assert (mel.diff(dim=0) > 0).all()
        assert torch.equal(out[f"{name}_si_sdr"], out[f"{name}_si_sdr/{rates[-1]}"])
    # Half of the full scale for the top bit of a frame, a neighbour's value for a lost one: the second is milder.
    assert (out["frame_loss_si_sdr/0.01"] > out["bit_errors_si_sdr/0.01"]).all()


def test_channel_draws_are_a_rows_own() -> None:
    items = sounds(3, 8_000)
    whole = ChannelErrors()(coded(Frames(), items))
    alone = ChannelErrors()(coded(Frames(), items[2:]))
    for name, column in whole.items():
        assert torch.equal(column[2:].nan_to_num(-1), alone[name].nan_to_num(-1)), name


def test_a_row_that_was_not_hit_has_no_si_sdr() -> None:
    sample = coded(Frames(), sounds(4, 1_600))  # ten tokens
    out = ChannelErrors()(sample)
    hit = out["bit_errors_hit/0.001"] > 0
    assert not hit.all()
    assert torch.equal(torch.isnan(out["bit_errors_si_sdr/0.001"]), ~hit)
    assert (out["bit_errors_mel/0.001"][~hit] == 0).all()
    assert "hit" in ChannelErrors.undefined["bit_errors_si_sdr/0.001"]


def test_lost_frames_repeat_the_last_that_arrived_at_every_rate_of_tokens() -> None:
    lost = torch.tensor([True, False, False, True, True, False])
    assert _concealed(lost) == [1, 1, 2, 2, 2, 5]
    assert _concealed(torch.tensor([True, True])) == [0, 1]
    assert _token_sources([1, 1, 2, 2, 2, 5], 12).tolist() == [2, 3, 2, 3, 4, 5, 4, 5, 4, 5, 10, 11]
    assert _token_sources([0, 1, 1], 3).tolist() == [0, 1, 1]


def test_an_idempotent_codec_loses_nothing_in_tandem() -> None:
    out = Tandem(rounds=2)(coded(Frames(size=201)))
    assert (out["tandem_drift"] == 100.0).all()
    assert (out["tandem_tokens"] == 1.0).all()
    assert (out["tandem_delay"] == 0.0).all()


def test_delays_add_up_in_tandem_and_are_taken_out() -> None:
    sample = coded(Frames(size=201, late=FRAME), sounds(1, 16_000))
    out = Tandem(rounds=3)(sample)
    assert out["tandem_delay/1"].item() == 2 * FRAME  # of the second round trip
    assert out["tandem_delay"].item() == 4 * FRAME
    assert out["tandem_drift"].item() > 40
    assert out["tandem_si_sdr"].item() == pytest.approx(out["tandem_si_sdr/1"].item(), abs=1.0)


@pytest.mark.parametrize("look", [0, 40, 400])
def test_look_ahead_is_the_frame_and_what_lies_behind_it(look: int) -> None:
    sample = coded(Frames(size=2_000, look=look), sounds(2, 16_000))
    out = Latency()(sample)
    expected = (FRAME + look) * 1000 / RATE
    # From below: the last sample of a frame alone may not move its token, and only some instants are tried.
    assert (out["latency_ms"] <= expected).all()
    assert (out["latency_ms"] >= 0.8 * expected).all()
    assert torch.equal(out["latency_ms"], out["latency_tokens_ms"])
    assert (out["latency_unbounded"] == 0).all()
    rows = {name: column.tolist() for name, column in out.items()}
    assert Latency().summarise(rows, ())["latency_max_ms"] == max(rows["latency_ms"])


def test_tokens_divide_the_padded_clip() -> None:
    # A hundred frames and one sample: the clip ends where its last frame begins.
    sample = coded(Frames(size=2_000), sounds(1, 160 * 100 + 1))
    assert sample.code.streams[0].indices.shape == (1, 101)
    out = Latency()(sample)
    assert 8.0 <= out["latency_tokens_ms"].item() <= 10.0
    assert out["latency_ms"].item() == out["latency_tokens_ms"].item()
    assert fed_samples(16_001, 16_000, sample.spec) == 16_160
    assert fed_samples(16_001, 8_000, replace(sample.spec, sample_rate=16_000)) == 16_080
    assert fed_samples(16_001, 8_000, replace(sample.spec, sample_rate=None, downsample=())) == 16_001


def test_a_late_output_is_no_look_ahead() -> None:
    early = Latency()(coded(Frames(size=2_000), sounds(1, 16_000)))["latency_ms"].item()
    late = Latency()(coded(Frames(size=2_000, late=100), sounds(1, 16_000)))["latency_ms"].item()
    assert late == pytest.approx(early - 100 * 1000 / RATE)


def test_a_codec_that_hears_the_whole_clip_has_no_number() -> None:
    out = Latency()(coded(Frames(size=2_000, whole=True), sounds(1, 16_000)))
    assert math.isnan(out["latency_ms"].item())
    assert math.isnan(out["latency_tokens_ms"].item())
    assert out["latency_unbounded"].item() == 1
    assert "whole clip" in Latency.undefined["latency_ms"]
    assert Latency().summarise({"latency_ms": [None]}, ()) == {"latency_max_ms": None}


def test_probed_instants_differ_in_their_place_within_a_frame() -> None:
    found = instants(48_000, 8, 320.0)
    assert len(found) == 8
    assert min(found) >= 24_000 - 320
    assert max(found) < 43_200
    assert {(at + 1) % 320 for at in found} == {40, 80, 120, 160, 200, 240, 280, 0}
    assert instants(3, 8, 960.0)  # a clip of three samples is probed too


def test_columns_are_the_declared_ones() -> None:
    sample = coded(Frames(books=2))
    for metric in (AudioStability(), ChannelErrors(), Tandem(), Latency()):
        returned = set(metric(sample))
        declared = {column.name for column in metric.spec.columns if column.where == "row"}
        assert declared <= returned
        assert {name.partition("/")[0] for name in returned} == declared
        assert all(value.shape == (2,) and value.dtype == torch.float64 for value in metric(sample).values())
        assert {name.partition("/")[0] for name in metric.undefined} <= {column.name for column in metric.spec.columns}


def test_bad_input_is_named() -> None:
    for wrong in (lambda: AudioStability(gain_db=0.0), lambda: Tandem(rounds=0), lambda: Latency(probes=0)):
        with pytest.raises(UsageError):
            wrong()
    sample = coded(Frames())
    for metric in (AudioStability(), ChannelErrors(), Tandem(), Latency()):
        with pytest.raises(NotApplicable):
            metric(replace(sample, codec=None))
