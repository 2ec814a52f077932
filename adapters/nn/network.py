"""Puts a module that maps images to bare tensors and back behind the tokenizer protocol."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.spec import Card, TokenizerSpec
from tokbench.types import Code, Stream, Weights
from tokbench.weights import WeightsRefused, load_state

from .checkpoint import Layout, State, assemble, dtype_of, place


class NetworkTokenizer:
    """A module with `encode(x) -> Tensor` and `decode(Tensor) -> Tensor` as a tokenizer.

    For a discrete spec the tensor holds indices (B, K, *grid) int64, one row of axis 1 a codebook of `spec.codebook_size`;
    for a continuous one latents (B, C, *grid).

    Args:
        spec: Of the tokenizer.
        module: Filled, frozen, in eval mode.
    """

    def __init__(self, spec: TokenizerSpec, module: nn.Module) -> None:
        self.spec = spec
        self._module: Any = module

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        module: nn.Module = self._module
        return module

    def to(self, device: str, dtype: str) -> None:
        """Move the network; `dtype` is float32, bfloat16 or float16."""
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 3, H, W) in `spec.input_range` to one stream a codebook, or to latents in the network's dtype."""
        code: Tensor = self._module.encode(x.to(dtype_of(self._module)))
        if self.spec.kind != "discrete":
            return Code(latents=code)
        tables = zip(self.spec.codebook_size, code.unbind(1), strict=True)
        return Code(tuple(Stream(str(k), size, indices) for k, (size, indices) in enumerate(tables)))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code back to (B, 3, H, W) float32 in `spec.input_range`, unclamped.

        Raises:
            ValueError: The code has not the streams or latents this tokenizer emits.
        """
        if self.spec.kind != "discrete":
            if code.latents is None:
                raise ValueError(f"{self.spec.name} decodes latents; this code has none")
            tensor = code.latents.to(dtype_of(self._module))
        else:
            if len(code.streams) != len(self.spec.codebook_size):
                raise ValueError(
                    f"{self.spec.name} decodes {len(self.spec.codebook_size)} streams; this code has {len(code.streams)}"
                )
            tensor = torch.stack([stream.indices for stream in code.streams], dim=1)
        signal: Tensor = self._module.decode(tensor)
        return signal.float()


def load_network(
    card: Card,
    weights: Weights,
    make: Callable[[], nn.Module],
    *,
    inside: Sequence[str] = (),
    or_inside: Sequence[Sequence[str]] = (),
    layouts: Sequence[Layout] = (),
    drop: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> NetworkTokenizer:
    """Build a module without allocating it twice, fill it from the card's file of role `model` and wrap it.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> the checkpoint.
        make: Builds the module.
        inside: Keys that lead to the state dict in the file.
        or_inside: Where else the state dict may be, tried in order when it is not there.
        layouts: Renames from the published key names to the module's, in order.
        drop: Globs of published keys that inference does not need.
        optional: Globs of module keys a checkpoint may lack.

    Raises:
        WeightsRefused: The file cannot be read safely or does not fit.
    """
    path = weights["model"]
    state = _first_state(path, [inside, *or_inside])
    module = assemble(make, state, layouts=layouts, drop=drop, optional=optional, source=str(path))
    return NetworkTokenizer(card.spec, module)


def _first_state(path: Path, places: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    for inside in places[:-1]:
        with suppress(WeightsRefused):
            return load_state(path, inside=inside)
    return load_state(path, inside=places[-1])


def lightning_ema(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Take the moving averages a Lightning checkpoint keeps beside its weights, as `model_ema.` + the key without dots.

    Published evaluations run inside the averages' scope; a checkpoint without averages is returned as it is.
    """
    out = {key: value for key, value in state.items() if not key.startswith("model_ema.")}
    for key in wanted:
        average = state.get("model_ema." + key.replace(".", ""))
        if average is not None:
            out[key] = average
    return out
