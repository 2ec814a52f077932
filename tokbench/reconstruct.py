"""One batch through a tokenizer: canonical range in, padded and timed encode and decode, un-padded and rounded out."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from tokbench.data import Item
from tokbench.data.types import Array
from tokbench.device import DTYPES, synchronize
from tokbench.errors import ContractError, NotApplicable, UsageError
from tokbench.prepare.audio import resample
from tokbench.prepare.image import restore_image
from tokbench.prepare.signal import fit_length, from_range, pad_to_stride, round_8bit, to_canonical, to_range, unpad
from tokbench.spec import EvalProtocol, TokenizerSpec
from tokbench.types import Code, LatentSource, Sample, Tokenizer, take_code

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
        items: Of one shape, rate and padding; sounds of several lengths for a `padding_safe` tokenizer.
        protocol: Fixes rounding and the meaning of the signals.
        engine: Device, tokenizer dtype and seed.

    Raises:
        ContractError: The decoder returned another shape than it was given, or a value that is not finite.
    """
    reference = to_canonical(_stacked(items), protocol.modality, engine.device)
    codec = BatchCodec(tokenizer, protocol, engine, tuple(reference.shape), items[0].sample_rate)
    x = codec.feed(reference)
    with codec.seeded([item.key for item in items]):
        code, encode_seconds = _timed(lambda: tokenizer.encode(x), engine.device)
        if not isinstance(code, Code):
            raise ContractError(
                f"{tokenizer.spec.name}: encode returned {_kind(code)}, not tokbench.types.Code; see docs/add-a-tokenizer.md"
            )
        if tokenizer.spec.encode_only:
            # What a metric must not use is not a number, so that one that does use it cannot go unnoticed.
            return Reconstructed(
                _parts(codec, items, reference, torch.full_like(reference, math.nan), code), encode_seconds, 0.0
            )
        decoded, decode_seconds = _timed(lambda: tokenizer.decode(code), engine.device)
    raw, length_error = codec.read(decoded, len(items))
    return Reconstructed(_parts(codec, items, reference, raw, code), encode_seconds, decode_seconds, length_error)


def _stacked(items: list[Item]) -> Array:
    """Stack the signals; sounds of different lengths get zeros at their ends."""
    longest = max(item.signal.shape[-1] for item in items)
    if all(item.signal.shape[-1] == longest for item in items):
        return np.stack([item.signal for item in items])
    return np.stack([np.pad(item.signal, ((0, 0), (0, longest - item.signal.shape[-1]))) for item in items])


def _parts(codec: BatchCodec, items: list[Item], reference: Tensor, raw: Tensor, code: Code) -> tuple[Sample, ...]:
    """Return what metrics see: the batch, or one sample a row where lengths differ, each cut to its own length."""
    lengths = [item.signal.shape[-1] for item in items]
    if len(set(lengths)) == 1:
        return _samples(codec, items, reference, raw, code)
    fed = [codec.fed_length(length) for length in lengths]
    found: tuple[Sample, ...] = ()
    for index, (item, length) in enumerate(zip(items, lengths, strict=True)):
        one = slice(index, index + 1)
        own = replace(codec, shape=(1, *codec.shape[1:-1], length))
        cut = _cut_code(take_code(code, index), fed[index], max(fed))
        found += _samples(own, [item], reference[one, ..., :length], raw[one, ..., :length], cut)
    return found


def _kind(value: object) -> str:
    """Return a type as a message names it; of a library's own output, torch's or diffusers', the class."""
    return "nothing" if value is None else f"a {type(value).__name__}"


def _cut_code(code: Code, fed: int, longest: int) -> Code:
    """Cut a row's code to the tokens and latents of its own `fed` samples, of the `longest` that the batch was padded to."""

    def own(x: Tensor) -> Tensor:
        return x[..., : -(-x.shape[-1] * fed // longest)]

    return replace(
        code,
        streams=tuple(replace(stream, indices=own(stream.indices), lengths=None) for stream in code.streams),
        latents=None if code.latents is None else own(code.latents),
    )


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
        if not isinstance(decoded, Tensor):
            raise ContractError(f"{spec.name}: decode returned {_kind(decoded)}, not a tensor")
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

    def fed_length(self, samples: int) -> int:
        """Return how long a sound of that many samples is when the tokenizer sees it."""
        like = torch.empty((1, *self.shape[1:-1], samples), device="meta")
        spec = self.tokenizer.spec
        return pad_to_stride(_at_tokenizer_rate(like, spec, self.rate), spec.downsample, spec.frames)[0].shape[-1]

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
