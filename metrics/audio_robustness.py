"""How codes of sound bear a shift, gain or noise, decoders bit errors and lost frames, and what more round trips lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Codec, Sample, Stream

from ._audio import checked_rate
from ._options import require_positive_integer
from ._probe import NO_TOKENS, codec_of, generator, no_tokens, unchanged, valid, with_mean
from .spectral import MelDistance
from .waveform import SiSdr

BIT_ERROR_RATES = (0.001, 0.003, 0.01)
"""Probability with which each bit of an index arrives flipped."""

FRAME_LOSS_RATES = (0.01, 0.05, 0.1)
"""Probability with which a frame does not arrive."""

_UNLIKE = "the decoded sound, or what it is compared with, is silent (-200 dBFS or less)"


@dataclass(frozen=True)
class AudioStability:
    """Token-flip rate: the share of tokens that change when the sound hardly does; lower is steadier.

    Four changes that a listener does not hear, or barely: the sound one sample later (`/shift`, the first sample repeated),
    `gain_db` softer and louder (`/gain_down`, `/gain_up`), and white noise `snr_db` below the row's power (`/noise`, seeded
    by the protocol's seed and the row's key). `token_flips` is the mean of the four, over all codebooks;
    `token_flips_first` that of the first codebook alone, where most residual codes keep what matters. What leaves
    [-1, 1] is clipped, as it would be in any file.

    Args:
        gain_db: Change of level, decibels.
        snr_db: Signal-to-noise ratio of the noise.

    Raises:
        UsageError: `gain_db` is not above 0.
    """

    gain_db: float = 1.0
    snr_db: float = 40.0

    def __post_init__(self) -> None:
        if not 0 < self.gain_db < math.inf or not math.isfinite(self.snr_db):
            raise UsageError(f"audio_stability: gain_db above 0, snr_db finite; got {self.gain_db}, {self.snr_db}")

    @property
    def undefined(self) -> Mapping[str, str]:
        """Say why a row has no number."""
        return no_tokens("token_flips", _PARTS) | no_tokens("token_flips_first", _PARTS)

    @property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        return MetricSpec(
            name="audio_stability",
            modalities=("audio",),
            kinds=("discrete",),
            summary="Token-flip rate under a shift by one sample, gain and noise",
            reference="tokbench; after the consistency studies of neural codecs, e.g. arXiv 2409.19283",
            protocol={
                "shift": "1 sample later, first repeated",
                "gain_db": float(self.gain_db),
                "noise_snr_db": float(self.snr_db),
                "clipped": True,
            },
            columns=(
                Column("token_flips", "", False, "Tokens that change, mean of four harmless changes", 1e-9, 4),
                Column("token_flips_first", "", False, "The same of the first codebook", 1e-9, 4),
            ),
            of_code=True,
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return both columns and their parts, each (B,) float64.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            UsageError: The sample rate is missing.
        """
        checked_rate("audio_stability", sample)
        codec = codec_of("audio_stability", sample)
        flips: dict[str, Tensor] = {}
        first: dict[str, Tensor] = {}
        rows = len(sample.keys)
        for part, change in self._changes(codec, sample).items():
            code = codec.encode(change, sample.keys)
            flips[part] = 1 - unchanged(sample.code, code, rows)
            heads = [replace(one, streams=one.streams[:1]) for one in (sample.code, code)]
            first[part] = 1 - unchanged(heads[0], heads[1], rows)
        return {**with_mean("token_flips", flips), **with_mean("token_flips_first", first)}

    def _changes(self, codec: Codec, sample: Sample) -> dict[str, Tensor]:
        x, factor = sample.reference, 10 ** (self.gain_db / 20)
        noise = torch.stack(
            [
                torch.randn(x.shape[1:], generator=generator("audio_stability", codec.seed, key), dtype=torch.float64)
                for key in sample.keys
            ]
        )
        power = torch.tensor([float(row.detach().cpu().double().square().mean()) for row in x], dtype=torch.float64)
        noise = noise * (power * 10 ** (-self.snr_db / 10)).sqrt()[:, None, None]
        changes = {
            "shift": torch.cat([x[..., :1], x[..., :-1]], dim=-1),
            "gain_down": x / factor,
            "gain_up": x * factor,
            "noise": x + noise.to(x),
        }
        return {part: change.clamp(-1.0, 1.0) for part, change in changes.items()}


