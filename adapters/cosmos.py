"""Cosmos Tokenizer: continuous and finite-scalar-quantized codes of images and of causal clips, by NVIDIA."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokbench.spec import Card, TokenizerSpec
from tokbench.types import Code, Neighbours, Stream, Weights
from tokbench.weights import load_state

from .nn.checkpoint import assemble, dtype_of, place
from .nn.cosmos import Cosmos
from .nn.fsq import FSQ
from .nn.neighbours import GridNeighbours

# Tables of the wavelets and of the levels, which a traced module saves too; here they are code.
_TABLES = ("encoder.patcher*", "decoder.unpatcher*", "quantizer.*")


class CosmosTokenizer:
    """A network whose latents (B, C, *grid) are the code.

    Args:
        spec: Of the tokenizer.
        module: Filled, frozen, in eval mode.
    """

    def __init__(self, spec: TokenizerSpec, module: Cosmos) -> None:
        self.spec = spec
        self._module = module

    @property
    def module(self) -> Cosmos:
        """The network."""
        return self._module

    def to(self, device: str, dtype: str) -> None:
        """Move the network; the authors run it in bfloat16."""
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 3, H, W) or (B, 3, T, H, W) in [-1, 1] to latents (B, C, *grid) in the network's dtype."""
        return Code(latents=self._latents(x))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code back to a float32 signal, nominally in [-1, 1], unclamped."""
        if code.latents is None:
            raise ValueError(f"{self.spec.name} decodes latents; this code has none")
        return self._signal(code.latents)

    def _latents(self, x: Tensor) -> Tensor:
        return self._module.latents(x.to(dtype_of(self._module)))

    def _signal(self, latents: Tensor) -> Tensor:
        return self._module.signal(latents.to(dtype_of(self._module))).float()


class CosmosQuantized(CosmosTokenizer):
    """The same with a grid of levels: one stream (B, *grid); the first level varies fastest in an index.

    Args:
        spec: Of the tokenizer.
        module: Filled, frozen, in eval mode.
        fsq: The grid; it holds no weights and stays float32 in every dtype of the network, as in the official code.
    """

    def __init__(self, spec: TokenizerSpec, module: Cosmos, fsq: FSQ) -> None:
        super().__init__(spec, module)
        self._fsq = fsq

    def to(self, device: str, dtype: str) -> None:
        """Move the network, and the grid to its device."""
        super().to(device, dtype)
        self._fsq.to(device)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 3, H, W) or (B, 3, T, H, W) in [-1, 1] to indices (B, *grid)."""
        indices = self._fsq.codes_to_indices(self._fsq(self._latents(x).movedim(1, -1)))
        return Code((Stream("0", self._fsq.codebook_size, indices),))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map indices (B, *grid) back to a float32 signal, nominally in [-1, 1], unclamped."""
        if len(code.streams) != 1:
            raise ValueError(f"{self.spec.name} decodes one stream; this code has {len(code.streams)}")
        return self._signal(self._fsq.indices_to_codes(code.streams[0].indices).movedim(-1, 1))

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry: those a few levels away."""
        del codebook
        return GridNeighbours(self._fsq.levels.tolist())

    @torch.no_grad()
    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what is bounded and rounded, (B, *grid, levels) float32."""
        del codebook
        return self._latents(x).movedim(1, -1).float()


def network(architecture: Mapping[str, Any]) -> Cosmos:
    """Build the module a card's architecture describes."""
    return Cosmos(**{key: value for key, value in architecture.items() if key not in {"levels", "idle"}})


def idle(architecture: Mapping[str, Any]) -> list[str]:
    """Return the keys of convolutions that files of the first release of the video tokenizers hold and never use.

    There, each level but the last has the three convolutions of a change of resolution, whichever of time and space it
    changes. The Tokenize1 release leaves these out, and its files are held to it.
    """
    if not architecture.get("idle"):
        return []
    down, up = len(architecture["factors"]), len(architecture.get("decoder_factors") or architecture["factors"])
    stems = [f"encoder.down.{level}.downsample" for level in range(down - 1)]
    stems += [f"decoder.up.{level}.upsample" for level in range(1, up)]
    found = []
    for stem in stems:
        found += [f"{stem}.conv{k}.conv3d.{kind}" for k in (1, 2, 3) for kind in ("weight", "bias")]
    return found


def tokenizer(card: Card, weights: Weights) -> CosmosTokenizer:
    """Load a checkpoint (role `model`): the state dict of the authors' `autoencoder.jit`, written by `tokbench convert`.

    Raises:
        WeightsRefused: The file is TorchScript still, cannot be read safely or does not fit.
    """
    arch, path = card.architecture, weights["model"]
    drop = [*_TABLES, *idle(arch)]
    module = assemble(partial(network, arch), load_state(path), drop=drop, source=str(path))
    if "levels" not in arch:
        return CosmosTokenizer(card.spec, module)
    return CosmosQuantized(card.spec, module, FSQ(arch["levels"]))
