"""One batch through a tokenizer: canonical range in, padded and timed encode and decode, un-padded and rounded out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from tokbench.data import Item
from tokbench.device import DTYPES, synchronize
from tokbench.errors import ContractError, NotApplicable, UsageError
from tokbench.prepare.audio import resample
from tokbench.prepare.image import restore_image
from tokbench.prepare.signal import fit_length, from_range, pad_to_stride, round_8bit, to_canonical, to_range, unpad
from tokbench.spec import EvalProtocol, TokenizerSpec
from tokbench.types import Code, LatentSource, Sample, Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Engine:
    """Where and how a tokenizer runs. `dtype` is the tokenizer's; everything around it is float32."""

    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0


@dataclass(frozen=True)
class Reconstructed:
    """A batch after decode, with what it took.

    Attributes:
        samples: What metrics see; one for the batch, or one a row where rows go back to their own sizes.
        length_error: Samples the decoder returned more (+) or fewer (-) than it was given; sound only.
    """

    samples: tuple[Sample, ...]
    encode_seconds: float
    decode_seconds: float
    length_error: int = 0


def reconstruct(tokenizer: Tokenizer, items: list[Item], protocol: EvalProtocol, engine: Engine) -> Reconstructed:
    """Encode and decode a batch of equally shaped items.

    Args:
        tokenizer: Moved to `engine.device` already.
        items: Of one shape, rate and padding.
        protocol: Fixes rounding and the meaning of the signals.
        engine: Device, tokenizer dtype and seed.

    Raises:
        ContractError: The decoder returned another shape than it was given, or a value that is not finite.
    """
    reference = to_canonical(np.stack([item.signal for item in items]), protocol.modality, engine.device)
    codec = BatchCodec(tokenizer, protocol, engine, tuple(reference.shape), items[0].sample_rate)
    x = codec.feed(reference)
    with codec.seeded([item.key for item in items]):
        code, encode_seconds = _timed(lambda: tokenizer.encode(x), engine.device)
        decoded, decode_seconds = _timed(lambda: tokenizer.decode(code), engine.device)
    raw, length_error = codec.read(decoded, len(items))
    samples = _samples(codec, items, reference, raw, code)
    return Reconstructed(samples, encode_seconds, decode_seconds, length_error)


@dataclass(frozen=True)
class BatchCodec:
    """A tokenizer with what the engine does around it, for batches of one shape; a `tokbench.types.Codec`.

    Attributes:
        shape: Of the canonical signals: (B, 3, H, W), (B, 3, T, H, W) or (B, C, T); another B is fine.
        rate: Hz of the canonical signals (audio), else None.
    """

    tokenizer: Tokenizer
    protocol: EvalProtocol
    engine: Engine
    shape: tuple[int, ...]
    rate: int | None = None

    @property
    def seed(self) -> int:
        """Return the protocol's seed."""
        return self.engine.seed

    def encode(self, x: Tensor, keys: Sequence[str]) -> Code:
        """Map canonical signals to a code, see `tokbench.types.Codec`."""
        with self.seeded(keys):
            return self.tokenizer.encode(self.feed(x))

    def decode(self, code: Code, keys: Sequence[str]) -> Tensor:
        """Map a code to canonical signals, neither clamped nor rounded, see `tokbench.types.Codec`."""
        with self.seeded(keys):
            decoded = self.tokenizer.decode(code)
        return self.read(decoded, len(keys))[0]

    def finish(self, raw: Tensor) -> Tensor:
        """Clamp to the canonical range and round as the protocol says."""
        return raw.clamp(-1.0, 1.0) if self.protocol.modality == "audio" else round_8bit(raw, self.protocol.rounding)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what the quantizer of a codebook saw of the signals, see `tokbench.types.Codec`."""
        if not isinstance(self.tokenizer, LatentSource):
            raise NotApplicable(f"{self.tokenizer.spec.name} does not show its latents before quantization")
        return self.tokenizer.unquantized(self.feed(x), codebook)

    def feed(self, x: Tensor) -> Tensor:
        """Bring canonical signals to the tokenizer's rate, channels, range, size and dtype."""
        spec = self.tokenizer.spec
        ranged = to_range(_at_tokenizer_rate(x, spec, self.rate), spec.input_range, self.protocol.modality)
        return _cast(self.tokenizer, pad_to_stride(ranged, spec.downsample, spec.frames)[0], self.engine)

    def read(self, decoded: Tensor, rows: int) -> tuple[Tensor, int]:
        """Undo `feed` on what the decoder returned.

        Returns:
            Canonical signals, float32, neither clamped nor rounded; and by how many samples sound was too long (+).

        Raises:
            ContractError: Another shape than the decoder was given, or a value that is not finite.
        """
        spec, modality = self.tokenizer.spec, self.protocol.modality
        like = torch.empty((rows, *self.shape[1:]), device="meta")
        fed = _at_tokenizer_rate(like, spec, self.rate) if modality == "audio" else like
        padded, un = pad_to_stride(fed, spec.downsample, spec.frames)
        decoded = decoded.to(device=self.engine.device, dtype=torch.float32)
        shapes = f"{spec.name}: decode returned {tuple(decoded.shape)} for input {tuple(padded.shape)}"
        length_error = 0
        if modality == "audio":
            if decoded.ndim != 3 or decoded.shape[:2] != padded.shape[:2]:
                raise ContractError(shapes)
            decoded, length_error = fit_length(decoded, padded.shape[-1])
        if decoded.shape != padded.shape:
            raise ContractError(shapes)
        raw = from_range(unpad(decoded, un), spec.input_range, modality)
        raw = _at_protocol_rate(raw, like, spec, self.rate)
        if not bool(torch.isfinite(raw).all()):
            raise ContractError(f"{spec.name}: decode returned values that are not finite")
        return raw, length_error

    @contextmanager
    def seeded(self, keys: Sequence[str]) -> Iterator[None]:
        """Seed torch by (seed, key) for a tokenizer that draws random numbers; such a tokenizer is run one row at a time."""
        spec = self.tokenizer.spec
        if spec.deterministic:
            yield
            return
        if len(keys) != 1:
            raise ContractError(
                f"{spec.name} is stochastic: its rows are seeded one by one, got a batch of {len(keys)}"
            )
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}:{keys[0]}".encode()).digest()[:8], "big") >> 1
        devices = [self.engine.device] if self.engine.device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield


def _samples(codec: BatchCodec, items: list[Item], reference: Tensor, raw: Tensor, code: Code) -> tuple[Sample, ...]:
    protocol = codec.protocol
    reconstruction = codec.finish(raw)
    whole = Sample(
        keys=tuple(item.key for item in items),
        reference=reference,
        reconstruction=reconstruction,
        raw=raw,
        code=code,
        spec=codec.tokenizer.spec,
        sample_rate=items[0].sample_rate,
        fps=items[0].fps,
        groups=tuple(item.group for item in items),
        annotations=tuple(item.annotations for item in items),
        codec=codec,
    )
    original, padding = items[0].original, items[0].padding
    if original is None or padding is None:
        return (whole,)
    if protocol.rounding == "none":
        raise UsageError("preset tokbench-pad restores 8-bit images; set rounding to round or truncate")
    height, width = original.shape[-2:]
    eight_bit = (reconstruction * 255).round().to(torch.uint8).cpu().numpy()
    restored = np.stack([restore_image(row, padding, (height, width)) for row in eight_bit])
    back = to_canonical(restored, protocol.modality, reference.device.type)
    originals = np.stack([item.original for item in items if item.original is not None])
    return (
        Sample(
            keys=whole.keys,
            reference=to_canonical(originals, protocol.modality, str(reference.device)),
            reconstruction=back.to(reference.device),
            raw=back.to(reference.device),
            code=code,
            spec=whole.spec,
            groups=whole.groups,
            annotations=whole.annotations,
        ),
    )


def _at_tokenizer_rate(reference: Tensor, spec: TokenizerSpec, rate: int | None) -> Tensor:
    if spec.modality != "audio" or rate is None:
        return reference
    x = reference if spec.sample_rate in {None, rate} else resample(reference, rate, spec.sample_rate or rate)
    have, want = x.shape[1], spec.channels or x.shape[1]
    if have == want:
        return x
    if have == 1:
        return x.expand(-1, want, -1).contiguous()
    raise NotApplicable(f"{spec.name} takes {want} channel(s), the recording has {have}; use a mono protocol")


def _at_protocol_rate(raw: Tensor, reference: Tensor, spec: TokenizerSpec, rate: int | None) -> Tensor:
    if spec.modality != "audio" or rate is None:
        return raw
    if raw.shape[1] != reference.shape[1]:
        raw = raw.mean(dim=1, keepdim=True)
    if spec.sample_rate not in {None, rate}:
        raw = resample(raw, spec.sample_rate or rate, rate)
    return fit_length(raw, reference.shape[-1])[0]


def _cast(tokenizer: Tokenizer, x: Tensor, engine: Engine) -> Tensor:
    return x.to(DTYPES[engine.dtype]) if hasattr(tokenizer, "to") else x


def _timed(call: Callable[[], T], device: str) -> tuple[T, float]:
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return result, time.perf_counter() - start
