"""ReVQ: the latents of a frozen deep-compression autoencoder, quantized in runs of four values, then rectified."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights
from tokbench.weights import load_state

from .nn.checkpoint import assemble, library
from .nn.codebooks import CodebookTokenizer
from .nn.neighbours import TableNeighbours
from .nn.network import NetworkTokenizer


class ReVq(nn.Module):
    """DC-AE encoder, per-element normalisation, one private table a token, rectifier, DC-AE decoder.

    A token is a run of consecutive values of the (C, H, W) latents, so it lies within one channel.

    Args:
        vae: An `AutoencoderDC`.
        rectifier: What brings quantized latents nearer to the encoder's.
        grid: (C, H, W) of the latents.
        tokens: How many runs they are cut into.
        entries: Of each table.

    Reference: Quantize-then-Rectify, arXiv:2507.10547, Neur-IO/ReVQ.
    """

    def __init__(
        self, vae: nn.Module, rectifier: nn.Module, grid: tuple[int, int, int], tokens: int, entries: int
    ) -> None:
        super().__init__()
        values = grid[0] * grid[1] * grid[2]
        self._grid = grid
        self.vae: Any = vae
        self.decoder = rectifier
        self.mean = nn.Parameter(torch.empty(values))
        self.std = nn.Parameter(torch.empty(values))
        self.embeddings = nn.Parameter(torch.empty(tokens, entries, values // tokens))

    def features(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to the normalised latents that are quantized: (B, C, h, w)."""
        latents: Tensor = self.vae.encode(x).latent
        return torch.unflatten((latents.flatten(1) - self.mean) / self.std, 1, self._grid)

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of one token's table."""
        return TableNeighbours(self.embeddings[int(codebook)])

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the run of values one token stands for, (B, 1, D)."""
        runs = torch.unflatten(self.features(x).flatten(1), 1, (self.embeddings.shape[0], -1))
        return runs[:, int(codebook), None]

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to indices (B, tokens, 1)."""
        tables = self.embeddings.float()
        runs = torch.unflatten(self.features(x).flatten(1), 1, (tables.shape[0], -1)).float()
        product = torch.einsum("bgd,gkd->bgk", runs, tables)
        distance = runs.square().sum(-1, keepdim=True) + tables.square().sum(-1) - 2 * product
        return distance.argmin(-1, keepdim=True)

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, tokens, 1) to (B, 3, H, W), nominally in [-1, 1]."""
        place = torch.arange(len(self.embeddings), device=indices.device)
        quantized = torch.unflatten(self.embeddings[place, indices[..., 0]].flatten(1), 1, self._grid)
        latents = self.decoder(quantized).flatten(1) * self.std + self.mean
        out: Tensor = self.vae.decode(torch.unflatten(latents, 1, self._grid)).sample
        return out


def tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load the autoencoder (role `vae`), tables and rectifier (role `model`) and the statistics (role `preprocessor`).

    Raises:
        MissingExtra: diffusers, whose blocks both networks are made of, is not installed.
    """
    extra = card.extra or "diffusers"
    (autoencoder,) = library("diffusers", ["AutoencoderDC"], card.name, extra)
    (decoder,) = library("diffusers.models.autoencoders.autoencoder_dc", ["Decoder"], card.name, extra)
    shape: Mapping[str, Any] = card.architecture
    state = {f"vae.{key}": value for key, value in load_state(weights["vae"]).items()}
    quantizer = load_state(weights["model"], inside=("quantizer",))
    state |= {key: value for key, value in quantizer.items() if key not in {"count", "index_offset"}}
    state |= {f"decoder.{key}": value for key, value in load_state(weights["model"], inside=("decoder",)).items()}
    state |= {key: value.flatten() for key, value in load_state(weights["preprocessor"]).items()}
    module = assemble(
        lambda: ReVq(
            autoencoder(**shape["vae"]),
            decoder(**shape["rectifier"]),
            tuple(shape["grid"]),
            shape["tokens"],
            shape["entries"],
        ),
        state,
        source=", ".join(str(path) for path in weights.values()),
    )
    return CodebookTokenizer(NetworkTokenizer(card.spec, module), module)
