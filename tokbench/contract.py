"""What every tokenizer must obey before its numbers may be published; `tokbench check`, the engine and the tests use it."""

from __future__ import annotations

import hashlib
import inspect
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tokbench.capabilities import false_claims, unclaimed
from tokbench.data import Item
from tokbench.errors import TokbenchError
from tokbench.reconstruct import BatchCodec, Engine, Reconstructed, reconstruct
from tokbench.spec import AudioPrepare, EvalProtocol, ImagePrepare, TokenizerSpec, VideoPrepare
from tokbench.types import Code, Tokenizer

Verdict = Literal["pass", "fail", "warn", "skip"]
_TOKENS = "tokens"


@dataclass(frozen=True)
class Check:
    """One rule and what came of it. `fail` bars a result from boards; `warn` is for a reader to judge."""

    name: str
    verdict: Verdict
    detail: str = ""


def check(tokenizer: Tokenizer, engine: Engine, *, trained: bool = True) -> list[Check]:
    """Run every check of the contract on small deterministic probes.

    Checks: spec, code (kind, dtype, index range, declared codebooks), the digest of the tokens, shape, range, determinism,
    batch = single, odd sizes, rate (declared = emitted), gain, and for sound length, delay, and padding where it is declared
    safe; that what it declares to offer is there and works. Of a tokenizer that cannot decode: those of its code.

    Args:
        tokenizer: On `engine.device` already.
        engine: Device, dtype and seed.
        trained: False for weights that are random: range, gain and delay of a reconstruction then say nothing and are
            skipped; all that does not depend on training is checked.
    """
    spec = tokenizer.spec
    found: list[Check] = [_spec(spec)]
    if found[0].verdict == "fail":
        return found
    items = probes(spec, 2)
    try:
        with torch.inference_mode():
            one = _each(tokenizer, items, engine)
            again = _each(tokenizer, items, engine)
            both = one if not spec.deterministic else [_run(tokenizer, items, engine)]
            odd = None if spec.native_size else _each(tokenizer, probes(spec, 1, odd=True), engine)
            offers = _capabilities(tokenizer, one[0])
            ragged = spec.padding_safe and spec.modality == "audio"
            long = [_longer(items[0])] if ragged else []
            alone = _each(tokenizer, long, engine)
            padded = [_run(tokenizer, [*long, *items[:1]], engine)] if ragged else []
    except Exception as error:
        text = (
            str(error)
            if isinstance(error, TokbenchError)
            else f"{type(error).__name__}: {error}{_line(tokenizer, error)}"
        )
        return [*found, Check("runs", "fail", " ".join(text.split())[:300])]
    found.append(Check("runs", "pass"))
    found += [_code(spec, result.samples[0].code) for result in one[:1]]
    found.append(Check(_TOKENS, "pass", code_digest([result.samples[0].code for result in one])))
    found.append(offers)
    if spec.encode_only:
        again_codes, both_codes = [_codes(result) for result in again], [_codes(result) for result in both]
        found.append(_same("deterministic", [_codes(result) for result in one], again_codes, 0.0))
        near_ties = 0.0 if spec.batch_exact else 1e-3
        found.append(_same("batch = single", [_codes(result) for result in one], both_codes, near_ties))
        return [*found, _rate(spec, one[0]), Check("decode", "skip", "no decoder was published")]
    untrained = "the weights are not trained"
    found.append(_range(spec, one) if trained else Check("range", "skip", untrained))
    found.append(_deterministic(spec, one, again))
    found.append(_batch(spec, one, both))
    found.append(Check("odd sizes", "pass" if odd else "skip", "" if odd else "works at one size only"))
    found.append(_rate(spec, one[0]))
    found.append(_gain(one) if trained else Check("gain", "skip", untrained))
    if spec.modality == "audio":
        off = max((result.length_error for result in one), key=abs)
        found.append(Check("length", "warn" if off else "pass", f"decode returned {off:+d} samples" if off else ""))
        found.append(_delay(one) if trained else Check("delay", "skip", untrained))
    if padded:
        found.append(_padding(spec, alone[0], one[0], padded[0]))
    return found


def _line(tokenizer: Tokenizer, error: Exception) -> str:
    """Return where in the file of the tokenizer's class an error came from, or an empty string."""
    try:
        home = inspect.getfile(type(tokenizer))
    except (TypeError, OSError):
        return ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == home]
    return f" ({Path(home).name}, line {lines[-1]})" if lines else ""