_PARTS = ("shift", "gain_down", "gain_up", "noise")


@dataclass(frozen=True)
class ChannelErrors:
    """How a decoder bears a bad channel: flipped bits and lost frames of the code, against its own clean decoding.

    `bit_errors`: an index of a codebook of V entries is sent as ceil(log2 V) bits; each bit flips with a probability p, and
    an index that does not exist any more is taken modulo V. `frame_loss`: frames, as long as a token of the slowest
    codebook, are lost with a probability p, all codebooks together; a receiver puts the last frame that arrived in their
    place (the next one at the very start). Draws are seeded by the protocol's seed and the row's key, and a higher
    probability hits what a lower one did.

    `_si_sdr` is SI-SDR against the clean decoding (100 dB where a hit changed nothing; undefined where the draw hit nothing,
    as happens to short clips), `_mel` DAC's mel distance to it at the sample's own rate, `_hit` the share of bits or frames
    that were hit. The columns are those of the highest probability; `/0.001` ... give each.
    """

    undefined: ClassVar[Mapping[str, str]] = {
        f"{name}_si_sdr{part}": f"{_UNLIKE}, or none of its {what} was hit"
        for name, what, rates in (("bit_errors", "bits", BIT_ERROR_RATES), ("frame_loss", "frames", FRAME_LOSS_RATES))
        for part in ("", *(f"/{rate:g}" for rate in rates))
    }

    @property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        both = (
            ("bit_errors", f"a bit in {1 / BIT_ERROR_RATES[-1]:g} flipped"),
            ("frame_loss", f"a frame in {1 / FRAME_LOSS_RATES[-1]:g} lost"),
        )
        columns = []
        for name, text in both:
            columns += [
                Column(f"{name}_si_sdr", "dB", True, f"SI-SDR to the clean decoding, {text}", 1e-3, 2),
                Column(f"{name}_mel", "", False, f"Mel distance to the clean decoding, {text}", 1e-6),
                Column(f"{name}_hit", "", None, f"Share that was hit, {text}", 1e-9, 4, level=False),
            ]
        return MetricSpec(
            name="channel_errors",
            modalities=("audio",),
            kinds=("discrete",),
            summary="Decoding with flipped bits and with lost frames, against the clean decoding",
            reference="tokbench",
            protocol={
                "bit_error_rates": BIT_ERROR_RATES,
                "frame_loss_rates": FRAME_LOSS_RATES,
                "bits": "ceil(log2 V) an index, modulo V",
                "lost": "last frame that arrived, all codebooks",
            },
            columns=tuple(columns),
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return the columns and every probability, each (B,) float64.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer, or emits no tokens.
            UsageError: The sample rate is missing.
        """
        checked_rate("channel_errors", sample)
        codec = codec_of("channel_errors", sample)
        if not sample.code.streams:
            raise NotApplicable(f"channel_errors: {NO_TOKENS}")
        out: dict[str, Tensor] = {}
        harms: tuple[tuple[str, tuple[float, ...], Callable[[Sample, int], Harm]], ...] = (
            ("bit_errors", BIT_ERROR_RATES, _bits),
            ("frame_loss", FRAME_LOSS_RATES, _frames),
        )
        for name, rates, prepare in harms:
            harm = prepare(sample, codec.seed)
            for rate in rates:
                streams, hit = harm(rate)
                raw = codec.decode(replace(sample.code, streams=streams), sample.keys)
                pair = _pair(sample, sample.reconstruction, codec.finish(raw))
                si_sdr = SiSdr(max_delay_ms=0.0)(pair)["si_sdr"]
                out[f"{name}_si_sdr/{rate:g}"] = torch.where(hit > 0, si_sdr, math.nan)
                out[f"{name}_mel/{rate:g}"] = MelDistance()(pair)["mel_dac"]
                out[f"{name}_hit/{rate:g}"] = hit
            for what in ("si_sdr", "mel", "hit"):
                out[f"{name}_{what}"] = out[f"{name}_{what}/{rates[-1]:g}"]
        return out


Harm = Callable[[float], tuple[tuple[Stream, ...], Tensor]]
"""A probability -> the streams that arrive, and each row's share of bits or frames that were hit."""


def _bits(sample: Sample, seed: int) -> Harm:
    draws = [_numbers(stream, k, sample, seed, _width(stream)) for k, stream in enumerate(sample.code.streams)]

    def harm(rate: float) -> tuple[tuple[Stream, ...], Tensor]:
        out = []
        hit = sent = torch.zeros(len(sample.keys), dtype=torch.float64)
        for stream, draw in zip(sample.code.streams, draws, strict=True):
            flipped = draw < rate
            weights = 2 ** torch.arange(_width(stream))
            mask = (flipped.long() * weights).sum(-1).to(stream.indices.device)
            out.append(replace(stream, indices=(stream.indices ^ mask) % stream.codebook_size))
            hit = hit + flipped.flatten(1).sum(1).double()
            sent = sent + (draw < 2).flatten(1).sum(1).double()
        return tuple(out), hit / sent

    return harm


def _width(stream: Stream) -> int:
    return max(1, (stream.codebook_size - 1).bit_length())


def _numbers(stream: Stream, position: int, sample: Sample, seed: int, width: int) -> Tensor:
    """Return a uniform number a bit, (*indices, width) float64; 2 where no token counts. A row's own, whatever its batch."""
    out = torch.full((*stream.indices.shape, width), 2.0, dtype=torch.float64)
    for row, (key, counts) in enumerate(zip(sample.keys, valid(stream).cpu(), strict=True)):
        one = generator(f"channel_errors:bits:{position}", seed, key)
        out[row][counts] = torch.rand((int(counts.sum()), width), generator=one, dtype=torch.float64)
    return out


def _frames(sample: Sample, seed: int) -> Harm:
    streams = sample.code.streams
    lengths = [valid(stream).flatten(1, -2)[:, 0].sum(1) if stream.indices.ndim > 2 else valid(stream).sum(1)
               for stream in streams]  # fmt: skip
    frames = torch.stack([length.cpu() for length in lengths]).amin(0).tolist()
    draws = [
        torch.rand(count, generator=generator("channel_errors:frames", seed, key), dtype=torch.float64)
        for key, count in zip(sample.keys, frames, strict=True)
    ]

    def harm(rate: float) -> tuple[tuple[Stream, ...], Tensor]:
        sources = [_concealed(draw < rate) for draw in draws]
        out = []
        for stream, tokens in zip(streams, lengths, strict=True):
            indices = stream.indices.clone()
            for row, (source, count) in enumerate(zip(sources, tokens.tolist(), strict=True)):
                at = _token_sources(source, count).to(indices.device)
                indices[row, ..., :count] = stream.indices[row][..., at]
            out.append(replace(stream, indices=indices))
        return tuple(out), torch.tensor([_share(draw < rate) for draw in draws], dtype=torch.float64)

    return harm


def _share(lost: Tensor) -> float:
    """Return the share of frames that were lost; 0 where all were: with nothing to conceal by, the clip stays as it is."""
    return 0.0 if bool(lost.all()) else float(lost.double().mean())


def _concealed(lost: Tensor) -> list[int]:
    """Return for each frame the one that stands in its place: itself, the last that arrived, or the first that will."""
    arrived = [frame for frame, gone in enumerate(lost.tolist()) if not gone]
    if not arrived:
        return list(
            range(len(lost))
        )  # a channel that loses everything has nothing to show: the clip is too short for p
    out, last = [], arrived[0]
    for frame, gone in enumerate(lost.tolist()):
        last = last if gone else frame
        out.append(last)
    return out


def _token_sources(frames: list[int], tokens: int) -> Tensor:
    """Spread a map of frames over a codebook that has `tokens` tokens, as many as frames or more."""
    count = len(frames)
    out = []
    for token in range(tokens):
        frame = token * count // tokens
        start = -(-frame * tokens // count)
        source = -(-frames[frame] * tokens // count) + token - start
        out.append(min(source, tokens - 1))
    return torch.tensor(out, dtype=torch.long)


@dataclass(frozen=True)
class Tandem:
    """What tandem coding loses: the reconstruction is tokenized again, `rounds` times, as along a chain of calls.

    `tandem_si_sdr` and `tandem_mel` compare the last reconstruction with the reference, `tandem_drift` is the SI-SDR between
    it and the first one: an idempotent codec has 100 dB. All three after the delay that maximises correlation is removed,
    because a codec's delay adds up (`tandem_delay` is that delay of the last round against the reference, in samples);
    `tandem_mel` is not aligned. `tandem_tokens` is the share of tokens that stay when the first reconstruction is encoded.
    `/1`, `/2`, ... give every round.

    Args:
        rounds: Round trips after the first one.

    Raises:
        UsageError: `rounds` is not a positive integer.
    """

    rounds: int = 3

    def __post_init__(self) -> None:
        require_positive_integer("tandem", "rounds", self.rounds)

    @property
    def undefined(self) -> Mapping[str, str]:
        """Say why a row has no number."""
        parts = ("", *(f"/{n}" for n in range(1, self.rounds + 1)))
        why = {"tandem_tokens": NO_TOKENS} | dict.fromkeys(("tandem_si_sdr", "tandem_drift", "tandem_delay"), _UNLIKE)
        return {f"{name}{part}": reason for name, reason in why.items() for part in parts}

    @property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        return MetricSpec(
            name="tandem",
            modalities=("audio",),
            summary="Loss over repeated coding of sound",
            reference="tokbench",
            protocol={"rounds": self.rounds, "max_delay_ms": 100.0},
            columns=(
                Column("tandem_si_sdr", "dB", True, f"SI-SDR after {self.rounds} more round trips, aligned", 1e-3, 2),
                Column("tandem_mel", "", False, f"Mel distance after {self.rounds} more round trips", 1e-6),
                Column("tandem_drift", "dB", True, "SI-SDR between first and last reconstruction, aligned", 1e-3, 2),
                Column("tandem_tokens", "", True, "Tokens kept by the first of them", 1e-9),
                Column("tandem_delay", "samples", None, "Delay after the last of them", 0.0, 0, level=False),
            ),
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return the columns and every round, each (B,) float64; NaN tokens where the code has none.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            UsageError: The sample rate is missing.
        """
        checked_rate("tandem", sample)
        codec, last, code = codec_of("tandem", sample), sample.reconstruction, sample.code
        out: dict[str, Tensor] = {}
        for n in range(1, self.rounds + 1):
            before, code = code, codec.encode(last, sample.keys)
            last = codec.finish(codec.decode(code, sample.keys))
            against = SiSdr()(_pair(sample, sample.reference, last))
            out[f"tandem_si_sdr/{n}"] = against["si_sdr_aligned"]
            out[f"tandem_delay/{n}"] = against["delay"]
            out[f"tandem_mel/{n}"] = MelDistance()(_pair(sample, sample.reference, last))["mel_dac"]
            out[f"tandem_drift/{n}"] = SiSdr()(_pair(sample, sample.reconstruction, last))["si_sdr_aligned"]
            out[f"tandem_tokens/{n}"] = unchanged(before, code, len(sample.keys))
        ends = {name: out[f"{name}/{self.rounds}"] for name in _ENDS}
        return {**ends, "tandem_tokens": out["tandem_tokens/1"], **out}


_ENDS = ("tandem_si_sdr", "tandem_mel", "tandem_drift", "tandem_delay")


def _pair(sample: Sample, one: Tensor, other: Tensor) -> Sample:
    """Return the batch with another pair of sounds to compare."""
    return replace(sample, reference=one, reconstruction=other.to(one.device), memo={})
