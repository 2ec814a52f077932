"""Representation autoencoder: a frozen DINOv2 with registers as the encoder, a transformer trained to paint its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Weights
from tokbench.weights import load_state

from .nn.checkpoint import assemble
from .nn.network import NetworkTokenizer
from .nn.vit2d import Attention, Block, Mlp, fused_qkv, imagenet, layer_norm, renamed, unpatch

_PREFIX = 5  # class and register tokens


def _blocks(width: int, depth: int, heads: int, hidden: int, eps: float, *, scaled: bool) -> nn.ModuleList:
    return nn.ModuleList(
        Block(layer_norm(eps), width, Attention(width, heads), Mlp(width, hidden), scaled=scaled) for _ in range(depth)
    )


class _Encoder(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, positions: int, patch: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_tokens = nn.Parameter(torch.empty(1, _PREFIX - 1, width))
        self.positions = nn.Parameter(torch.empty(1, positions**2 + 1, width))
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.blocks = _blocks(width, depth, heads, 4 * width, 1e-6, scaled=True)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patch_embed(x)
        side = int((self.positions.shape[1] - 1) ** 0.5)
        table = torch.unflatten(self.positions[:, 1:].transpose(1, 2), 2, (side, side))
        table = F.interpolate(table.float(), grid.shape[2:], mode="bicubic", antialias=True).to(table.dtype)
        tokens = (grid + table).flatten(2).transpose(1, 2)
        first = self.cls_token + self.positions[:, :1]
        h = torch.cat([first.expand(len(x), -1, -1), self.register_tokens.expand(len(x), -1, -1), tokens], dim=1)
        for block in self.blocks:
            h = block(h)
        # The final norm of DINOv2 without its weight and bias.
        return F.layer_norm(h[:, _PREFIX:], h.shape[-1:], eps=1e-6)


class _Decoder(nn.Module):
    def __init__(self, latent: int, width: int, depth: int, heads: int, hidden: int, side: int, patch: int) -> None:
        super().__init__()
        self._side, self._patch = side, patch
        self.embed = nn.Linear(latent, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, side**2 + 1, width))
        self.blocks = _blocks(width, depth, heads, hidden, 1e-12, scaled=False)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.head = nn.Linear(width, 3 * patch**2)

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.cat([self.cls_token.expand(len(tokens), -1, -1), self.embed(tokens)], dim=1) + self.positions
        for block in self.blocks:
            h = block(h)
        pixels = self.head(self.norm(h)[:, 1:])
        return unpatch(pixels, self._patch, (self._side, self._side), channels_last=True)


class Rae(nn.Module):
    """Encoder at `encoder_size`, decoder at `patch_size` times its grid.

    The code is the encoder's output; the statistics a generator normalises it with are not applied.

    Reference: Diffusion Transformers with Representation Autoencoders, arXiv:2510.11690, bytetriper/RAE.
    """

    def __init__(
        self,
        encoder_size: int,
        encoder_width: int,
        encoder_depth: int,
        encoder_heads: int,
        encoder_positions: int,
        decoder_width: int,
        decoder_hidden: int,
        decoder_depth: int,
        decoder_heads: int,
        encoder_patch: int = 14,
        patch_size: int = 16,
    ) -> None:
        super().__init__()
        side = encoder_size // encoder_patch
        self._size = encoder_size
        self.encoder = _Encoder(encoder_width, encoder_depth, encoder_heads, encoder_positions, encoder_patch)
        self.decoder = _Decoder(
            encoder_width, decoder_width, decoder_depth, decoder_heads, decoder_hidden, side, patch_size
        )

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to tokens (B, C, h, w) of the image resized to `encoder_size`."""
        mean, std = imagenet(x)
        small = F.interpolate(x, (self._size, self._size), mode="bicubic", align_corners=False)
        tokens: Tensor = self.encoder((small - mean) / std)
        side = self.decoder._side
        return torch.unflatten(tokens.transpose(1, 2), 2, (side, side)).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Map tokens (B, C, h, w) to (B, 3, H, W), nominally in [0, 1]."""
        mean, std = imagenet(latents)
        out: Tensor = self.decoder(latents.flatten(2).transpose(1, 2))
        return out * std + mean


_LAYOUT = renamed(
    [
        (r"^encoder\.embeddings\.position_embeddings$", "encoder.positions"),
        (r"^encoder\.embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed."),
        (r"^encoder\.embeddings\.", "encoder."),
        (r"^encoder\.encoder\.layer\.", "encoder.blocks."),
        (r"\.layer_scale([12])\.lambda1$", r".gamma\1"),
        (r"^decoder\.decoder_pos_embed$", "decoder.positions"),
        (r"^decoder\.trainable_cls_token$", "decoder.cls_token"),
        (r"^decoder\.decoder_layers\.", "decoder.blocks."),
        (r"^decoder\.decoder_pred\.", "decoder.head."),
        (r"^decoder\.decoder_", "decoder."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.attention\.attention\.", ".attn."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"(\.blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    ]
)


def network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module a card's architecture describes."""
    return Rae(**architecture)


def tokenizer(card: Card, weights: Weights) -> NetworkTokenizer:
    """Load the encoder as its authors publish it (role `encoder`) and the trained decoder (role `decoder`)."""
    state = {
        f"{half}.{key}": value for half in ("encoder", "decoder") for key, value in load_state(weights[half]).items()
    }
    module = assemble(
        lambda: network(card.architecture),
        state,
        layouts=[_LAYOUT, fused_qkv("query", "key", "value")],
        drop=["encoder.mask_token", "encoder.layernorm.*"],
        source=f"{weights['encoder']} and {weights['decoder']}",
    )
    return NetworkTokenizer(card.spec, module)
