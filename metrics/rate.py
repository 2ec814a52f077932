"""What a row costs to send and what that is per pixel or second, computed from the code that was emitted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokbench.errors import ContractError, UsageError
from tokbench.spec import Column, MetricSpec, Modality
from tokbench.types import Code, Sample, Stream

from .codebook import check_stream

RAW_BITS: Mapping[Modality, int] = {"image": 24, "video": 24, "audio": 16}
"""Bits of the uncompressed signal: a pixel of 8-bit RGB, a sample of one channel of 16-bit PCM."""

_CONTINUOUS = "continuous latents have no agreed rate, and an identity row emits no code"
_NO_STREAM = "the tokenizer emits no discrete tokens"
_NO_CLOCK = "the frame rate of the clip is unknown"

_ABSENT: Mapping[Modality, frozenset[str]] = {
    "image": frozenset({"kbps", "tokens_per_second", "seconds"}),
    "video": frozenset(),
    "audio": frozenset({"bpp", "pixels"}),
}


@dataclass(frozen=True)
class Rate:
    """Tokens, bits, bits per pixel, kilobits per second and compression ratio of every row.

    `bits_nominal` is Σ over streams of tokens·log2(codebook_size): what is sent when every index takes the same share
    of bits, fractions included. `bits_payload` is 8·len(payload), container and headers included. Both add
    `Code.side_bits`. `bits` is the nominal number where the tokenizer emits streams, else the payload's; rates are of
    `bits`. Continuous latents have no rate: `latent_values` counts their numbers instead.

    **Denominators are the reference's own extent**: its un-padded pixels (video: of every frame) and its true duration.
    The code is charged as emitted, so tokens spent on padding count against the tokenizer; tokens beyond
    `Stream.lengths` were not emitted and do not. Entropy-coded rates are the metric `codebook`'s.

    `compression_ratio` is the raw size over `bits`: 24 bits a pixel of RGB, 16 bits a sample and channel of PCM.

    Images have no `kbps`, `tokens_per_second` and `seconds`, sound no `bpp` and `pixels`: those columns are not
    returned. What the kind of code leaves open (tokens of a payload, bits of latents) is undefined, with the reason.
    The headline is the mean over rows; `bpp_pooled` and `kbps_pooled` are total bits over total pixels or seconds,
    which weighs large rows more.
    """

    undefined: ClassVar[Mapping[str, str]] = {
        "tokens": _NO_STREAM,
        "bits_nominal": _NO_STREAM,
        "bits_payload": "the tokenizer emits no payload",
        "bits": _CONTINUOUS,
        "bpp": _CONTINUOUS,
        "kbps": f"{_CONTINUOUS}, or {_NO_CLOCK}",
        "tokens_per_second": f"{_NO_STREAM}, or {_NO_CLOCK}",
        "compression_ratio": f"{_CONTINUOUS}; no ratio to 0 bits",
        "latent_values": "the tokenizer emits no continuous latents",
        "seconds": _NO_CLOCK,
        "bpp_pooled": _CONTINUOUS,
        "kbps_pooled": f"{_CONTINUOUS}, or {_NO_CLOCK}",
    }

    @property
    def spec(self) -> MetricSpec:
        """Columns and settings."""
        return MetricSpec(
            of_code=True,
            name="rate",
            modalities=("image", "video", "audio"),
            summary="Nominal and payload bits; bpp, kbps, token rate, compression ratio",
            protocol={"raw_bits": RAW_BITS, "denominator": "the reference, un-padded"},
            columns=(
                Column("bpp", "bit/pixel", False, "Bits per pixel (video: per pixel of a frame)", 1e-9, 4),
                Column("kbps", "kbit/s", False, "Kilobits (1000) per second", 1e-9, 3),
                Column("tokens_per_second", "tokens/s", False, "Tokens of all codebooks per second", 1e-9, 2),
                Column("compression_ratio", "", True, "24-bit RGB or 16-bit PCM over bits", 1e-9, 2),
                Column("tokens", "tokens", None, "Tokens of all codebooks", 0.0, 1),
                Column("latent_values", "values", None, "Numbers of the continuous code", 0.0, 1),
                Column(
                    "bits", "bit", None, "Nominal bits, or payload bits where no stream exists", 1e-9, 1, level=False
                ),
                Column("bits_nominal", "bit", None, "Σ tokens·log2(codebook_size) + side bits", 1e-9, 1, level=False),
                Column("bits_payload", "bit", None, "8·bytes + side bits", 0.0, 1, level=False),
                Column("pixels", "pixels", None, "Pixels of the reference, all frames", 0.0, 0, level=False),
                Column("seconds", "s", None, "Duration of the reference", 1e-12, 3, level=False),
                Column("bpp_pooled", "bit/pixel", False, "All bits over all pixels", 1e-9, 4, "corpus", level=False),
                Column("kbps_pooled", "kbit/s", False, "All bits over all seconds", 1e-9, 3, "corpus", level=False),
            ),
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return the row columns of the modality, (B,) float64 on the CPU, of a batch.

        Raises:
            ContractError: A stream, the latents or the payload do not have one entry per row, or a stream is malformed.
            UsageError: Sound has no sample rate.
        """
        rows = sample.reference.shape[0]
        extent = _Extent.of(sample)
        sizes = _sizes(sample.code, rows)
        table = [_row(size, extent) for size in sizes]
        absent = _ABSENT[sample.spec.modality]
        names = [c.name for c in self.spec.columns if c.where == "row" and c.name not in absent]
        return {name: torch.tensor([row[name] for row in table], dtype=torch.float64) for name in names}

    def summarise(self, rows: Mapping[str, Sequence[float | None]], groups: Sequence[str]) -> dict[str, float | None]:  # noqa: ARG002
        """Return total bits over total pixels and over total seconds, of the rows where both are defined.

        A denominator that no row has leaves its column out.
        """
        out: dict[str, float | None] = {}
        for name, denominator, unit in (("bpp_pooled", "pixels", 1), ("kbps_pooled", "seconds", 1000)):
            if any(value is not None for value in rows[denominator]):
                pooled = _pooled(rows["bits"], rows[denominator])
                out[name] = None if pooled is None else pooled / unit
        return out


