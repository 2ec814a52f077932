"""FlowMo: an image as words of signs from a two-stream transformer, decoded from noise by another one along a straight flow."""

from __future__ import annotations

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

from .nn.bits import bits_of, index_of
from .nn.checkpoint import dtype_of
from .nn.codebooks import CodebookTokenizer
from .nn.dit import TimeEmbedding, modulate
from .nn.keynames import Rule, published_as
from .nn.neighbours import BitNeighbours
from .nn.network import load_network
from .nn.vit2d import patches, rotate_pairs, unpatch

Rotation = tuple[Tensor, Tensor]
"""cos and sin, (N, head_dim) each."""


class _HeadNorm(nn.Module):
    """Root-mean-square norm of each head, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, heads, N, head_dim) to the same shape."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype) * self.scale


class _Stream(nn.Module):
    """What a block holds for one of its two streams; without a time, nothing is shifted or scaled and every gate is open."""

    def __init__(self, width: int, heads: int, *, timed: bool) -> None:
        super().__init__()
        self._heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query_norm, self.key_norm = _HeadNorm(width // heads), _HeadNorm(width // heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.lin = nn.Linear(width, 6 * width) if timed else None

    def modulation(self, time: Tensor | None) -> Sequence[Tensor] | None:
        """Return shift, scale and gate of attention, then of the MLP, (B, width) each."""
        if self.lin is None or time is None:
            return None
        return torch.chunk(self.lin(F.silu(time)), 6, dim=-1)

    def attended(self, x: Tensor, change: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Return queries, keys and values (B, heads, N, head_dim) of (B, N, width)."""
        h = _norm(x) if change is None else modulate(_norm(x), change[0], change[1])
        qkv = self.qkv(h)
        q, k, v = qkv.view(*qkv.shape[:2], 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        return self.query_norm(q), self.key_norm(k), v

    def finish(self, x: Tensor, mixed: Tensor, change: Sequence[Tensor] | None) -> Tensor:
        """Add what attention mixed, then the MLP, to (B, N, width)."""
        if change is None:
            x = x + self.proj(mixed)
            out: Tensor = x + self.mlp(_norm(x))
            return out
        x = x + change[2][:, None] * self.proj(mixed)
        out = x + change[5][:, None] * self.mlp(modulate(_norm(x), change[3], change[4]))
        return out


class _Block(nn.Module):
    """Two streams with weights of their own and one attention over both. Reference: MMDiT, arXiv:2403.03206; Flux."""

    def __init__(self, width: int, heads: int, *, timed: bool) -> None:
        super().__init__()
        self.txt, self.img = (_Stream(width, heads, timed=timed) for _ in range(2))

    def forward(self, txt: Tensor, img: Tensor, rotation: Rotation, time: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map tokens (B, N, width) and patches (B, M, width) to the same shapes."""
        changes = [self.txt.modulation(time), self.img.modulation(time)]
        ours, theirs = self.txt.attended(txt, changes[0]), self.img.attended(img, changes[1])
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(ours, theirs, strict=True))
        q, k = (rotate_pairs(part.float(), *rotation).to(v.dtype) for part in (q, k))
        # The scale of muP: 8 / d instead of 1 / sqrt(d); both are 1/8 at 64 values a head.
        mixed = F.scaled_dot_product_attention(q, k, v, scale=8.0 / q.shape[-1]).transpose(1, 2).flatten(2)
        count = txt.shape[1]
        return self.txt.finish(txt, mixed[:, :count], changes[0]), self.img.finish(img, mixed[:, count:], changes[1])


class _Last(nn.Module):
    """A norm and a linear layer; with a time, the norm is modulated and taken once more, as in the official code."""

    def __init__(self, width: int, out: int, *, timed: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)) if timed else None

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """Map (B, N, width) to (B, N, out)."""
        x = _norm(x)
        if self.adaLN_modulation is not None and time is not None:
            shift, scale = self.adaLN_modulation(time).chunk(2, dim=1)
            x = _norm(modulate(x, shift, scale))
        out: Tensor = self.linear(x)
        return out


class _Trunk(nn.Module):
    """Blocks over tokens and patches, the place of each told by rotation: three times n for tokens, (0, row, column) else."""

    def __init__(
        self,
        patch: int,
        context: int,
        width: int,
        depth: int,
        heads: int,
        axes: Sequence[int],
        out: int,
        *,
        timed: bool,
    ) -> None:
        super().__init__()
        self._patch, self._axes = patch, tuple(axes)
        self.img_in, self.txt_in = nn.Linear(3 * patch**2, width), nn.Linear(context, width)
        self.time_in = TimeEmbedding(width, scale=1000.0) if timed else None
        self.double_blocks = nn.ModuleList(_Block(width, heads, timed=timed) for _ in range(depth))
        self.final_layer = _Last(width, out, timed=timed)

    def forward(self, image: Tensor, tokens: Tensor, t: Tensor | None = None) -> Tensor:
        """Map (B, 3, H, W), (B, N, context) and times (B,) to an image; without times to (B, N, out)."""
        grid = (image.shape[2] // self._patch, image.shape[3] // self._patch)
        pieces = patches(image, self._patch)
        # Values of a patch: (row, column, channel).
        pieces = pieces.view(*pieces.shape[:2], 3, -1).transpose(2, 3).flatten(2)
        img, txt = self.img_in(pieces), self.txt_in(tokens)
        time = None if self.time_in is None or t is None else self.time_in(t)
        rotation = self._rotation(tokens.shape[1], grid, image.device)
        for block in self.double_blocks:
            txt, img = block(txt, img, rotation, time)
        if time is None:
            out: Tensor = self.final_layer(txt, None)
            return out
        return unpatch(self.final_layer(img, time), self._patch, grid, channels_last=True)

    def _rotation(self, count: int, grid: tuple[int, int], device: torch.device) -> Rotation:
        rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        cells = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)
        places = torch.cat([torch.arange(count)[:, None].expand(-1, 3), cells]).double()
        angles = []
        for axis, size in enumerate(self._axes):
            speed = 10_000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
            angles.append(places[:, axis, None] * speed)
        turned = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
        return turned.cos().float().to(device), turned.sin().float().to(device)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


@dataclass(frozen=True)
class Sampling:
    """How a picture is reached from noise.

    Attributes:
        steps: Of Euler's method, from time 1 (noise) to 0.
        guidance: How far velocities are moved away from those without tokens; 1 is not at all.
        shift: Times are (k / steps) ** shift, k = steps, ..., 0.
        interval: Noise over signal between which there is guidance.
    """

    steps: int = 25
    guidance: float = 1.5
    shift: float = 4.0
    interval: tuple[float, float] = (0.17, 1.02)

    def times(self) -> list[float]:
        """Return the steps + 1 times from 1 to 0."""
        return [(k / self.steps) ** self.shift for k in range(self.steps, -1, -1)]

    def guided(self, time: float) -> bool:
        """Tell whether there is guidance at a time, whose share of noise is the time itself."""
        low, high = (level / (1 + level) for level in self.interval)
        return self.guidance != 1.0 and low <= time <= high


class FlowMo(nn.Module):
    """Encoder, sign quantizer and flow decoder. Reference: arXiv:2503.11056, kylesargent/FlowMo.

    Args:
        size: Height and width of the image.
        patch: Of both transformers.
        tokens: How many.
        bits: Of a codebook.
        groups: Codebooks a token; value k of a token is bit k // groups of group k % groups, the lowest first.
        encoder: `width`, `depth`, `heads` and `axes`, the values a head that each axis turns.
        decoder: The same.
        sampling: How it decodes.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        tokens: int,
        bits: int,
        groups: int,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self._size, self._tokens, self._bits, self._groups = size, tokens, bits, groups
        self._sampling = sampling or Sampling()
        values = bits * groups
        self.encoder = _Trunk(patch, values, **encoder, out=values, timed=False)
        # The one value more is 1 where a token is given and 0 where it is withheld.
        self.decoder = _Trunk(patch, values + 1, **decoder, out=3 * patch**2, timed=True)

    def features(self, x: Tensor) -> Tensor:
        """Map (B, 3, size, size) in [-1, 1] to (B, tokens, bits, groups)."""
        empty = x.new_zeros(len(x), self._tokens, self._bits * self._groups)
        values: Tensor = self.encoder(x, empty)
        return values.view(*values.shape[:2], self._bits, self._groups)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, size, size) in [-1, 1] to indices (B, groups, tokens)."""
        return index_of(self.features(x) > 0, dim=2, low_first=True).transpose(1, 2)

    def code(self, indices: Tensor) -> Tensor:
        """Map indices (B, groups, tokens) to what the decoder is given, (B, tokens, bits * groups + 1)."""
        signs = bits_of(indices.transpose(1, 2), self._bits, dim=2, low_first=True) * 2 - 1
        return F.pad(signs.flatten(2).to(dtype_of(self)), (0, 1), value=1.0)

    def velocity(self, x: Tensor, time: float, code: Tensor) -> Tensor:
        """Map noisy images (B, 3, H, W) in float32, a time and a code to the guided velocity, noise minus image."""
        t, h = torch.full((len(x),), time, device=x.device), x.to(code.dtype)
        with_code: Tensor = self.decoder(h, code, t).float()
        if not self._sampling.guided(time):
            return with_code
        without: Tensor = self.decoder(h, torch.zeros_like(code), t).float()
        return without + self._sampling.guidance * (with_code - without)

    def flow(self, noise: Tensor, code: Tensor) -> Tensor:
        """Walk from noise (B, 3, H, W) to images, nominally in [-1, 1]."""
        x, times = noise, self._sampling.times()
        for now, after in pairwise(times):
            x = x - (now - after) * self.velocity(x, now, code)
        return x

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, groups, tokens) to (B, 3, size, size); draws the noise from torch's global generator."""
        noise = torch.randn(len(indices), 3, self._size, self._size).to(indices.device)
        return self.flow(noise, self.code(indices))

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near a word: words with other bits."""
        del codebook
        return BitNeighbours(self._bits)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the values (B, tokens, bits) whose signs are one group's words."""
        return self.features(x)[..., int(codebook)]


RULES: Sequence[Rule] = (
    (r"\.(img|txt)\.(qkv|proj)\.", r".\1_attn.\2."),
    (r"\.(img|txt)\.(query|key)_norm\.", r".\1_attn.norm.\2_norm."),
    (r"\.(img|txt)\.mlp\.", r".\1_mlp."),
    (r"\.(img|txt)\.lin\.", r".\1_mod.lin."),
    (r"time_in\.mlp\.0\.", "time_in.in_layer."),
    (r"time_in\.mlp\.2\.", "time_in.out_layer."),
    (r"^encoder\.final_layer\.", "encoder.final_layer_txt."),
    (r"^decoder\.final_layer\.", "decoder.final_layer_img."),
)
"""From the module's key names to the published ones."""

UNUSED = (
    "encoder.time_in.*",
    "encoder.double_blocks.*_mod.lin.*",
    "encoder.final_layer_txt.adaLN_modulation.*",
    "encoder.final_layer_img.*",
    "decoder.final_layer_txt.*",
)
"""Published keys that no reconstruction passes: the encoder has no time and no image, the decoder no tokens to return."""


def network(architecture: Mapping[str, Any], sampling: Sampling | None = None) -> FlowMo:
    """Build the module a card's architecture describes."""
    return FlowMo(**architecture, sampling=sampling)


def tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load the moving averages of a published checkpoint (role `model`), as the authors evaluate.

    Raises:
        WeightsRefused: The file cannot be read safely or does not fit.
    """
    options = card.options
    sampling = Sampling(int(options["steps"]), float(options["guidance"]), float(options["shift"]))
    make = partial(network, card.architecture, sampling)
    inside = ("model_ema_state_dict",)
    loaded = load_network(card, weights, make, inside=inside, layouts=[published_as(RULES)], drop=UNUSED)
    return CodebookTokenizer(loaded, loaded.module)