def passed(checks: list[Check]) -> bool:
    """Tell whether no check failed."""
    return all(item.verdict != "fail" for item in checks)


def token_digest(checks: list[Check]) -> str | None:
    """Return the sha256 of what the tokenizer emits on the fixed probes, or None when it does not run on them."""
    return next((item.detail for item in checks if item.name == _TOKENS), None)


def code_digest(codes: list[Code]) -> str:
    """Return the sha256 of codes: indices, the bytes of latents and side tensors, payloads, with shapes and types.

    Equal digests mean that the encoder did not change; different ones may also come of another machine, where
    floating-point latents differ in their last bits.
    """
    found = hashlib.sha256()

    def add(label: str, tensor: Tensor) -> None:
        # flatten alone may keep a stride that a one-element view cannot reinterpret
        array = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        found.update(f"{label} {array.dtype} {tuple(array.shape)}\n".encode())
        found.update(array.flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b"")

    for code in codes:
        for stream in code.streams:
            add(f"{stream.codebook}/{stream.codebook_size}", stream.indices)
            if stream.lengths is not None:
                add("lengths", stream.lengths)
        if code.latents is not None:
            add("latents", code.latents)
        for row in code.payload or ():
            found.update(f"payload {len(row)}\n".encode() + row)
        for name in sorted(code.side):
            add(f"side/{name}", code.side[name])
    return found.hexdigest()


def probes(spec: TokenizerSpec, count: int, *, odd: bool = False) -> list[Item]:
    """Return small deterministic signals a tokenizer must accept: smooth shapes with texture, or chirps with noise.

    Args:
        spec: Fixes modality, stride, size and rate.
        count: How many.
        odd: Sizes that no stride divides.
    """
    rng = np.random.Generator(np.random.PCG64(7))
    items = []
    for index in range(count):
        if spec.modality == "audio":
            rate = spec.sample_rate or 24_000
            time = np.arange(rate + (37 if odd else 0)) / rate
            sweep = 0.4 * np.sin(
                2 * math.pi * (120 * time + (900 + 300 * index) * time**2 / 2)
            ) + 0.02 * rng.standard_normal(len(time))
            signal = np.tile(sweep.astype(np.float32), (spec.channels or 1, 1))
            items.append(Item(key=f"probe-{index}", group="probe", signal=signal, sample_rate=rate))
            continue
        height, width = spec.native_size or _probe_size(spec, odd)
        frames = spec.frames.next_valid(5) if spec.modality == "video" else 1
        picture = _picture(rng, frames, height, width, index)
        signal_8bit = picture if spec.modality == "video" else picture[:, 0]
        fps = 25.0 if spec.modality == "video" else None
        items.append(Item(key=f"probe-{index}", group="probe", signal=signal_8bit, fps=fps))
    return items


def _probe_size(spec: TokenizerSpec, odd: bool) -> tuple[int, int]:
    stride = max(spec.downsample[-2:], default=1)
    side = max(64, 2 * stride)
    return (side + 5, side + 13) if odd else (side, side)


def _picture(rng: np.random.Generator, frames: int, height: int, width: int, index: int) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[0:height, 0:width]
    out = np.empty((3, frames, height, width), np.uint8)
    texture = rng.standard_normal((height, width)) * 6
    for channel in range(3):
        for t in range(frames):
            wave = np.sin((x + 3 * t) / (9 + 4 * channel) + index) + np.cos(y / (11 + 3 * channel))
            out[channel, t] = np.clip(128 + 45 * wave + texture, 0, 255)
    return out


def _protocol(spec: TokenizerSpec) -> EvalProtocol:
    prepare = {
        "image": ImagePrepare("native", None), "video": VideoPrepare("native", None), "audio": AudioPrepare(None)
    }[spec.modality]  # fmt: skip
    return EvalProtocol(modality=spec.modality, prepare=prepare, rounding="none")  # type: ignore[arg-type]


def _run(tokenizer: Tokenizer, items: list[Item], engine: Engine) -> Reconstructed:
    return reconstruct(tokenizer, items, _protocol(tokenizer.spec), engine)


def _each(tokenizer: Tokenizer, items: list[Item], engine: Engine) -> list[Reconstructed]:
    return [_run(tokenizer, [item], engine) for item in items]


