"""VFMTok: slots that sample a frozen DINOv2 where they look, one table, and a causal transformer that paints from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Weights
from tokbench.weights import load_into, load_state

from .nn.checkpoint import skeleton
from .nn.clip import stretched
from .nn.latent import LatentTokenizer
from .nn.llamagen import training_state
from .nn.quantize import VectorQuantizer
from .nn.taming import Decoder, Trunk, official_key
from .nn.vit2d import Attention, Block, Mlp, imagenet, layer_norm


class Backbone(nn.Module):
    """DINOv2 with registers, of which four blocks' patch features are read; only the last are normed.

    Args:
        width: Channels.
        depth: Blocks.
        heads: Of attention.
        hidden: Channels inside the MLPs.
        side: Patches a side of the learned positions.
        patch: Pixels a side of a patch.
        registers: Register tokens.
        levels: Blocks whose features are read, from 0, the last one last.
    """

    def __init__(
        self,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        hidden: int = 4096,
        side: int = 37,
        patch: int = 14,
        registers: int = 4,
        levels: Sequence[int] = (5, 11, 17, 23),
    ) -> None:
        super().__init__()
        self.levels, self.registers, self.side, self.width = tuple(levels), registers, side, width
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, side**2 + 1, width))
        self.register_tokens = nn.Parameter(torch.empty(1, registers, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        norm = layer_norm(1e-6)
        self.blocks = nn.ModuleList(
            Block(norm, width, Attention(width, heads), Mlp(width, hidden), scaled=True) for _ in range(depth)
        )
        self.norm = norm(width)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) in [-1, 1] to four feature maps (B, N, width)."""
        mean, std = imagenet(x)
        grid = self.patch_embed["proj"](((x.clamp(-1, 1) + 1) / 2 - mean) / std)
        image = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, self.side, self.side)
        placed = grid + F.interpolate(image, size=grid.shape[2:], mode="bicubic", antialias=True)
        count = len(x)
        lead = [(self.cls_token + self.pos_embed[:, :1]).expand(count, -1, -1)]
        lead.append(self.register_tokens.expand(count, -1, -1))
        h, found = torch.cat([*lead, placed.flatten(2).transpose(1, 2)], dim=1), []
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i in self.levels[:-1]:
                found.append(h[:, self.registers + 1 :])
        return [*found, self.norm(h)[:, self.registers + 1 :]]


