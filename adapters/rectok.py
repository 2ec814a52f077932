"""RecTok: wide continuous codes of a plain transformer, trained so that noised codes keep what a vision model sees."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.checkpoint import State
from .nn.network import NetworkTokenizer, load_network
from .nn.vit2d import Attention, Block, GatedMlp, Rotate, renamed, rotate_pairs, unpatch


def _norm(width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-6)


def _rotation(side: int, head_dim: int, like: Tensor) -> Rotate:
    """Return the axial rotary code: half the channels turn by the row, half by the column, both in [0, 1]."""
    band = 7.0 * (7.0 / 7e-4) ** torch.linspace(0, -1, head_dim // 4, device=like.device)
    turns = 2 * math.pi * band.tile(2)
    place = torch.linspace(0, 1, side, device=like.device)
    rows, columns = (axis.flatten()[:, None] for axis in torch.meshgrid(place, place, indexing="ij"))
    # The published table does not repeat an angle within a pair of channels that turn together.
    angles = torch.cat([rows * turns, columns * turns], dim=1)
    return partial(rotate_pairs, cos=angles.cos().to(like.dtype), sin=angles.sin().to(like.dtype))


class _Tower(nn.Module):
    """Positions, norm, blocks, norm."""

    def __init__(self, side: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self._side, self._head = side, width // heads
        self.positional_embedding = nn.Parameter(torch.empty(1, side * side, width))
        self.ln_pre, self.ln_post = _norm(width), _norm(width)
        hidden = int(2 / 3 * width * 4.0)
        self.transformer = nn.ModuleList(
            Block(_norm, width, Attention(width, heads), GatedMlp(width, hidden)) for _ in range(depth)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.ln_pre(tokens + self.positional_embedding)
        rotate = _rotation(self._side, self._head, x)
        for block in self.transformer:
            x = block(x, rotate)
        out: Tensor = self.ln_post(x)
        return out


class RecTok(nn.Module):
    """Patches -> transformer -> mean of a Gaussian posterior; linear -> transformer -> patches -> 3x3 convolution.

    Reference: Shi et al., RecTok, arXiv:2512.13421, `rectok_BB`.

    Args:
        image_size: Side of the images; positions are learned.
        width: Of both transformers.
        depth: Of each.
        heads: Of their attention.
        channels: Of the code.
        patch_size: Side of a patch.
    """

    def __init__(
        self, image_size: int, width: int, depth: int, heads: int, channels: int, patch_size: int = 16
    ) -> None:
        super().__init__()
        self._side, self._patch = image_size // patch_size, patch_size
        self.patch_embed = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.encoder = _Tower(self._side, width, depth, heads)
        self.latent_head = nn.Linear(width, 2 * channels)
        self.decoder_embed = nn.Linear(channels, width)
        self.decoder = _Tower(self._side, width, depth, heads)
        self.patch_out = nn.Conv2d(width, 3 * patch_size**2, 1)
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, S, S) in [-1, 1] to the posterior's mean (B, channels, S / patch, S / patch)."""
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        mean = self.latent_head(self.encoder(tokens)).chunk(2, dim=-1)[0]
        return torch.unflatten(mean.transpose(1, 2), 2, (self._side, self._side)).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, 3, S, S), nominally in [-1, 1]."""
        tokens = self.decoder(self.decoder_embed(latents.flatten(2).transpose(1, 2)))
        grid = torch.unflatten(tokens.transpose(1, 2), 2, (self._side, self._side))
        pixels = self.patch_out(grid).flatten(2).transpose(1, 2)
        out: Tensor = self.conv_out(unpatch(pixels, self._patch, (self._side, self._side), channels_last=True))
        return out


_NAMES = renamed(
    [
        (r"^encoder\.patch_embed\.0\.", "patch_embed."),
        (r"^encoder\.latent_head\.", "latent_head."),
        (r"^decoder\.decoder_embed\.", "decoder_embed."),
        (r"^decoder\.ffn\.1\.", "patch_out."),
        (r"^decoder\.conv_out\.", "conv_out."),
        (r"\.mlp\.w3\.", ".mlp.down."),
    ]
)


def _split_gates(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    del wanted
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".mlp.w12." in key:
            out[key.replace("w12", "gate")], out[key.replace("w12", "up")] = value.chunk(2)
        else:
            out[key] = value
    return out


def tokenizer(card: Card, weights: Weights) -> NetworkTokenizer:
    """Load the moving averages of a training checkpoint where it has any, without what only training needs."""
    return load_network(
        card,
        weights,
        partial(RecTok, **card.architecture),
        inside=("model_ema",),
        or_inside=[("model",), ()],
        layouts=[_NAMES, _split_gates],
        drop=["sem_decoders.*", "sem_foundation_models.*", "aux_*", "decoder.mask_token"],
    )