def _spec(spec: TokenizerSpec) -> Check:
    axes = {"image": 2, "video": 3, "audio": 1}[spec.modality]
    problems = []
    if spec.input_range[0] >= spec.input_range[1]:
        problems.append(f"input_range {spec.input_range} is empty")
    if spec.downsample and len(spec.downsample) != axes:
        problems.append(f"downsample has {len(spec.downsample)} axes, {spec.modality} has {axes}")
    if any(stride < 1 for stride in spec.downsample):
        problems.append("a stride is below 1")
    if any(size < 2 for size in spec.codebook_size):
        problems.append("a codebook has fewer than 2 entries")
    return Check("spec", "fail" if problems else "pass", "; ".join(problems))


def _code(spec: TokenizerSpec, code: Code) -> Check:
    problems = []
    if spec.kind == "discrete":
        if not code.streams:
            problems.append("kind is discrete but encode emitted no stream")
        for stream in code.streams:
            low, high = int(stream.indices.min()), int(stream.indices.max())
            if stream.indices.dtype != torch.int64:
                problems.append(f"indices of {stream.codebook} are {stream.indices.dtype}, not int64")
            if low < 0 or high >= stream.codebook_size:
                problems.append(
                    f"indices of {stream.codebook} span {low}..{high}, the codebook has {stream.codebook_size}"
                )
        sizes = tuple(stream.codebook_size for stream in code.streams)
        if spec.codebook_size and set(spec.codebook_size) != set(sizes):
            problems.append(f"declared codebooks {spec.codebook_size}, emitted {sizes}")
    if spec.kind == "continuous" and (code.latents is None or not code.latents.is_floating_point()):
        problems.append("kind is continuous but encode emitted no floating-point latents")
    if (
        spec.kind == "continuous"
        and code.latents is not None
        and spec.latent_channels not in {None, code.latents.shape[1]}
    ):
        problems.append(f"declared {spec.latent_channels} latent channels, emitted {code.latents.shape[1]}")
    if spec.kind == "payload" and (not code.payload or not all(isinstance(row, bytes) for row in code.payload)):
        problems.append("kind is payload but encode emitted no bytes")
    return Check("code", "fail" if problems else "pass", "; ".join(problems[:3]))


def _capabilities(tokenizer: Tokenizer, result: Reconstructed) -> Check:
    problems, silent = false_claims(tokenizer, result.samples[0]), unclaimed(tokenizer)
    if problems:
        return Check("capabilities", "fail", "; ".join(problems))
    if silent:
        return Check("capabilities", "warn", f"there but not declared: {', '.join(silent)}")
    return Check("capabilities", "pass", ", ".join(tokenizer.spec.capabilities))


def _range(spec: TokenizerSpec, results: list[Reconstructed]) -> Check:
    low = min(float(r.samples[0].raw.min()) for r in results)
    high = max(float(r.samples[0].raw.max()) for r in results)
    bottom, top = (-1.0, 1.0) if spec.modality == "audio" else (0.0, 1.0)
    slack = top - bottom
    ok = low >= bottom - slack and high <= top + slack
    return Check("range", "pass" if ok else "fail", f"canonical {low:.3f}..{high:.3f}")


def _deterministic(spec: TokenizerSpec, one: list[Reconstructed], again: list[Reconstructed]) -> Check:
    same = all(torch.equal(a.samples[0].raw, b.samples[0].raw) for a, b in zip(one, again, strict=True))
    note = "" if spec.deterministic else "stochastic, seeded by sample"
    return Check("deterministic", "pass" if same else "fail", note if same else "two runs on one input differ")


def _batch(spec: TokenizerSpec, one: list[Reconstructed], both: list[Reconstructed]) -> Check:
    if not spec.deterministic:
        return Check("batch = single", "skip", "stochastic: rows are run one by one")
    single = torch.cat([result.samples[0].raw for result in one])
    batch = both[0].samples[0].raw
    gap = float((single - batch).abs().max())
    allowed = 0.0 if spec.batch_exact else spec.batch_atol
    detail = f"largest difference {gap:.2e}, declared {'exact' if spec.batch_exact else f'{allowed:g}'}"
    return Check("batch = single", "pass" if gap <= allowed else "fail", detail)


