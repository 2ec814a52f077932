"""BigCodec (Xin et al. 2024, arXiv 2409.05377): one codebook of 8192, 80 tokens a second of 16 kHz speech."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights
from tokbench.weights import load_state

from .nn.checkpoint import assemble, weight_norm
from .nn.codebooks import CodebookTokenizer
from .nn.keynames import Rule, published_as
from .nn.neighbours import TableNeighbours
from .nn.network import NetworkTokenizer
from .nn.quantize import lookup, nearest
from .nn.seanet import Recurrent
from .nn.snake import AliasFreeSnake, SnakeStage

NAMES: tuple[Rule, ...] = (
    (r"^encoder\.", "CodecEnc.block."),
    (r"^decoder\.", "generator.model."),
    (r"^quantizer\.table\.", "generator.quantizer.layers.0._codebook."),
    (r"^quantizer\.", "generator.quantizer.layers.0."),
)
_PARTS = ("CodecEnc", "generator")


class FactorisedQuantizer(nn.Module):
    """One table of short rows, searched by cosine between two linear maps. Kumar et al., DAC, 2023.

    State dict: `in_proj.*`, `out_proj.*`, `table.weight` (entries, dim). The row is passed on as it stands, not
    normalised.
    """

    def __init__(self, channels: int, entries: int, dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(channels, dim)
        self.out_proj = nn.Linear(dim, channels)
        self.table = nn.Embedding(entries, dim)

    def seen(self, z: Tensor) -> Tensor:
        """Map (B, channels, L) to what is searched with, (B, L, dim)."""
        y: Tensor = self.in_proj(z.transpose(1, 2))
        return y

    def encode(self, z: Tensor) -> Tensor:
        """Map (B, channels, L) to indices (B, L)."""
        return nearest(self.seen(z), self.table.weight, "cosine")

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, L) to (B, channels, L)."""
        y: Tensor = self.out_proj(lookup(indices, self.table.weight))
        return y.transpose(1, 2)


class BigCodec(nn.Module):
    """Strided convolutions with alias-free Snake activations and an LSTM on either side of one factorised table.

    Args:
        strides: Of the encoder, first to last; the decoder's are the same backwards.
        width: Channels of the first convolution; doubled by each stride.
        latent: Channels of the latents.
        decoder_width: Channels of the decoder's first convolution; halved by each stride.
        entries: Of the table.
        code: Length of a row of the table.
        dilations: Of the residual units of a stage.
        lstm: Layers of each LSTM.
    """

    def __init__(
        self,
        strides: Sequence[int] = (2, 2, 2, 5, 5),
        width: int = 48,
        latent: int = 1024,
        decoder_width: int = 1536,
        entries: int = 8192,
        code: int = 8,
        dilations: Sequence[int] = (1, 3, 9),
        lstm: int = 2,
    ) -> None:
        super().__init__()
        down: list[nn.Module] = [nn.Conv1d(1, width, 7, padding=3)]
        for stride in strides:
            down.append(SnakeStage(width, 2 * width, stride, dilations, up=False))
            width *= 2
        down += [Recurrent(width, lstm), AliasFreeSnake(width), nn.Conv1d(width, latent, 3, padding=1)]
        self.encoder = nn.Sequential(*down)
        self.quantizer = FactorisedQuantizer(latent, entries, code)
        width = decoder_width
        up: list[nn.Module] = [nn.Conv1d(latent, width, 7, padding=3), Recurrent(width, lstm)]
        for stride in reversed(strides):
            up.append(SnakeStage(width, width // 2, stride, dilations, up=True))
            width //= 2
        up += [AliasFreeSnake(width), nn.Conv1d(width, 1, 7, padding=3)]
        self.decoder = nn.Sequential(*up)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 1, T), T a multiple of the product of the strides, to indices (B, 1, L)."""
        return self.quantizer.encode(self.encoder(x))[:, None]

    def logits(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, L) to the signal before the last tanh, (B, 1, L x hop)."""
        y: Tensor = self.decoder(self.quantizer.decode(indices[:, 0]))
        return y

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, L) to (B, 1, L x hop) in (-1, 1)."""
        return torch.tanh(self.logits(indices))

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table, by cosine as it is searched."""
        del codebook
        return TableNeighbours(self.quantizer.table.weight, cosine=True)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what the table is searched with, (B, L, code)."""
        del codebook
        return self.quantizer.seen(self.encoder(x))


def bigcodec(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load a checkpoint of this family.

    Args:
        card: `architecture` holds the arguments of `BigCodec`.
        weights: Role `model` -> the published file, two state dicts: `CodecEnc` and `generator`; or a safetensors file of
            both with these names before their keys.

    Raises:
        WeightsRefused: The file does not fit.
    """
    path = weights["model"]
    module = assemble(
        lambda: BigCodec(**card.architecture),
        published_state(path),
        layouts=[weight_norm, published_as(NAMES)],
        # Computed here: Kaiser-windowed sincs.
        drop=["*.upsample.filter", "*.downsample.lowpass.filter"],
        source=str(path),
    )
    return CodebookTokenizer(NetworkTokenizer(card.spec, module), module)


def published_state(path: Path) -> dict[str, Tensor]:
    """Return the two state dicts of the published file as one, each under its name."""
    if path.suffix == ".safetensors":
        return load_state(path)
    return {f"{part}.{key}": value for part in _PARTS for key, value in load_state(path, inside=(part,)).items()}