@dataclass(frozen=True)
class _Extent:
    """How much signal one row of the reference holds; NaN where a quantity has no meaning."""

    pixels: float
    seconds: float
    raw_bits: int

    @classmethod
    def of(cls, sample: Sample) -> _Extent:
        shape, modality = sample.reference.shape, sample.spec.modality
        if modality == "audio":
            if not sample.sample_rate:
                raise UsageError("rate needs the sample rate in Hz of sound: set Sample.sample_rate")
            return cls(math.nan, shape[-1] / sample.sample_rate, RAW_BITS[modality] * math.prod(shape[1:]))
        pixels = math.prod(shape[2:])
        seconds = shape[2] / sample.fps if modality == "video" and sample.fps else math.nan
        return cls(pixels, seconds, RAW_BITS[modality] * pixels)


@dataclass(frozen=True)
class _Size:
    """What the code of one row amounts to; NaN where it has no such part."""

    tokens: float
    nominal: float
    payload: float
    latent_values: float


def _sizes(code: Code, rows: int) -> list[_Size]:
    """Return the size of every row's code."""
    if code.payload is not None and len(code.payload) != rows:
        raise ContractError(f"the code has {len(code.payload)} payloads for a batch of {rows} rows")
    if code.latents is not None and (code.latents.ndim < 1 or code.latents.shape[0] != rows):
        raise ContractError(f"latents of shape {tuple(code.latents.shape)} for a batch of {rows} rows")
    values = math.nan if code.latents is None else float(math.prod(code.latents.shape[1:]))
    tokens = [(_tokens(stream, rows), math.log2(stream.codebook_size)) for stream in code.streams]
    payloads = [math.nan] * rows if code.payload is None else [8 * len(data) + code.side_bits for data in code.payload]
    return [
        _Size(
            tokens=float(sum(counts[row] for counts, _ in tokens)) if tokens else math.nan,
            nominal=math.fsum([*(n[row] * bits for n, bits in tokens), code.side_bits]) if tokens else math.nan,
            payload=payloads[row],
            latent_values=values,
        )
        for row in range(rows)
    ]


def _tokens(stream: Stream, rows: int) -> list[int]:
    """Return the tokens each row emitted into a stream."""
    check_stream(stream, rows)
    if stream.lengths is None:
        return [math.prod(stream.indices.shape[1:])] * rows
    each = math.prod(stream.indices.shape[1:-1])
    return [each * int(length) for length in stream.lengths.tolist()]


def _row(size: _Size, extent: _Extent) -> dict[str, float]:
    bits = size.payload if math.isnan(size.nominal) else size.nominal
    return {
        "tokens": size.tokens,
        "bits_nominal": size.nominal,
        "bits_payload": size.payload,
        "bits": bits,
        "bpp": _per(bits, extent.pixels),
        "kbps": _per(bits, extent.seconds) / 1000,
        "tokens_per_second": _per(size.tokens, extent.seconds),
        "compression_ratio": _per(extent.raw_bits, bits),
        "latent_values": size.latent_values,
        "pixels": extent.pixels,
        "seconds": extent.seconds,
    }


def _per(amount: float, of: float) -> float:
    return amount / of if of else math.nan


def _pooled(amounts: Sequence[float | None], ofs: Sequence[float | None]) -> float | None:
    pairs = [(a, of) for a, of in zip(amounts, ofs, strict=True) if a is not None and of is not None]
    total = math.fsum(of for _, of in pairs)
    return math.fsum(a for a, _ in pairs) / total if total else None