def _longer(item: Item) -> Item:
    """Return a sound half as long again and a bit, so that in a batch the other is padded by several frames."""
    more = np.concatenate([item.signal, item.signal[:, : item.signal.shape[1] // 2 + 37]], axis=1)
    return replace(item, key="probe-longer", signal=more)


def _padding(spec: TokenizerSpec, longer: Reconstructed, shorter: Reconstructed, both: Reconstructed) -> Check:
    """Two sounds of different lengths in one batch against each alone."""
    alone = [result.samples[0].raw for result in (longer, shorter)]
    gaps = [float((a - sample.raw).abs().max()) for a, sample in zip(alone, both.samples, strict=True)]
    counts = [[s.indices.shape for s in result.samples[0].code.streams] for result in (longer, shorter)]
    batched = [[s.indices.shape for s in sample.code.streams] for sample in both.samples]
    if counts != batched:
        return Check("padding", "fail", f"tokens alone {counts}, in a padded batch {batched}")
    gap, allowed = max(gaps), 0.0 if spec.batch_exact else spec.batch_atol
    return Check("padding", "pass" if gap <= allowed else "fail", f"largest difference {gap:.2e}")


def _codes(result: Reconstructed) -> Tensor:
    """Return the indices of a batch as one (B, N) tensor."""
    streams = [s.indices.flatten(1) for sample in result.samples for s in sample.code.streams]
    return torch.cat(streams, dim=1)


def _same(name: str, expected: list[Tensor], found: list[Tensor], allowed: float) -> Check:
    share = float((torch.cat(expected) != torch.cat(found)).double().mean())
    return Check(name, "pass" if share <= allowed else "fail", f"{share:.2%} of the indices differ" if share else "")


def _rate(spec: TokenizerSpec, result: Reconstructed) -> Check:
    sample = result.samples[0]
    tokens = sum(stream.indices[0].numel() for stream in sample.code.streams)
    if spec.kind != "discrete":
        return Check("rate", "skip", f"{spec.kind} code")
    bits = sum(stream.indices[0].numel() * math.log2(stream.codebook_size) for stream in sample.code.streams)
    if spec.modality == "audio" and sample.sample_rate:
        assert isinstance(sample.codec, BatchCodec)
        fed = sample.codec.fed_length(sample.reference.shape[-1])
        seconds = fed / (spec.sample_rate or sample.sample_rate)
        emitted = tokens / seconds
        # What it was fed may end inside a frame: up to one more frame a codebook than the nominal rate.
        slack = max(1, len(sample.code.streams)) / seconds
        wrong = spec.token_rate is not None and not -0.01 <= emitted - spec.token_rate <= slack + 0.01
        detail = f"{emitted:.1f} tokens/s, {bits / seconds / 1000:.3f} kbps"
        return Check("rate", "fail" if wrong else "pass", detail + (f", declared {spec.token_rate:g}" if wrong else ""))
    pixels = math.prod(sample.reference.shape[2:])
    return Check("rate", "pass", f"{tokens} tokens, {bits / pixels:.4f} bits a pixel")


def _gain(results: list[Reconstructed]) -> Check:
    x = torch.cat([result.samples[0].reference.flatten() for result in results]).double()
    y = torch.cat([result.samples[0].raw.flatten() for result in results]).double()
    x, y = x - x.mean(), y - y.mean()
    correlation = float((x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-12))
    gain = float((x * y).sum() / (x * x).sum().clamp_min(1e-12))
    if correlation < 0.8:
        return Check("gain", "warn", f"probe not reconstructed (correlation {correlation:.2f})")
    return Check("gain", "pass" if 0.7 < gain < 1.3 else "fail", f"gain {gain:.3f}, correlation {correlation:.3f}")


def _delay(results: list[Reconstructed]) -> Check:
    sample = results[0].samples[0]
    lag, peak = best_lag(sample.reference[0, 0], sample.raw[0, 0])
    if peak < 0.5:
        return Check("delay", "skip", f"probe not reconstructed (correlation {peak:.2f})")
    return Check("delay", "pass" if lag == 0 else "warn", f"{lag:+d} samples")


def best_lag(reference: Tensor, other: Tensor, limit: int = 2048) -> tuple[int, float]:
    """Return the shift of `other` against `reference`, both (T,), that correlates best, and that correlation.

    Positive: `other` is late. Searched within ±`limit` samples by FFT.
    """
    a, b = reference.double().cpu(), other.double().cpu()
    size = 1 << (len(a) + len(b) - 1).bit_length()
    product: Callable[[Tensor], Tensor] = lambda s: torch.fft.irfft(s, size)  # noqa: E731
    xcorr = product(torch.fft.rfft(a, size).conj() * torch.fft.rfft(b, size))
    lags = torch.cat([torch.arange(0, limit + 1), torch.arange(-limit, 0)])
    window = xcorr[lags % size]
    index = int(window.argmax())
    norm = float(a.norm() * b.norm())
    return int(lags[index]), float(window[index]) / norm if norm else 0.0
