"""Tokenizers of modules that can say what lies near a code, what their quantizer saw, and how to do with fewer tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Code, Neighbours, Weights
from tokbench.weights import WeightsRefused, load_state

from .checkpoint import assemble, dtype_of
from .keynames import Rule, published_as
from .network import NetworkTokenizer

_KEPT = "kept"


class CodebookTokenizer:
    """A discrete tokenizer whose module has `neighbours(codebook)` and `unquantized(x, codebook)` beside encode and decode.

    Args:
        network: Encodes and decodes.
        module: Of `network`.
    """

    def __init__(self, network: NetworkTokenizer, module: nn.Module) -> None:
        self.spec = network.spec
        self._network = network
        self._module: Any = module

    def to(self, device: str, dtype: str) -> None:
        """Move the network; `dtype` is float32, bfloat16 or float16."""
        self._network.to(device, dtype)

    def encode(self, x: Tensor) -> Code:
        """Map (B, 3, H, W) in `spec.input_range` to one stream a codebook."""
        return self._network.encode(x)

    def decode(self, code: Code) -> Tensor:
        """Map a code back to (B, 3, H, W) float32 in `spec.input_range`, unclamped."""
        return self._network.decode(code)

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of one codebook."""
        found: Neighbours = self._module.neighbours(codebook)
        return found

    @torch.no_grad()
    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what the quantizer saw of the images, (B, *grid, D)."""
        seen: Tensor = self._module.unquantized(x.to(dtype_of(self._module)), codebook)
        return seen.float()


class DroppingTokenizer(CodebookTokenizer):
    """The same of a sequence whose decoder takes any number of its tokens, each at its own place."""

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code, the first tokens of one, or what `drop` left of one to (B, 3, H, W)."""
        indices = torch.stack([stream.indices for stream in code.streams], dim=1)
        signal: Tensor = self._module.decode(indices, kept=code.side.get(_KEPT))
        return signal.float()

    def drop(self, code: Code, keep: Tensor) -> Code:
        """Return `code` without the tokens where `keep`, (B, N) bool, is False; every row keeps as many as the others.

        Raises:
            ValueError: Rows keep different numbers of tokens, or none.
        """
        counts = keep.sum(1)
        if not bool((counts == counts[0]).all()) or int(counts[0]) == 0:
            raise ValueError("every row must keep the same number of tokens, at least one")
        places = keep.nonzero()[:, 1].view(len(keep), -1)
        streams = tuple(replace(stream, indices=stream.indices.gather(1, places)) for stream in code.streams)
        before = code.side.get(_KEPT)
        return replace(code, streams=streams, side={_KEPT: places if before is None else before.gather(1, places)})


def load_tokens(
    card: Card,
    weights: Weights,
    make: Callable[[], nn.Module],
    rules: Sequence[Rule],
    *,
    inside: Sequence[Sequence[str]] = ((),),
    drop: Sequence[str] = (),
) -> NetworkTokenizer | CodebookTokenizer:
    """Build a module, fill it from the card's file of role `model` and make a tokenizer of it.

    Args:
        card: The checkpoint's card; with an option `tokens` the decoder takes any number of them.
        weights: Role `model` -> the checkpoint.
        make: Builds the module.
        rules: From the module's key names to the published ones.
        inside: Where the state dict may lie in the file, as keys that lead to it: the first place that holds one is taken.
            A safetensors file holds nothing else.
        drop: Globs of published keys that inference does not need.

    Raises:
        WeightsRefused: The file cannot be read safely or does not fit.
    """
    path = weights["model"]
    state = _state(path, inside)
    module = assemble(make, state, layouts=[published_as(rules)], drop=drop, source=str(path))
    network = NetworkTokenizer(card.spec, module)
    if card.spec.kind != "discrete":
        return network
    return (DroppingTokenizer if "tokens" in card.options else CodebookTokenizer)(network, module)


def _state(path: Path, places: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_state(path)
    for place in places[:-1]:
        with suppress(WeightsRefused):
            return load_state(path, inside=place)
    return load_state(path, inside=places[-1])
