"""D-AR: tokens in the order of a diffusion; eight groups of them lead the eight steps from noise to pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights

from .nn.codebooks import CodebookTokenizer
from .nn.dit import TimeEmbedding
from .nn.keynames import Rule, published_as
from .nn.neighbours import TableNeighbours
from .nn.network import load_network
from .nn.quantize import lookup, nearest
from .nn.vit2d import patches, rotate_pairs, unpatch

_HEAD = 64
_PLACES = 1024
_QUERY = 8


@dataclass(frozen=True)
class Rotation:
    """cos and sin (N, 64) by which the first N tokens of a sequence are turned; later ones stay."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Turn (B, heads, M, 64), M at least N."""
        count = len(self.cos)
        turned = rotate_pairs(x[:, :, :count].float(), self.cos, self.sin).to(x.dtype)
        return torch.cat([turned, x[:, :, count:]], dim=2)

    @staticmethod
    def of_grid(rows: int, columns: int, device: torch.device) -> Rotation:
        """Return that of a grid in raster order: half of a head by the row, half by the column."""
        speed = 10_000.0 ** -(torch.arange(0, _HEAD // 2, 2, dtype=torch.float64) / (_HEAD // 2))
        along = torch.arange(rows).double()[:, None] * speed, torch.arange(columns).double()[:, None] * speed
        angles = torch.cat([along[0].repeat_interleave(columns, dim=0), along[1].repeat(rows, 1)], dim=-1)
        angles = angles.repeat_interleave(2, dim=-1)
        return Rotation(angles.cos().float().to(device), angles.sin().float().to(device))


class _Attention(nn.Module):
    """Attention of one sequence to another, heads of 64, with norms of queries and keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.q_norm, self.k_norm = nn.LayerNorm(_HEAD, eps=1e-6), nn.LayerNorm(_HEAD, eps=1e-6)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        other: Tensor,
        *,
        turn_q: Rotation | None = None,
        turn_k: Rotation | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Map (B, N, width) and what it looks at, (B, M, width), to (B, N, width)."""
        q, k, v = (
            torch.unflatten(h, -1, (-1, _HEAD)).transpose(1, 2) for h in (self.q(x), self.k(other), self.v(other))
        )
        q, k = self.q_norm(q), self.k_norm(k)
        q, k = (turn_q(q) if turn_q else q), (turn_k(k) if turn_k else k)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.silu(self.fc1(x)))
        return out


class _Layer(nn.Module):
    """Pre-norm attention and MLP, each added through a gate a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate1, self.gate2 = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.attention, self.mlp = _Attention(width), _Mlp(width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, mask: Tensor, turn: Rotation | None = None) -> Tensor:
        h = self.norm1(x)
        x = x + self.gate1 * self.attention(h, h, turn_q=turn, turn_k=turn, mask=mask)
        out: Tensor = x + self.gate2 * self.mlp(self.norm2(x))
        return out


class _FlowBlock(nn.Module):
    """A transformer block whose shifts, scales and gates follow, place by place, from the time and what it reads of tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.cross_attn, self.mlp = _Attention(width), _Attention(width), _Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.time_embed = TimeEmbedding(width, scale=1000.0, waves=width)
        self.cond_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, turn: Rotation) -> Tensor:
        """Map (B, N, width), times (B,) and tokens (B, M, width) to (B, N, width)."""
        read = self.cross_attn(_norm(x), _norm(self.cond_embed(tokens)), turn_q=turn)
        change = self.adaLN_modulation(self.time_embed(t)[:, None] + read)
        shift1, scale1, gate1, shift2, scale2, gate2 = change.chunk(6, dim=-1)
        h = _norm(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(h, h, turn_q=turn, turn_k=turn)
        out: Tensor = x + gate2 * self.mlp(_norm(x) * (1 + scale2) + shift2)
        return out


class _Denoiser(nn.Module):
    def __init__(self, patch: int, width: int, depth: int, condition: int) -> None:
        super().__init__()
        self._patch = patch
        self.cond_mlp = nn.Linear(condition, width)
        self.conv_in, self.conv_out = nn.Conv2d(3 * patch**2, width, 1), nn.Conv2d(width, 3 * patch**2, 1)
        self.blocks = nn.ModuleList(_FlowBlock(width) for _ in range(depth))

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Map (B, 3, H, W), times (B,) and a group of tokens (B, M, condition) to the velocity, image minus noise."""
        grid = (x.shape[2] // self._patch, x.shape[3] // self._patch)
        turn = Rotation.of_grid(*grid, x.device)
        tokens = _norm(self.cond_mlp(tokens))
        h = F.linear(patches(x, self._patch), self.conv_in.weight.flatten(1), self.conv_in.bias)
        for block in self.blocks:
            h = block(h, t, tokens, turn)
        return unpatch(F.linear(_norm(h), self.conv_out.weight.flatten(1), self.conv_out.bias), self._patch, grid)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


@dataclass(frozen=True)
class Sampling:
    """How a picture is reached from noise.

    Attributes:
        steps: From time 0 (noise) to 1, evenly before the shift.
        shift: Times are t / (t + shift * (1 - t)).
        deviation: By which pictures are multiplied before noise is mixed in.
    """

    steps: int = 8
    shift: float = 2.0
    deviation: float = 0.6

    def shifted(self, time: float) -> float:
        """Return the time the denoiser is given."""
        return time / (time + self.shift * (1 - time))


class Dar(nn.Module):
    """Encoder of queries, codebook, causal transformer and flow decoder. Reference: arXiv:2505.23660, showlab/D-AR.

    Args:
        size: Height and width of the image.
        patch: Of the encoder.
        width: Of the encoder and of the transformer over tokens.
        layers: Of each of the two.
        tokens: How many.
        groups: Into how many parts of equal length, in order, the tokens are cut; each leads its share of the time.
        codes: Entries of the codebook.
        code_dim: Values of an entry.
        decoder: `patch`, `width` and `depth` of the denoiser.
        sampling: How it decodes.
        kept: How many of the tokens are emitted, the first ones; None is all.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        width: int,
        layers: int,
        tokens: int,
        groups: int,
        codes: int,
        code_dim: int,
        decoder: Mapping[str, int],
        sampling: Sampling | None = None,
        kept: int | None = None,
    ) -> None:
        super().__init__()
        self._size, self._tokens, self._groups, self._kept = size, tokens, groups, kept
        self._sampling = sampling or Sampling()
        self.patchify = nn.Conv2d(3, width, patch, stride=patch)
        self.query_embedding, self.query_linear = nn.Embedding(_PLACES, _QUERY), nn.Linear(_QUERY, width)
        self.encoder_layers = nn.ModuleList(_Layer(width) for _ in range(layers))
        self.quant_in_conv = nn.Conv2d(width, code_dim, 1, bias=False)
        self.codebook = nn.Embedding(codes, code_dim)
        self.quant_out_conv = nn.Conv2d(code_dim, width, 1, bias=False)
        self.decoder_embedding = nn.Embedding(_PLACES, width)
        self.decoder_layers = nn.ModuleList(_Layer(width) for _ in range(layers))
        self.denoiser = _Denoiser(**decoder, condition=width)

    def features(self, x: Tensor) -> Tensor:
        """Map (B, 3, size, size) in [-1, 1] to unit vectors, one a token emitted, (B, N, code_dim)."""
        cells = self.patchify(x)
        turn = Rotation.of_grid(cells.shape[2], cells.shape[3], x.device)
        seen = _norm(cells.flatten(2).transpose(1, 2))
        queries = self.query_linear(self.query_embedding.weight[: self._tokens]).expand(len(x), -1, -1)
        h = torch.cat([seen, queries], dim=1)
        mask = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=x.device).tril()
        mask[:, : seen.shape[1]] = True
        for layer in self.encoder_layers:
            h = layer(h, mask, turn)
        emitted = h[:, -self._tokens :][:, : self._kept]
        found = F.linear(_norm(emitted), self.quant_in_conv.weight.flatten(1))
        return F.normalize(found, dim=-1)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, size, size) in [-1, 1] to indices (B, 1, N)."""
        return nearest(self.features(x), self.codebook.weight, "cosine")[:, None]

    def conditions(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, N), all or the first ones, to what leads the denoiser, (B, N, width)."""
        count = indices.shape[2]
        vectors = lookup(indices[:, 0], self.codebook.weight, normalise=True)
        h = F.linear(vectors, self.quant_out_conv.weight.flatten(1)) + self.decoder_embedding.weight[:count]
        mask = torch.ones(count, count, dtype=torch.bool, device=indices.device).tril()
        for layer in self.decoder_layers:
            h = layer(h, mask)
        return _norm(h)

    def plan(self, count: int) -> list[tuple[float, float, slice]]:
        """Return for each step its time, the time after it, and the tokens that lead it, when `count` are given.

        Steps whose tokens are not given are left out; the last one that is taken goes to the end at once.

        Raises:
            ValueError: The tokens are fewer than a group.
        """
        length = self._tokens // self._groups
        starts = []
        for step in range(self._sampling.steps):
            time = step / self._sampling.steps
            group = math.floor(time * self._groups + 0.5) / self._groups
            first = min(self._tokens - length, int(group * self._tokens))
            if first + length > count:
                break
            starts.append((time, first))
        if not starts:
            raise ValueError(f"a group is {length} tokens; {count} are given")
        times = [self._sampling.shifted(time) for time, _ in starts] + [1.0]
        return [
            (now, after, slice(first, first + length))
            for (now, after), (_, first) in zip(pairwise(times), starts, strict=True)
        ]

    def velocity(self, x: Tensor, time: float, group: Tensor) -> Tensor:
        """Map noisy images (B, 3, H, W), a time and a group of conditions to the velocity in float32."""
        t = torch.full((len(x),), time, device=x.device)
        out: Tensor = self.denoiser(x.to(group.dtype), t, group)
        return out.float()

    def flow(self, noise: Tensor, conditions: Tensor) -> Tensor:
        """Walk from noise (B, 3, H, W) to images, nominally in [-1, 1], by the two-step method of Adams and Bashforth."""
        x, before = noise, None
        for now, after, group in self.plan(conditions.shape[1]):
            velocity = self.velocity(x, now, conditions[:, group])
            x = x + (after - now) * (velocity if before is None else 1.5 * velocity - 0.5 * before)
            before = velocity
        return x / self._sampling.deviation

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, N), all or the first groups, to images; draws the noise from torch's global generator."""
        noise = torch.randn(len(indices), 3, self._size, self._size).to(indices.device)
        return self.flow(noise, self.conditions(indices))

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry."""
        del codebook
        return TableNeighbours(self.codebook.weight, cosine=True)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the unit vectors the codebook is searched with, (B, N, code_dim)."""
        del codebook
        return self.features(x)


RULES: Sequence[Rule] = ((r"^denoiser\.", "diff_decoder.net."), (r"^codebook\.", "quantize.embedding."))
"""From the module's key names to the published ones."""

UNUSED = ("quantize.codebook_used", "diff_decoder.net.repa_out.*")
"""Published keys that serve the training."""


def network(architecture: Mapping[str, Any], sampling: Sampling | None = None, kept: int | None = None) -> Dar:
    """Build the module a card's architecture describes."""
    return Dar(**architecture, sampling=sampling, kept=kept)


def tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load the moving averages of a published checkpoint (role `model`), as the authors evaluate.

    Raises:
        WeightsRefused: The file cannot be read safely or does not fit.
    """
    make = partial(network, card.architecture, Sampling(int(card.options["steps"])), int(card.options["tokens"]))
    layouts = [published_as(RULES)]
    loaded = load_network(card, weights, make, inside=("ema",), or_inside=[()], layouts=layouts, drop=UNUSED)
    return CodebookTokenizer(loaded, loaded.module)
