"""MGVQ: a deep-compression autoencoder whose channels are quantized in groups, each with its own part of the table."""

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
from .nn.quantize import lookup, nearest

_HEAD = 32
_CONVOLUTIONAL = 3  # levels, finest first; the coarser ones are transformers


class _ChannelRms(nn.Module):
    """Root-mean-square norm over the channels of (B, C, H, W), with weight and bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class _Conv(nn.Module):
    """A same-size convolution with an optional norm after it."""

    def __init__(
        self, width_in: int, width_out: int, kernel: int, *, bias: bool = True, norm: str = "", groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2, bias=bias, groups=groups)
        if norm:
            self.norm: nn.Module = nn.BatchNorm2d(width_out) if norm == "bn2d" else _ChannelRms(width_out)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(x)
        if hasattr(self, "norm"):
            h = self.norm(h)
        return h


class _Main(nn.Module):
    """The branch of a residual block under the key `main`; the shortcut has no parameters."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.main = nn.ModuleDict(parts)


class _Residual(_Main):
    def __init__(self, width: int, norm: str, act: str) -> None:
        super().__init__(conv1=_Conv(width, width, 3), conv2=_Conv(width, width, 3, bias=False, norm=norm))
        self._act = F.relu if act == "relu" else F.silu

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.main["conv2"](self._act(self.main["conv1"](x)))
        return out


class _LinearAttention(_Main):
    """Attention with ReLU kernels in place of the softmax: in the linear form, or the quadratic one for few positions."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__(qkv=_Conv(width, 3 * width, 1, bias=False), proj=_Conv(width, width, 1, bias=False, norm=norm))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        qkv = self.main["qkv"](x).float().view(b, -1, 3 * _HEAD, h * w)
        q, k, v = F.relu(qkv[:, :, :_HEAD]), F.relu(qkv[:, :, _HEAD : 2 * _HEAD]), qkv[:, :, 2 * _HEAD :]
        if h * w > _HEAD:
            out = F.pad(v, (0, 0, 0, 1), value=1.0) @ k.transpose(-1, -2) @ q
            out = out[:, :, :-1] / (out[:, :, -1:] + 1e-15)
        else:
            weights = k.transpose(-1, -2) @ q
            out = v @ (weights / (weights.sum(2, keepdim=True) + 1e-15))
        mixed: Tensor = self.main["proj"](out.to(x.dtype).reshape(b, -1, h, w))
        return x + mixed


class _GatedConv(_Main):
    def __init__(self, width: int, norm: str) -> None:
        hidden = 8 * width
        super().__init__(
            inverted_conv=_Conv(width, hidden, 1),
            depth_conv=_Conv(hidden, hidden, 3, groups=hidden),
            point_conv=_Conv(hidden // 2, width, 1, bias=False, norm=norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.main["depth_conv"](F.silu(self.main["inverted_conv"](x))).chunk(2, dim=1)
        out: Tensor = x + self.main["point_conv"](h * F.silu(gate))
        return out


class _Transformer(nn.Module):
    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.context_module = _LinearAttention(width, norm)
        self.local_module = _GatedConv(width, norm)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.local_module(self.context_module(x))
        return out


class _Unshuffled(nn.Module):
    """3x3 convolution to a quarter of the output's channels, then 2x2 blocks to channels."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = _Conv(width_in, width_out // 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.conv(x), 2)


class _Shuffled(nn.Module):
    """3x3 convolution to four times the output's channels, then channels to 2x2 blocks."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = _Conv(width_in, 4 * width_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


def _averaged(x: Tensor, width: int) -> Tensor:
    return torch.unflatten(x, 1, (width, -1)).mean(2)


def _duplicated(x: Tensor, width: int) -> Tensor:
    return x.repeat_interleave(width // x.shape[1], dim=1)


class _Down(nn.Module):
    """`_Unshuffled` with the mean over channel groups of the unshuffled input as its shortcut."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self._width = width_out
        self.main = _Unshuffled(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x) + _averaged(F.pixel_unshuffle(x, 2), self._width)
        return out


