"""One batch through a tokenizer: canonical range in, padded and timed encode and decode, un-padded and rounded out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
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
from tokbench.types import Code, Sample, Tokenizer

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
    spec = tokenizer.spec
    reference = to_canonical(np.stack([item.signal for item in items]), protocol.modality, engine.device)
    rate = items[0].sample_rate
    fed = _at_tokenizer_rate(reference, spec, rate)
    x = to_range(fed, spec.input_range, protocol.modality)
    padded, un = pad_to_stride(x, spec.downsample, spec.frames)
    with _seeded(spec, engine, items):
        code, encode_seconds = _timed(lambda: tokenizer.encode(_cast(tokenizer, padded, engine)), engine.device)
        decoded, decode_seconds = _timed(lambda: tokenizer.decode(code), engine.device)
    decoded = decoded.to(device=engine.device, dtype=torch.float32)
    length_error = 0
    if protocol.modality == "audio":
        if decoded.ndim != 3 or decoded.shape[:2] != padded.shape[:2]:
            raise ContractError(f"{spec.name}: decode returned {tuple(decoded.shape)} for input {tuple(padded.shape)}")
        decoded, length_error = fit_length(decoded, padded.shape[-1])
    if decoded.shape != padded.shape:
        raise ContractError(f"{spec.name}: decode returned {tuple(decoded.shape)} for input {tuple(padded.shape)}")
    raw = from_range(unpad(decoded, un), spec.input_range, protocol.modality)
    raw = _at_protocol_rate(raw, reference, spec, rate)
    if not bool(torch.isfinite(raw).all()):
        raise ContractError(f"{spec.name}: decode returned values that are not finite")
    samples = _samples(tokenizer, items, protocol, reference, raw, code)
    return Reconstructed(samples, encode_seconds, decode_seconds, length_error)


def _samples(
    tokenizer: Tokenizer, items: list[Item], protocol: EvalProtocol, reference: Tensor, raw: Tensor, code: Code
) -> tuple[Sample, ...]:
    sound = protocol.modality == "audio"
    reconstruction = raw.clamp(-1.0, 1.0) if sound else round_8bit(raw, protocol.rounding)
    whole = Sample(
        keys=tuple(item.key for item in items),
        reference=reference,
        reconstruction=reconstruction,
        raw=raw,
        code=code,
        spec=tokenizer.spec,
        sample_rate=items[0].sample_rate,
        fps=items[0].fps,
        groups=tuple(item.group for item in items),
        annotations=tuple(item.annotations for item in items),
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


@contextmanager
def _seeded(spec: TokenizerSpec, engine: Engine, items: list[Item]) -> Iterator[None]:
    """Seed torch by (seed, key) for a tokenizer that draws random numbers; such a tokenizer is run one row at a time."""
    if spec.deterministic:
        yield
        return
    if len(items) != 1:
        raise ContractError(f"{spec.name} is stochastic: its rows are seeded one by one, got a batch of {len(items)}")
    seed = int.from_bytes(hashlib.sha256(f"{engine.seed}:{items[0].key}".encode()).digest()[:8], "big") >> 1
    devices = [engine.device] if engine.device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
