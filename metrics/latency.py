"""Algorithmic look-ahead of a codec of sound, found by changing the future and looking for what moves in the past."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokbench.spec import Column, MetricSpec, TokenizerSpec
from tokbench.types import Sample, Stream

from ._audio import checked_rate
from ._options import require_positive_integer
from ._probe import NO_TOKENS, codec_of, generator, valid

MOVED = 1e-4
"""Difference, of full scale, from which an output sample counts as moved: above the rounding of 16-bit codecs."""

_WHOLE = (
    "what comes first in the clip moves with what comes in its second half: the look-ahead is longer than can be seen, "
    "as of a codec that needs the whole clip"
)


@dataclass(frozen=True)
class Latency:
    """How far into the future a codec looks, in milliseconds: its algorithmic latency, without any computing time.

    The input is replaced by loud noise from an instant t on, coded and decoded; the earliest output sample that moves by more
    than 1e-4 of full scale is t - L, and `latency_ms` is the largest L over `probes` instants, spread over the clip's second
    half at different places within a frame. A codec that buffers frames of F and looks no further has an L just below F.
    Only the probed instants are seen, so the number is a lower bound. `latency_tokens_ms` asks the same of the code: a token
    stands for its share of the clip as padded to the tokenizer's stride, and L counts from its start.

    Where the first output sample already moves, the look-ahead exceeds what the clip can show and the row is undefined;
    `latency_unbounded` is 1 there, else 0. A resampler around the codec looks ahead too (0.4 ms at 16 kHz) and is included.
    Whether the output is late besides is `si_sdr`'s `delay_median`: what a listener waits for is the sum of both.

    Args:
        probes: Instants.

    Raises:
        UsageError: `probes` is not a positive integer.
    """

    probes: int = 8

    undefined: ClassVar[Mapping[str, str]] = {
        "latency_ms": f"{_WHOLE}; or nothing moved",
        "latency_tokens_ms": f"{NO_TOKENS}; or no token moved; or {_WHOLE}",
        "latency_max_ms": "no row has a look-ahead that can be seen",
    }

    def __post_init__(self) -> None:
        require_positive_integer("latency", "probes", self.probes)

    @property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        return MetricSpec(
            name="latency",
            modalities=("audio",),
            kinds=("discrete", "continuous", "payload"),
            summary="Algorithmic look-ahead, found by perturbation",
            reference="tokbench",
            protocol={"probes": self.probes, "moved": MOVED, "future": "white noise, peak 0.5, seeded by seed and key"},
            columns=(
                Column("latency_ms", "ms", False, "Output depends on input this far ahead, at least", 1e-6, 1),
                Column("latency_tokens_ms", "ms", False, "A token depends on input this far behind its start", 1e-6, 1),
                Column("latency_max_ms", "ms", False, "Largest latency_ms of the set", 1e-6, 1, "corpus"),
                Column("latency_unbounded", "", False, "1 where the look-ahead exceeds the clip", 0.0, 3),
            ),
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return the row columns, each (B,) float64.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            UsageError: The sample rate is missing.
        """
        rate = checked_rate("latency", sample)
        codec, x, rows = codec_of("latency", sample), sample.reference, len(sample.keys)
        noise = torch.stack(
            [torch.rand(x.shape[1:], generator=generator("latency", codec.seed, key)) - 0.5 for key in sample.keys]
        ).to(x)
        # Decoded anew: what is compared must differ by the input alone, also for codecs that draw numbers.
        code = codec.encode(x, sample.keys)
        clean = codec.decode(code, sample.keys)
        ahead = torch.full((rows,), -math.inf, dtype=torch.float64)
        token_ahead = ahead.clone()
        whole = torch.zeros(rows, dtype=torch.bool)
        token_whole = whole.clone()
        fed = fed_samples(x.shape[-1], rate, sample.spec)
        for start in instants(x.shape[-1], self.probes, _frame(code.streams, fed)):
            future = torch.cat([x[..., :start], noise[..., start:]], dim=-1)
            other = codec.encode(future, sample.keys)
            moved = ((codec.decode(other, sample.keys) - clean).abs() > MOVED).flatten(1, -2).any(1).cpu()
            first = _first(moved)
            whole |= first == 0
            ahead = torch.maximum(ahead, _lead(start, first))
            tokens = _first_token(code.streams, other.streams, fed, rows)
            token_whole |= tokens == 0
            token_ahead = torch.maximum(token_ahead, _lead(start, tokens))
        return {
            "latency_ms": _milliseconds(ahead, whole, rate),
            "latency_tokens_ms": _milliseconds(token_ahead, token_whole, rate),
            "latency_unbounded": whole.double(),
        }

    def summarise(self, rows: Mapping[str, Sequence[float | None]], groups: Sequence[str]) -> dict[str, float | None]:  # noqa: ARG002
        """Return the largest look-ahead of all rows."""
        known = [value for value in rows["latency_ms"] if value is not None]
        return {"latency_max_ms": max(known, default=None)}


def instants(samples: int, probes: int, frame: float) -> list[int]:
    """Return instants in the second half of a clip, each at another place within a frame of `frame` samples.

    The last of them leaves a tenth of the clip to be changed.
    """
    low, high = samples // 2, max(samples // 2 + 1, samples * 9 // 10)
    found = []
    for k in range(probes):
        at = low + (high - low) * k / probes
        whole = math.floor(at / frame) * frame
        found.append(min(high - 1, max(1, round(whole + frame * (k + 1) / probes) - 1)))
    return sorted(set(found))


def fed_samples(samples: int, rate: int, spec: TokenizerSpec) -> float:
    """Return how long a clip is once it is padded to the tokenizer's stride, in samples at the clip's own rate.

    That is what the tokens divide among them: counting the clip alone would move the last ones by a part of a frame each.
    """
    factor = (spec.sample_rate or rate) / rate
    stride = spec.downsample[0] if spec.downsample else 1
    return math.ceil(math.ceil(samples * factor) / stride) * stride / factor


def _frame(streams: Sequence[Stream], samples: float) -> float:
    """Return how many samples a token of the slowest codebook stands for; 20 ms of 48 kHz where there are no tokens."""
    fewest = min((stream.indices.shape[-1] for stream in streams), default=0)
    return samples / fewest if fewest else 960.0


def _first(moved: Tensor) -> Tensor:
    """Return where each row of (B, N) bool first holds, as float64; infinity where it never does."""
    at = moved.to(torch.uint8).argmax(1).double()
    return torch.where(moved.any(1), at, math.inf)


def _first_token(before: Sequence[Stream], after: Sequence[Stream], samples: float, rows: int) -> Tensor:
    """Return the sample at which the first token that changed starts, over all codebooks, (B,) float64."""
    out = torch.full((rows,), math.inf, dtype=torch.float64)
    for one, other in zip(before, after, strict=True):
        if one.indices.shape != other.indices.shape:
            return torch.zeros(rows, dtype=torch.float64)
        changed = (one.indices != other.indices) & valid(one)
        flat = changed.reshape(rows, -1, one.indices.shape[-1]).any(1).cpu()
        out = torch.minimum(out, _first(flat) * (samples / one.indices.shape[-1]))
    return out


def _lead(start: int, first: Tensor) -> Tensor:
    """Return by how much what moved first lies before `start`, at least 0; minus infinity where nothing moved."""
    return torch.where(first == math.inf, -math.inf, (start - first).clamp(min=0.0))


def _milliseconds(ahead: Tensor, whole: Tensor, rate: int) -> Tensor:
    known = torch.isfinite(ahead) & ~whole
    return torch.where(known, ahead * (1000 / rate), math.nan)