class _Up(nn.Module):
    """`_Shuffled` with repeated channels, shuffled, as its shortcut."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self._width = width_out
        self.main = _Shuffled(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x) + F.pixel_shuffle(_duplicated(x, 4 * self._width), 2)
        return out


def _stage(blocks: Sequence[nn.Module]) -> nn.Module:
    return nn.ModuleDict({"op_list": nn.ModuleList(blocks)}) if blocks else nn.Identity()


def _run(stage: nn.Module, x: Tensor) -> Tensor:
    for block in stage["op_list"] if isinstance(stage, nn.ModuleDict) else ():  # type: ignore[union-attr]
        x = block(x)
    return x


def _block(level: int, width: int, norm: str, act: str) -> nn.Module:
    return _Residual(width, norm, act) if level < _CONVOLUTIONAL else _Transformer(width, norm)


class _Encoder(nn.Module):
    """Widths and depths a level, finest first; a first level without blocks is skipped by an unshuffling convolution."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], latent: int) -> None:
        super().__init__()
        self._latent = latent
        skip = depths[0] == 0
        self.project_in = _Unshuffled(3, widths[1]) if skip else _Conv(3, widths[0], 3)
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [_block(i, width, "trms2d", "silu") for _ in range(depth)]
            down = [_Down(width, widths[i + 1])] if i + 1 < len(widths) and depth else []
            self.stages.append(_stage([*blocks, *down]))
        head = nn.ModuleDict({"op_list": nn.ModuleList([_Conv(widths[-1], latent, 3)])})
        self.project_out = nn.ModuleDict({"main": head})

    def forward(self, x: Tensor) -> Tensor:
        h = self.project_in(x)
        for stage in self.stages:
            h = _run(stage, h)
        return _run(self.project_out["main"], h) + _averaged(h, self._latent)


class _Decoder(nn.Module):
    def __init__(self, widths: Sequence[int], depths: Sequence[int], latent: int) -> None:
        super().__init__()
        self._width = widths[-1]
        self.project_in = nn.ModuleDict({"main": _Conv(latent, widths[-1], 3)})
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            norm, act = ("bn2d", "relu") if i < _CONVOLUTIONAL else ("trms2d", "silu")
            up = [_Up(widths[i + 1], width)] if i + 1 < len(widths) and depth else []
            self.stages.append(_stage([*up, *(_block(i, width, norm, act) for _ in range(depth))]))
        skip = depths[0] == 0
        last: nn.Module = _Shuffled(widths[1], 3) if skip else _Conv(widths[0], 3, 3)
        out_norm = _ChannelRms(widths[1] if skip else widths[0])
        self.project_out = nn.ModuleDict({"op_list": nn.ModuleList([out_norm, nn.ReLU(), last])})

    def forward(self, z: Tensor) -> Tensor:
        h = self.project_in["main"](z) + _duplicated(z, self._width)
        for stage in reversed(self.stages):
            h = _run(stage, h)
        return _run(self.project_out, h)


class Mgvq(nn.Module):
    """Encoder, grouped projection, a table cut into one part a group (both sides l2-normalised), decoder.

    Reference: MGVQ, arXiv:2507.07997, MKJia/MGVQ.
    """

    def __init__(
        self,
        widths: Sequence[int],
        encoder_depths: Sequence[int],
        decoder_depths: Sequence[int],
        latent_channels: int,
        codebook_size: int,
        groups: int,
    ) -> None:
        super().__init__()
        self._groups = groups
        self.encoder = _Encoder(widths, encoder_depths, latent_channels)
        self.decoder = _Decoder(widths, decoder_depths, latent_channels)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(codebook_size, latent_channels // groups)})
        self.quant_conv = nn.Conv2d(latent_channels, latent_channels, 1, groups=groups)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1, groups=groups)

    def _tables(self) -> tuple[Tensor, ...]:
        table: Tensor = self.quantize["embedding"].weight  # type: ignore[assignment]
        return table.chunk(self._groups)

    def features(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to what is quantized: (B, latent_channels, h, w)."""
        out: Tensor = self.quant_conv(self.encoder(x))
        return out

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of one group's part of the table."""
        return TableNeighbours(self._tables()[int(codebook)], cosine=True)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the channels that one group's part of the table is searched with, (B, h, w, D)."""
        return self.features(x).movedim(1, -1).chunk(self._groups, dim=-1)[int(codebook)]

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to indices (B, groups, h, w), counted within each group's part of the table."""
        parts = zip(self.features(x).movedim(1, -1).chunk(self._groups, dim=-1), self._tables(), strict=True)
        return torch.stack([nearest(part, table, "cosine") for part, table in parts], dim=1)

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, groups, h, w) to (B, 3, H, W), nominally in [-1, 1]."""
        parts = zip(indices.unbind(1), self._tables(), strict=True)
        code = torch.cat([lookup(index, table, normalise=True) for index, table in parts], dim=-1).movedim(-1, 1)
        out: Tensor = self.decoder(self.post_quant_conv(code))
        return out


def network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module a card's architecture describes."""
    return Mgvq(**architecture)


def tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load a published checkpoint; the counters of code usage are left out."""
    loaded = load_network(
        card,
        weights,
        lambda: network(card.architecture),
        inside=("model",),
        drop=["quantize.codebook_used", "quantize.embed_prob"],
        optional=["*.num_batches_tracked"],
    )
    return CodebookTokenizer(loaded, loaded.module)
