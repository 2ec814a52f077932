"""UniTok and MedITok: a ViTamin hybrid encoder, eight codebooks over chunks of its channels, and a mirrored decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights

from .nn.codebooks import CodebookTokenizer
from .nn.neighbours import TableNeighbours
from .nn.network import load_network
from .nn.projection import GeGlu, Projection
from .nn.quantize import lookup, nearest
from .nn.vit2d import Attention, Block, layer_norm


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Upsampled(nn.Module):
    """Nearest doubling, then a 3x3 convolution."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class _Pooled(nn.Module):
    """3x3 average over what lies inside the image at stride 2, then a 1x1 convolution where the width changes."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.expand(F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False))
        return out


class _MbConv(nn.Module):
    """Inverted residual block with a channel norm; `scale` is 0.5 (strided), 1 or 2 (nearest doubling)."""

    def __init__(self, width_in: int, width_out: int, scale: float = 1.0) -> None:
        super().__init__()
        hidden = 4 * width_out
        if scale == 0.5:
            self.shortcut: nn.Module = _Pooled(width_in, width_out)
        elif scale == 2.0:
            self.shortcut = _Upsampled(width_in, width_out)
        else:
            self.shortcut = nn.Identity()
        self.pre_norm = _ChannelNorm(width_in)
        self.conv1_1x1 = nn.Conv2d(width_in, hidden, 1)
        self.up = _Upsampled(hidden, hidden) if scale == 2.0 else nn.Identity()
        self.conv2_kxk = nn.Conv2d(hidden, hidden, 3, stride=2 if scale == 0.5 else 1, padding=1, groups=hidden)
        self.conv3_1x1 = nn.Conv2d(hidden, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.conv1_1x1(self.pre_norm(x)))
        h = self.conv3_1x1(F.gelu(self.conv2_kxk(self.up(h))))
        out: Tensor = h + self.shortcut(x)
        return out


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm1 = _ChannelNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.gelu(self.norm1(self.conv1(x))))
        return out


class _Pool(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm = _ChannelNorm(width_in)
        self.proj = nn.Conv2d(width_in, width_out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(self.norm(x))
        return out


class _Backbone(nn.Module):
    def __init__(self, stem: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.stem = _Stem(stem)
        before = [stem, *widths]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(_MbConv(before[s] if i == 0 else widths[s], widths[s], 0.5 if i == 0 else 1.0) for i in range(depth))
            )
            for s, depth in enumerate(depths)
        )
        self.pool = _Pool(widths[len(depths) - 1], widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for stage in self.stages:
            h = stage(h)
        out: Tensor = self.pool(h)
        return out


def _transformer(width: int, depth: int, heads: int) -> nn.ModuleList:
    return nn.ModuleList(
        Block(layer_norm(1e-6), width, Attention(width, heads), GeGlu(width, 2 * width)) for _ in range(depth)
    )


class _Encoder(nn.Module):
    def __init__(self, stem: int, widths: Sequence[int], depths: Sequence[int], depth: int, heads: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, 1, widths[-1]))
        self.patch_embed = nn.ModuleDict({"backbone": _Backbone(stem, widths, depths)})
        self.blocks = _transformer(widths[-1], depth, heads)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch_embed["backbone"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.norm(h)
        return out


class _Output(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _Upsampled(width, width)
        self.norm1 = _ChannelNorm(width)
        self.conv2 = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.gelu(self.norm1(self.conv1(x))))
        return out


class _Decoder(nn.Module):
    def __init__(self, stem: int, widths: Sequence[int], depths: Sequence[int], depth: int, heads: int) -> None:
        super().__init__()
        narrow, middle, wide = widths
        self.blocks = _transformer(wide, depth, heads)
        self.norm = nn.LayerNorm(wide, eps=1e-6)
        self.up_conv1 = _Upsampled(wide, middle)
        self.up_conv2 = nn.Sequential(*(_MbConv(middle, middle, 2.0 if i == 0 else 1.0) for i in range(depths[1])))
        self.up_conv3 = nn.Sequential(
            *(_MbConv(middle if i == 0 else narrow, narrow, 2.0 if i == 0 else 1.0) for i in range(depths[0]))
        )
        self.up_conv4 = _Output(stem)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        h = torch.unflatten(self.norm(tokens).transpose(1, 2), 2, grid)
        out: Tensor = self.up_conv4(self.up_conv3(self.up_conv2(self.up_conv1(h))))
        return out


class _Codebooks(nn.Module):
    """One table a chunk of the channels; both sides are l2-normalised, and so is what is read back."""

    def __init__(self, count: int, entries: int, width: int) -> None:
        super().__init__()
        self.codebooks = nn.ModuleList(
            nn.ModuleDict({"codebook": nn.Embedding(entries, width // count)}) for _ in range(count)
        )

    def table(self, index: int) -> Tensor:
        """Return one table as it is stored, (entries, D)."""
        weight: Tensor = self.codebooks[index]["codebook"].weight  # type: ignore[index]
        return weight

    def _tables(self) -> list[Tensor]:
        return [F.normalize(self.table(index), dim=-1) for index in range(len(self.codebooks))]

    def encode(self, z: Tensor) -> Tensor:
        tables = self._tables()
        chunks = F.normalize(torch.unflatten(z, -1, (len(tables), -1)), dim=-1).unbind(2)
        return torch.stack([nearest(c, table, "dot") for c, table in zip(chunks, tables, strict=True)], dim=1)

    def decode(self, indices: Tensor) -> Tensor:
        parts = zip(indices.unbind(1), self._tables(), strict=True)
        return torch.cat([lookup(index, table) for index, table in parts], dim=-1)


class UniTok(nn.Module):
    """ViTamin encoder, attention projection to a narrow code, chunked codebooks, and back.

    Reference: UniTok, arXiv:2502.20321, FoundationVision/UniTok.
    """

    def __init__(
        self,
        stem_width: int,
        embed_dims: Sequence[int],
        conv_depths: Sequence[int],
        vit_depth: int,
        num_heads: int,
        vocab_width: int,
        num_codebooks: int,
        entries: int,
    ) -> None:
        super().__init__()
        wide = embed_dims[-1]
        self.encoder = _Encoder(stem_width, embed_dims, conv_depths, vit_depth, num_heads)
        heads = wide // vocab_width
        self.quant_proj = Projection(wide, vocab_width, heads)
        self.quantizer = _Codebooks(num_codebooks, entries, vocab_width)
        self.post_quant_proj = Projection(vocab_width, wide, heads)
        self.decoder = _Decoder(stem_width, embed_dims, conv_depths, vit_depth, num_heads)

    def features(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to what is quantized: (B, N, vocab_width)."""
        out: Tensor = self.quant_proj(self.encoder(x))
        return out

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of one table."""
        return TableNeighbours(self.quantizer.table(int(codebook)), cosine=True)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the chunk of channels that one table is searched with, (B, H/16, W/16, D)."""
        chunk = self.features(x).chunk(len(self.quantizer.codebooks), dim=-1)[int(codebook)]
        return torch.unflatten(chunk, 1, (x.shape[2] // 16, x.shape[3] // 16))

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to indices (B, num_codebooks, H/16, W/16)."""
        return torch.unflatten(self.quantizer.encode(self.features(x)), 2, (x.shape[2] // 16, x.shape[3] // 16))

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, num_codebooks, h, w) to (B, 3, 16h, 16w), nominally in [-1, 1]."""
        tokens = self.post_quant_proj(self.quantizer.decode(indices.flatten(2)))
        out: Tensor = self.decoder(tokens, (indices.shape[2], indices.shape[3]))
        return out


def network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module a card's architecture describes."""
    return UniTok(**architecture)


def tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load the tokenizer part of a checkpoint; the text tower and the contrastive heads are left out."""
    loaded = load_network(
        card,
        weights,
        lambda: network(card.architecture),
        inside=("trainer", "unitok"),
        drop=["text_encoder.*", "fc_norm.*", "projection.*", "logit_scale", "quantizer.codebooks.*.vocab_usage"],
    )
    return CodebookTokenizer(loaded, loaded.module)
