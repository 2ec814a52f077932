"""FocalCodec (Della Libera et al. 2025, arXiv 2502.04465): 13 signs a token, 50, 25 or 12.5 tokens a second of speech."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights

from .nn.checkpoint import State
from .nn.codebooks import CodebookTokenizer
from .nn.focal import FocalDecoder, FocalEncoder
from .nn.keynames import Rule, published_as
from .nn.neighbours import BitNeighbours
from .nn.network import load_network
from .nn.vocos import SpectrumHead, VocosBackbone
from .nn.wavlm import WavLmShape, WavLmTrunk

NAMES: tuple[Rule, ...] = (
    (r"^backbone\.embed\.", "decoder.backbone.embedding."),
    (r"^backbone\.norm\.", "decoder.backbone.input_norm."),
    (r"^backbone\.convnext\.", "decoder.backbone.layers."),
    (r"^backbone\.final_layer_norm\.", "decoder.backbone.output_norm."),
    (r"^head\.out\.", "decoder.head.proj."),
)
_FUSED = re.compile(r"(?P<stem>encoder\..*\.)q_proj\.(?P<kind>weight|bias)")
_STEPS: Mapping[str, tuple[str, str]] = {
    "compressor": ("downscale", "focal_block"), "decompressor": ("focal_block", "upscale")
}  # fmt: skip
_STEP = re.compile(r"(?P<tower>compressor|decompressor)\.layers\.(?P<layer>\d+)\.(?P<step>[01])\.")


class FocalCodec(nn.Module):
    """WavLM's sixth layer, focal modulation down to signs and up again, and Vocos: an autoencoder of features.

    Args:
        bits: Signs of a token.
        down: Rate divisor of each of the encoder's blocks; the decoder multiplies in the opposite order.
        dims: Widths of the encoder's blocks; the decoder has them in the opposite order.
        window: Of the first focal context.
        levels: Of focal contexts.
        factor: By how much the window grows a level.
        vocos_layers: Of the decoder to sound.
        vocos_width: Its width.
        vocos_hidden: Inside its layers.
        n_fft: Of its inverse transform.
        wavlm: Arguments of `WavLmShape` that differ from WavLM-large.
    """

    def __init__(
        self,
        bits: int = 13,
        down: Sequence[int] = (1, 1, 1),
        dims: Sequence[int] = (1024, 512, 256),
        window: int = 7,
        levels: int = 2,
        factor: int = 2,
        vocos_layers: int = 8,
        vocos_width: int = 512,
        vocos_hidden: int = 1536,
        n_fft: int = 1024,
        wavlm: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        shape = WavLmShape(**wavlm or {})
        focal = (window, levels, factor)
        self.encoder = WavLmTrunk(shape)
        self.compressor = FocalEncoder(shape.width, bits, dims, down, *focal)
        self.decompressor = FocalDecoder(bits, shape.width, tuple(reversed(dims)), tuple(reversed(down)), *focal)
        self.backbone = VocosBackbone(shape.width, vocos_width, vocos_hidden, vocos_layers)
        self.head = SpectrumHead(vocos_width, n_fft, shape.stride)
        self._bits = bits
        self._margin = shape.span - shape.stride

    def latents(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) to what the signs are taken of, (B, L, bits), as the official code does: without padding."""
        y: Tensor = self.compressor(self.encoder(x))
        return y

    def tokens(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) to tokens (B, L); the first sign is the highest bit."""
        return ((self.latents(x) > 0).long() << self._shifts(x.device)).sum(-1)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) to tokens (B, 1, L), padded with the few zeros that let the last whole stride have a frame."""
        return self.tokens(F.pad(x, (0, self._margin)))[:, None]

    def decode(self, indices: Tensor) -> Tensor:
        """Map tokens (B, 1, L) to (B, 1, T), not clipped."""
        signs = (indices[:, 0, :, None] >> self._shifts(indices.device)) & 1
        code = (signs * 2 - 1).to(self.head.out.weight.dtype) / math.sqrt(self._bits)
        y: Tensor = self.head(self.backbone(self.decompressor(code).transpose(1, 2)))
        return y

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near a token: others with few different signs."""
        del codebook
        return BitNeighbours(self._bits)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what the signs are taken of, (B, L, bits)."""
        del codebook
        return self.latents(F.pad(x, (0, self._margin)))

    def _shifts(self, device: torch.device) -> Tensor:
        return torch.arange(self._bits - 1, -1, -1, device=device)


def release_0_0_1(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Bring a file of the first release to the names of the second: attention in three parts, blocks by number."""
    del wanted
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        fused, step = _FUSED.fullmatch(key), _STEP.match(key)
        if fused is not None:
            stem, kind = fused["stem"], fused["kind"]
            out[f"{stem}qkv_proj.{kind}"] = torch.cat([state[f"{stem}{part}_proj.{kind}"] for part in "qkv"])
        elif re.search(r"\.[kv]_proj\.(weight|bias)$", key) and key.startswith("encoder."):
            continue
        elif step is not None:
            name = _STEPS[step["tower"]][int(step["step"])]
            out[f"{step['tower']}.layers.{step['layer']}.{name}.{key[step.end() :]}"] = value
        else:
            out[key] = value
    return out


def focalcodec(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load a checkpoint of this family.

    Args:
        card: `architecture` holds the arguments of `FocalCodec`.
        weights: Role `model` -> the published file, of either release.

    Raises:
        WeightsRefused: The file does not fit.
    """
    network = load_network(
        card,
        weights,
        lambda: FocalCodec(**card.architecture),
        layouts=[release_0_0_1, published_as(NAMES)],
        # The norm behind WavLM's last layer, in files of the first release; the codec reads the sixth without it.
        drop=["encoder.encoder.norm.*"],
    )
    return CodebookTokenizer(network, network.module)
