"""Holds what a tokenizer declares to offer (`TokenizerSpec.capabilities`) to what is there, by using it once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch

from tokbench.errors import NotApplicable
from tokbench.spec import Capability
from tokbench.types import Codec, Droppable, LatentSource, Neighbouring, Sample, Tokenizer

_METHODS: Mapping[Capability, type] = MappingProxyType(
    {"neighbours": Neighbouring, "unquantized": LatentSource, "drop": Droppable, "prefix": Droppable}
)


def false_claims(tokenizer: Tokenizer, sample: Sample) -> list[str]:
    """Return what is declared and does not hold on a batch that went through the engine; an empty list when all does.

    Args:
        tokenizer: Under test.
        sample: What `tokbench.reconstruct` made of a batch; it holds the codec.
    """
    claims = tokenizer.spec.capabilities
    lacking = [name for name in claims if name in _METHODS and not isinstance(tokenizer, _METHODS[name])]
    if lacking:
        return [f"declared but not there: {', '.join(lacking)}"]
    if not sample.code.streams and (of_tokens := {"neighbours", "unquantized", "edit"} & set(claims)):
        return [f"no tokens are emitted, but declared is {', '.join(sorted(of_tokens))}"]
    assert sample.codec is not None
    tests: Mapping[str, Callable[[Sample, Codec], str]] = {
        "neighbours": _neighbours, "unquantized": _unquantized, "edit": _edit, "drop": _drop
    }  # fmt: skip
    found = [tests[name](sample, sample.codec) for name in claims if name in tests]
    return [problem for problem in found if problem]


def unclaimed(tokenizer: Tokenizer) -> list[str]:
    """Return the methods a discrete tokenizer has and does not declare, so that metrics pass it by."""
    spec = tokenizer.spec
    there = [name for name in ("neighbours", "drop") if isinstance(tokenizer, _METHODS[name])]
    return [name for name in there if name not in spec.capabilities] if spec.kind == "discrete" else []


def _neighbours(sample: Sample, codec: Codec) -> str:
    stream = sample.code.streams[0]
    flat = stream.indices.flatten()
    half = torch.full((len(flat),), 0.5, dtype=torch.float64, device=flat.device)
    assert isinstance(codec.tokenizer, Neighbouring)
    near = codec.tokenizer.neighbours(stream.codebook).choose(flat, 1, half)
    other = bool((near != flat).all()) and 0 <= int(near.min()) <= int(near.max()) < stream.codebook_size
    return "" if other else f"neighbours of {stream.codebook} are not other entries of it"


def _unquantized(sample: Sample, codec: Codec) -> str:
    stream = sample.code.streams[0]
    try:
        shape = tuple(codec.unquantized(sample.reference, stream.codebook).shape)
    except NotApplicable as error:
        return f"unquantized: {error}"
    fits = shape[:-1] == tuple(stream.indices.shape)
    return "" if fits else f"unquantized is {shape}, the indices are {tuple(stream.indices.shape)}"


def _edit(sample: Sample, codec: Codec) -> str:
    first, *others = sample.code.streams
    edited = replace(first, indices=(first.indices + 1) % first.codebook_size)
    raw = codec.decode(replace(sample.code, streams=(edited, *others)), sample.keys)
    return "edited indices decode to the same signal" if torch.equal(raw, sample.raw) else ""


def _drop(sample: Sample, codec: Codec) -> str:
    tokens = sample.code.streams[0].indices if sample.code.streams else sample.code.latents
    assert tokens is not None
    count = tokens.shape[-1]
    keep = (torch.arange(count, device=tokens.device) < max(1, count // 2)).expand(len(sample.keys), -1)
    assert isinstance(codec.tokenizer, Droppable)
    raw = codec.decode(codec.tokenizer.drop(sample.code, keep), sample.keys)
    return "half of the tokens decode to the same signal" if torch.equal(raw, sample.raw) else ""
