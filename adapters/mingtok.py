"""MingTok-Vision: low-level codes of a transformer, lifted to features by a causal one, painted by a third."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.checkpoint import State
from .nn.network import NetworkTokenizer, load_network
from .nn.vit2d import Attention, Block, GatedMlp, Mlp, layer_norm, renamed, swiglu_width, unpatch


def _blocks(width: int, depth: int, *, gated: bool, causal: bool) -> nn.ModuleList:
    return nn.ModuleList(
        Block(
            layer_norm(1e-6),
            width,
            Attention(width, width // 64, causal=causal),
            GatedMlp(width, swiglu_width(width)) if gated else Mlp(width, 4 * width),
        )
        for _ in range(depth)
    )


class MingTok(nn.Module):
    """Encoder, semantic decoder and pixel decoder; a class token travels at the end of the sequence.

    The code is the encoder's raw output: the published mean (1.46817409) and scale (8.09449291), which a generator sees it
    through, are not applied.

    Reference: Ming-UniVision, arXiv:2510.06590, inclusionAI/Ming-UniVision.
    """

    def __init__(
        self,
        image_size: int,
        latent: int,
        encoder_width: int,
        encoder_depth: int,
        semantic_width: int,
        semantic_depth: int,
        pixel_width: int,
        pixel_depth: int,
        patch_size: int = 32,
    ) -> None:
        super().__init__()
        side = image_size // patch_size
        self._grid, self._patch = (side, side), patch_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, encoder_width))
        self.pos_embed = nn.Parameter(torch.empty(1, side * side + 1, encoder_width))
        self.patch_embed = nn.Conv2d(3, encoder_width, patch_size, stride=patch_size)
        self.encoder = _blocks(encoder_width, encoder_depth, gated=True, causal=False)
        self.out_norm = nn.LayerNorm(encoder_width, eps=1e-6)
        self.out_proj = nn.Linear(encoder_width, latent)
        self.in_proj = nn.Linear(latent, semantic_width)
        self.semantic = _blocks(semantic_width, semantic_depth, gated=True, causal=True)
        self.semantic_norm = nn.LayerNorm(semantic_width, eps=1e-6)
        self.sem_to_pix = nn.Linear(semantic_width, 4 * pixel_width)
        self.pixel = _blocks(pixel_width, pixel_depth, gated=False, causal=False)
        self.pixel_norm = nn.LayerNorm(pixel_width, eps=1e-6)
        self.head = nn.Linear(pixel_width, 3 * (patch_size // 2) ** 2)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to latents (B, latent, h * w + 1), the class token's last."""
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        h = torch.cat([tokens, self.cls_token.expand(len(x), -1, -1)], dim=1) + self.pos_embed
        for block in self.encoder:
            h = block(h)
        shortcut = torch.unflatten(h, -1, (self.out_proj.out_features, -1)).mean(-1)
        out: Tensor = shortcut + self.out_proj(F.gelu(self.out_norm(h)))
        return out.transpose(1, 2).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents (B, latent, h * w + 1) to (B, 3, H, W), nominally in [-1, 1]."""
        z = latents.transpose(1, 2)
        h = self.in_proj(z) + z.repeat_interleave(self.in_proj.out_features // z.shape[-1], dim=-1)
        for block in self.semantic:
            h = block(h)
        features = self.sem_to_pix(self.semantic_norm(h)[:, :-1])
        rows, columns = self._grid
        fine = torch.unflatten(torch.unflatten(features, -1, (2, 2, -1)), 1, self._grid).permute(0, 1, 3, 2, 4, 5)
        p = fine.reshape(len(z), 4 * rows * columns, -1)
        for block in self.pixel:
            p = block(p)
        pixels = self.head(self.pixel_norm(p))
        return unpatch(pixels, self._patch // 2, (2 * rows, 2 * columns), channels_last=True)


_LAYOUT = renamed(
    [
        (r"^low_level_encoder\.patch_embed\.proj\.", "patch_embed."),
        (r"^low_level_encoder\.blocks\.0\.", "encoder."),
        (r"^low_level_encoder\.", ""),
        (r"^semantic_decoder\.blocks\.0\.", "semantic."),
        (r"^semantic_decoder\.norm\.", "semantic_norm."),
        (r"^semantic_decoder\.", ""),
        (r"^pixel_decoder\.blocks\.0\.", "pixel."),
        (r"^pixel_decoder\.norm\.", "pixel_norm."),
        (r"^pixel_decoder\.", ""),
        (r"\.mlp\.w3\.", ".mlp.down."),
    ]
)


def _split_gates(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Cut the fused first projection of the gated MLPs in two."""
    del wanted
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        stem, sign, kind = key.partition(".mlp.w12.")
        if sign:
            out[f"{stem}.mlp.gate.{kind}"], out[f"{stem}.mlp.up.{kind}"] = value.chunk(2)
        else:
            out[key] = value
    return out


def network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module a card's architecture describes."""
    return MingTok(**architecture)


def tokenizer(card: Card, weights: Weights) -> NetworkTokenizer:
    """Load the three transformers; the frozen teacher of the training is left out."""
    make = partial(network, card.architecture)
    return load_network(card, weights, make, layouts=[_LAYOUT, _split_gates], drop=["target_backbone.*"])
