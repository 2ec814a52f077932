"""Binary spherical quantization on a plain vision transformer: BSQ-ViT and QLIP."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights

from .nn.bits import bits_of, index_of
from .nn.checkpoint import Layout, State
from .nn.codebooks import CodebookTokenizer
from .nn.neighbours import BitNeighbours
from .nn.network import load_network
from .nn.vit2d import (
    OPEN_CLIP_BLOCK,
    Attention,
    Block,
    GatedMlp,
    Mlp,
    Rotate,
    fused_qkv,
    layer_norm,
    patches,
    renamed,
    rotate_pairs,
    unpatch,
)


class _Tower(nn.Module):
    """Blocks over tokens with learned positions, a norm before or after them, and rotary codes where asked for."""

    def __init__(
        self, width: int, layers: int, heads: int, hidden: int, positions: int, *, eva: bool, pre: bool, post: bool
    ) -> None:
        super().__init__()
        norm = layer_norm(1e-6 if eva else 1e-5)
        self.positions = nn.Parameter(torch.empty(positions, width))
        self.norm_pre = norm(width) if pre else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                norm,
                width,
                Attention(width, heads, inner_norm=norm if eva else None),
                GatedMlp(width, hidden, inner_norm=norm) if eva else Mlp(width, hidden),
            )
            for _ in range(layers)
        )
        self.norm_post = norm(width) if post else nn.Identity()

    def forward(self, tokens: Tensor, rotate: Rotate | None) -> Tensor:
        h = self.norm_pre(tokens + self.positions)
        for block in self.blocks:
            h = block(h, rotate)
        out: Tensor = self.norm_post(h)
        return out


class BsqVit(nn.Module):
    """Patches -> transformer -> `bits` channels on the unit sphere -> their signs, scaled back to the sphere -> transformer.

    Args:
        variant: `bsq` (BSQ-ViT: GELU, learned positions) or `eva` (QLIP: SwiGLU, inner norms, rotary codes, class token).
        image_size: (H, W) the learned positions were made for; other sizes do not work.
        head: Hidden width of the pixel head.

    References: BSQ-ViT, arXiv:2406.07548, zhaoyue-zephyrus/bsq-vit; QLIP, arXiv:2502.05178, NVlabs/QLIP.
    """

    def __init__(
        self,
        variant: str,
        image_size: tuple[int, int],
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        bits: int,
        head: int,
    ) -> None:
        super().__init__()
        eva = variant == "eva"
        self._patch, self._bits, self._head_dim = patch_size, bits, width // heads
        self._grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        count = self._grid[0] * self._grid[1]
        tower = partial(_Tower, width, layers, heads, hidden, eva=eva)
        self.embed = nn.Linear(3 * patch_size**2, width, bias=eva)
        self.class_token = nn.Parameter(torch.empty(width)) if eva else None
        self.encoder = tower(count + eva, pre=not eva, post=not eva)
        self.to_code: nn.Module = Mlp(width, width, bits) if eva else nn.Linear(width, bits)
        self.from_code: nn.Module = Mlp(bits, width, width) if eva else nn.Linear(bits, width)
        self.decoder = tower(count, pre=not eva, post=True)
        self.head = nn.Sequential(nn.Linear(width, head), nn.Tanh(), nn.Linear(head, 3 * patch_size**2))

    def _rotate(self, prefix: int, device: torch.device) -> Rotate | None:
        """Return EVA-02's rotary code over the grid, computed for 16 positions a side; the first `prefix` tokens stay."""
        if self.class_token is None:
            return None
        half = self._head_dim // 2
        rates = 10000.0 ** -(torch.arange(0, half, 2, device=device).float() / half)
        sides = [torch.arange(n, device=device) / n * 16 for n in self._grid]
        rows, columns = ((side[:, None] * rates).repeat_interleave(2, -1) for side in sides)
        h, w = self._grid
        angles = torch.cat([rows[:, None].expand(h, w, half), columns[None].expand(h, w, half)], -1).flatten(0, 1)
        cos, sin = angles.cos(), angles.sin()

        def rotate(x: Tensor) -> Tensor:
            turned = rotate_pairs(x[:, :, prefix:], cos.to(x.dtype), sin.to(x.dtype))
            return torch.cat([x[:, :, :prefix], turned], dim=2)

        return rotate

    def features(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to the unit vectors (B, N, bits) whose signs are the code."""
        tokens = self.embed(patches(x, self._patch))
        prefix = 0
        if self.class_token is not None:
            prefix = 1
            tokens = torch.cat([self.class_token.expand(len(x), 1, -1), tokens], dim=1)
        tokens = self.encoder(tokens, self._rotate(prefix, x.device))[:, prefix:]
        return F.normalize(self.to_code(tokens), dim=-1)

    def neighbours(self, codebook: str) -> Neighbours:
        """Return the words of bits near another."""
        del codebook
        return BitNeighbours(self._bits)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the unit vectors whose signs the code is, (B, h, w, bits)."""
        del codebook
        return torch.unflatten(self.features(x), 1, self._grid)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to indices (B, 1, h, w); the first channel is the highest bit."""
        index = index_of(self.features(x) > 0, dim=2, low_first=False)
        return torch.unflatten(index, 1, self._grid).unsqueeze(1)

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, h, w) to (B, 3, H, W), nominally in [-1, 1]."""
        bits = bits_of(indices.flatten(1), self._bits, dim=2, low_first=False)
        code = (bits * 2 - 1).to(self.embed.weight.dtype) * self._bits**-0.5
        tokens = self.decoder(self.from_code(code), self._rotate(0, code.device))
        return unpatch(self.head(tokens), self._patch, self._grid)


_BSQ = renamed(
    [
        (r"^(module\.)+", ""),
        (r"^encoder\.conv1\.", "embed."),
        (r"positional_embedding$", "positions"),
        (r"\.ln_pre\.", ".norm_pre."),
        (r"\.ln_post\.", ".norm_post."),
        (r"\.transformer\.resblocks\.", ".blocks."),
        *OPEN_CLIP_BLOCK,
        (r"^quant_embed\.", "to_code."),
        (r"^post_quant_embed\.", "from_code."),
        (r"^decoder\.ffn\.0\.", "head.0."),
        (r"^decoder\.conv_out\.", "head.2."),
    ]
)
_EVA = renamed(
    [
        (r"^vision_model\.embeddings\.class_embedding$", "class_token"),
        (r"^vision_model\.embeddings\.patch_embedding\.", "embed."),
        (r"^vision_model\.embeddings\.position_embedding\.weight$", "encoder.positions"),
        (r"^vision_model\.quant_embed\.", "to_code."),
        (r"^vision_model\.quant_embed_post\.", "from_code."),
        (r"^(to_code|from_code)\.c_fc\.", r"\1.fc1."),
        (r"^(to_code|from_code)\.c_proj\.", r"\1.fc2."),
        (r"^vision_decoder\.position_embeddings$", "decoder.positions"),
        (r"^vision_decoder\.norm\.", "decoder.norm_post."),
        (r"^vision_decoder\.ffn\.0\.", "head.0."),
        (r"^vision_decoder\.conv_out\.", "head.2."),
        (r"^vision_model\.encoder\.layers\.", "encoder.blocks."),
        (r"^vision_decoder\.encoder\.layers\.", "decoder.blocks."),
        (r"\.layer_norm([12])\.", r".norm\1."),
        (r"\.self_attn\.inner_attn_ln\.", ".attn.norm."),
        (r"\.self_attn\.out_proj\.", ".attn.proj."),
        (r"\.self_attn\.", ".attn."),
        (r"\.mlp\.w1\.", ".mlp.gate."),
        (r"\.mlp\.w2\.", ".mlp.up."),
        (r"\.mlp\.w3\.", ".mlp.down."),
        (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    ]
)


def _flat(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Make a matrix of the patch embedding's kernel, and of a table of positions with a leading axis of one."""
    del wanted
    out = dict(state)
    out["embed.weight"] = state["embed.weight"].flatten(1)
    out["decoder.positions"] = state["decoder.positions"].flatten(0, -2)
    return out


def network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module a card's architecture describes."""
    return BsqVit(**architecture)


def tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load BSQ-ViT's moving averages (its weights, where a file has none), or QLIP's two vision towers."""
    make = partial(network, card.architecture)
    if card.architecture["variant"] == "eva":
        layouts: list[Layout] = [_EVA, _flat, fused_qkv("q_proj", "k_proj", "v_proj", unbiased=("k_proj",))]
        drop = ["text_model.*", "*_projection.weight", "logit_scale", "vision_model.post_layernorm.*", "*.rope.freqs_*"]
        loaded = load_network(card, weights, make, layouts=layouts, drop=drop)
    else:
        loaded = load_network(
            card,
            weights,
            make,
            inside=("ema_state_dict",),
            or_inside=[("state_dict",)],
            layouts=[_BSQ],
            drop=["quantize.*basis"],
        )
    return CodebookTokenizer(loaded, loaded.module)