class CausalAttention(nn.Module):
    """Multi-head attention of a row of tokens to itself and what comes before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, W) to the same shape."""
        split = (len(x), x.shape[1], self.heads, -1)
        q, k, v = (part(x).view(split).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out_proj(h.transpose(1, 2).flatten(2))
        return out


class DeformableAttention(nn.Module):
    """Each query samples a few places of each feature map, bilinearly, around its own. Zhu et al., Deformable DETR, 2021.

    The official code calls a CUDA kernel; `grid_sample` computes the same.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.shape = (heads, levels, points)
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj, self.output_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, query: Tensor, places: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Map queries (B, N, W) at places (N, 2), (x, y) in [0, 1], and square maps (B, S * S, W) a level to (B, N, W)."""
        heads, levels, points = self.shape
        batch, count, _ = query.shape
        offsets = self.sampling_offsets(query).view(batch, count, heads, levels, points, 2)
        weights = self.attention_weights(query).view(batch, count, heads, levels * points).softmax(-1)
        sampled = []
        for level, features in enumerate(maps):
            side = round(features.shape[1] ** 0.5)
            value = self.value_proj(features).transpose(1, 2).reshape(batch * heads, -1, side, side)
            at = 2 * (places[:, None, None] + offsets[:, :, :, level] / side) - 1
            at = at.transpose(1, 2).flatten(0, 1).to(value.dtype)
            sampled.append(F.grid_sample(value, at, mode="bilinear", padding_mode="zeros", align_corners=False))
        weights = weights.transpose(1, 2).reshape(batch * heads, 1, count, levels * points)
        h = (torch.cat(sampled, dim=-1) * weights).sum(-1).view(batch, -1, count)
        out: Tensor = self.output_proj(h.transpose(1, 2))
        return out


class SlotLayer(nn.Module):
    """Slots look at the maps, then at the slots before them, then an MLP; norms come last."""

    def __init__(self, width: int, heads: int, hidden: int, levels: int, points: int) -> None:
        super().__init__()
        self.cross_attn = DeformableAttention(width, heads, levels, points)
        self.self_attn = CausalAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, embedded: Tensor, places: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Map slots (B, N, W) with embedded places (1, N, W) to the same shape."""
        x = self.norm1(x + self.cross_attn(x + embedded, places, maps))
        x = self.norm3(x + self.self_attn(x + embedded))
        out: Tensor = self.norm2(x + self.linear2(F.relu(self.linear1(x))))
        return out


class Projector(nn.Module):
    """Two linear layers without bias, each normed, a rectifier between them."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        first = (nn.Linear(channels, width, bias=False), nn.LayerNorm(width), nn.ReLU())
        self.mlp = nn.Sequential(*first, nn.Linear(width, width, bias=False), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., channels) to (..., width)."""
        out: Tensor = self.mlp(x)
        return out


class SlotReader(nn.Module):
    """An image to slots (B, N, W), one a place of a square grid."""

    def __init__(
        self, width: int, depth: int, heads: int, slots: int, points: int, backbone: Mapping[str, Any]
    ) -> None:
        super().__init__()
        encoder = Backbone(**backbone)
        channels, levels = encoder.width, len(encoder.levels)
        self.backbone = nn.ModuleDict({"pretrained_encoder": encoder})
        self.projectors = nn.ModuleList(Projector(channels, width) for _ in range(levels))
        self.norm_layers = nn.ModuleList(nn.LayerNorm(width) for _ in range(levels))
        self.carrier_tokens = nn.Parameter(torch.empty(1, slots, width))
        self.slots_pos = nn.Parameter(torch.empty(1, slots, width))
        layers = (SlotLayer(width, heads, min(4 * width, 1024), levels, points) for _ in range(depth))
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.norm_pre1 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to (B, N, W)."""
        maps = []
        found = self.backbone["pretrained_encoder"](x)
        for features, projector, norm in zip(found, self.projectors, self.norm_layers, strict=True):
            maps.append(norm(projector(features)))
        h = self.norm_pre1(self.carrier_tokens).expand(len(x), -1, -1)
        side = round(h.shape[1] ** 0.5)
        steps = (torch.arange(side, device=x.device) + 0.5) / side
        places = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).flatten(0, 1)
        layers: nn.ModuleList = self.transformer["layers"]  # type: ignore[assignment]
        for layer in layers:
            h = layer(h, self.slots_pos, places, maps)
        slots: Tensor = h
        return slots


class SwiGLU(nn.Module):
    """Gated MLP of two thirds of `hidden`, rounded up to a multiple of 8."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        inner = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12, self.w3 = nn.Linear(width, 2 * inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to the same shape."""
        gate, up = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * up)
        return out


class PaintLayer(nn.Module):
    """Causal attention and a gated MLP; norms come first."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(width), CausalAttention(width, heads)
        self.norm2, self.ffnet = nn.LayerNorm(width), SwiGLU(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, W) to the same shape."""
        x = x + self.attn1(self.norm1(x))
        out: Tensor = x + self.ffnet(self.norm2(x))
        return out


class Painter(nn.Module):
    """Slots, then a class token, a mask token a place of the picture and registers; the mask tokens become its features."""

    def __init__(
        self, width: int, depth: int, heads: int, hidden: int, slots: int, side: int, registers: int = 4
    ) -> None:
        super().__init__()
        self.side = side
        self.position_embedding = nn.Parameter(torch.empty(1, 24**2 + 1, width))
        self.slot_position_embedding = nn.Parameter(torch.empty(1, slots, width))
        self.mask_embedding = nn.Parameter(torch.empty(1, 1, width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_tokens = nn.Parameter(torch.empty(1, registers, width))
        layers = (PaintLayer(width, heads, hidden) for _ in range(depth))
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.norm_post1 = nn.LayerNorm(width)

    def forward(self, slots: Tensor) -> Tensor:
        """Map (B, N, W) to (B, W, side, side)."""
        count, n, width = slots.shape
        places = stretched(self.position_embedding[0], (self.side, self.side))
        picture = torch.cat(
            [self.cls_token + places[:1], self.mask_embedding + places[1:], self.register_tokens], dim=1
        )
        row = torch.cat([slots + self.slot_position_embedding, picture.expand(count, -1, -1)], dim=1)
        h = self.norm_post1(row)
        layers: nn.ModuleList = self.transformer["layers"]  # type: ignore[assignment]
        for layer in layers:
            h = layer(h)
        painted: Tensor = h[:, n + 1 : n + 1 + self.side**2]
        # Channels stay innermost in memory, as in the official code: the convolutions then round as they do there.
        return painted.reshape(count, self.side, self.side, width).movedim(-1, 1)


class VFMTok(nn.Module):
    """Slot reader, table, painter, LlamaGen's convolutional decoder. Zheng et al., 2025 (arXiv:2507.08441).

    Args:
        codebook_size: Rows of the l2-normalised table.
        width: Channels of the transformers.
        depth: Layers of both.
        heads: Of attention in both.
        hidden: Of the painter's MLPs, before two thirds are taken.
        slots: Tokens.
        points: Samples a slot, head and map.
        embed_dim: Channels of a row.
        side: Places a side of the painted features; the image has 16 times as many pixels a side.
        backbone: Arguments of `Backbone`.
        ch: Channels of the finest level of the decoder.
        ch_mult: Its levels.
    """

    def __init__(
        self,
        codebook_size: int,
        *,
        width: int = 512,
        depth: int = 6,
        heads: int = 8,
        hidden: int = 2048,
        slots: int = 256,
        points: int = 4,
        embed_dim: int = 12,
        side: int = 21,
        backbone: Mapping[str, Any],
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
    ) -> None:
        super().__init__()
        self.encode_transformer = SlotReader(width, depth, heads, slots, points, backbone)
        self.pre_slots_quant = nn.Linear(width, embed_dim)
        self.slot_quantize = VectorQuantizer(codebook_size, embed_dim, "cosine")
        self.post_slots_quant = nn.Linear(embed_dim, width)
        self.decode_transformer = Painter(width, depth, heads, hidden, slots, side)
        self.decoder = Decoder(Trunk(ch, tuple(ch_mult), 1, width))

    def latents(self, x: Tensor) -> Tensor:
        """Map (B, 3, 336, 336) in [-1, 1] to (B, D, slots)."""
        latents: Tensor = self.pre_slots_quant(self.encode_transformer(x))
        return latents.transpose(1, 2)

    def image(self, latents: Tensor) -> Tensor:
        """Map (B, D, slots) to (B, 3, 336, 336), nominally in [-1, 1]."""
        out: Tensor = self.decoder(self.decode_transformer(self.post_slots_quant(latents.transpose(1, 2))))
        return out


def network(card: Card) -> VFMTok:
    """Build the module a card describes."""
    arch: dict[str, Any] = {"backbone": {}, **card.architecture}
    return VFMTok(codebook_size=card.spec.codebook_size[0], **arch)


def published_key(own: str, card: Card) -> str:
    """Spell a key of `VFMTok` as the published file does."""
    key = official_key(own, "llamagen", len(card.architecture.get("ch_mult", range(5))))
    return key.replace(".gamma1", ".ls1.gamma").replace(".gamma2", ".ls2.gamma")


def tokenizer(card: Card, weights: Weights) -> LatentTokenizer:
    """Load a training checkpoint; DINOv2, which it may lack, comes from its own file (role `backbone`)."""
    net: VFMTok = skeleton(lambda: network(card))
    own = {published_key(key, card): key for key in net.state_dict()}
    stem = "encode_transformer.backbone.pretrained_encoder."
    state = {stem + key: value for key, value in load_state(weights["backbone"]).items()}
    state |= training_state(weights["model"])
    drop = ["slot_quantize.codebook_used", "*.mask_token", "decode_transformer.proj.*", "decode_transformer.mask_dino"]
    drop.append("decode_transformer.norm_post2.*")
    load_into(net, {own.get(key, key): value for key, value in state.items()}, drop=drop, source=str(weights["model"]))
    return LatentTokenizer(card.spec, net, net.slot_quantize)
