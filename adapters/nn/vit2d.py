"""Plain vision-transformer blocks that several 2D autoencoders share: attention, MLPs, patches, rotary codes, key layouts."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import Layout, State

Rotate = Callable[[Tensor], Tensor]
"""Turns queries or keys (B, heads, N, head_dim) by their positions."""

Norm = Callable[[int], nn.Module]


def layer_norm(eps: float) -> Norm:
    """Return the constructor of a LayerNorm with this epsilon."""
    return lambda width: nn.LayerNorm(width, eps=eps)


class Attention(nn.Module):
    """Multi-head attention with fused projections; optional norms of each head's queries and keys, and of the result."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_norm: Norm | None = None,
        inner_norm: Norm | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self._heads, self._causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = head_norm(width // heads) if head_norm else nn.Identity()
        self.k_norm = head_norm(width // heads) if head_norm else nn.Identity()
        self.norm = inner_norm(width) if inner_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotate: Rotate | None = None, mask: Tensor | None = None) -> Tensor:
        """Map (B, N, width) to the same shape; `mask` (N, N) is True where a query may look."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self._causal)
        out: Tensor = self.proj(self.norm(h.transpose(1, 2).flatten(2)))
        return out


class Mlp(nn.Module):
    """Two linear layers around a GELU, exact or by its tanh formula."""

    def __init__(self, width: int, hidden: int, out: int | None = None, *, tanh: bool = False) -> None:
        super().__init__()
        self._approximate = "tanh" if tanh else "none"
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out or width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate=self._approximate))
        return out


class GatedMlp(nn.Module):
    """down(norm(act(gate(x)) * up(x))): SwiGLU and its relatives."""

    def __init__(self, width: int, hidden: int, *, inner_norm: Norm | None = None) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.up = nn.Linear(width, hidden)
        self.norm = inner_norm(hidden) if inner_norm else nn.Identity()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.norm(F.silu(self.gate(x)) * self.up(x)))
        return out


class Block(nn.Module):
    """Pre-norm residual block of attention and an MLP, each branch optionally scaled a channel."""

    def __init__(self, norm: Norm, width: int, attention: nn.Module, mlp: nn.Module, *, scaled: bool = False) -> None:
        super().__init__()
        self.norm1, self.attn = norm(width), attention
        self.norm2, self.mlp = norm(width), mlp
        self.gamma1 = nn.Parameter(torch.empty(width)) if scaled else None
        self.gamma2 = nn.Parameter(torch.empty(width)) if scaled else None

    def forward(self, x: Tensor, rotate: Rotate | None = None, mask: Tensor | None = None) -> Tensor:
        normed = self.norm1(x)
        h = self.attn(normed, rotate) if mask is None else self.attn(normed, rotate, mask)
        x = x + (h if self.gamma1 is None else self.gamma1 * h)
        h = self.mlp(self.norm2(x))
        out: Tensor = x + (h if self.gamma2 is None else self.gamma2 * h)
        return out


def transformer(width: int, layers: int, heads: int) -> nn.ModuleList:
    """Return plain blocks with norms of epsilon 1e-5 and MLPs of four times the width, as OpenCLIP's are."""
    return nn.ModuleList(
        Block(layer_norm(1e-5), width, Attention(width, heads), Mlp(width, 4 * width)) for _ in range(layers)
    )


class TransformerEncoder(nn.Module):
    """Such blocks, one after the other."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.transformer = transformer(width, layers, heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to the same shape."""
        for block in self.transformer:
            x = block(x)
        return x


def patches(x: Tensor, size: int) -> Tensor:
    """Cut (B, C, H, W) into raster-ordered patches (B, N, C * size * size), channels outermost."""
    return F.unfold(x, size, stride=size).transpose(1, 2)


def unpatch(tokens: Tensor, size: int, grid: tuple[int, int], *, channels_last: bool = False) -> Tensor:
    """Lay patches (B, N, C * size * size) out as (B, C, H, W); values of a patch are (C, size, size) or (size, size, C)."""
    h, w = grid
    if channels_last:
        x = torch.unflatten(torch.unflatten(tokens, -1, (size, size, -1)), 1, (h, w))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
    return F.fold(tokens.transpose(1, 2), (h * size, w * size), size, stride=size)


def swiglu_width(width: int, ratio: float = 4.0, multiple: int = 8) -> int:
    """Return two thirds of `ratio * width`, rounded up to a multiple: the hidden width at equal cost of a gated MLP."""
    hidden = int(2 / 3 * ratio * width)
    return -(-hidden // multiple) * multiple


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs (interleaved order); `cos` and `sin` (N, head_dim) repeat each angle twice."""
    even, odd = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((-odd, even), dim=-1).flatten(-2) * sin


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel i with channel i + head_dim/2; `cos` and `sin` (N, head_dim) hold the angles twice in a row."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


# ------------------------------------------------------------------------------------------------------- key layouts


def renamed(rules: Sequence[tuple[str, str]]) -> Layout:
    """Return a layout that applies regular-expression replacements to every key, in order."""
    compiled = [(re.compile(pattern), new) for pattern, new in rules]

    def layout(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
        del wanted
        out: dict[str, Tensor] = {}
        for key, value in state.items():
            for pattern, new in compiled:
                key = pattern.sub(new, key)  # noqa: PLW2901
            out[key] = value
        return out

    return layout


OPEN_CLIP_BLOCK = (
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""The rules from OpenCLIP's keys of a block to those of `Block`."""


def fused_qkv(q: str, k: str, v: str, *, unbiased: Collection[str] = ()) -> Layout:
    """Return a layout that stacks three projections into `<stem>.qkv`.

    Args:
        q: Name of the queries' module (`q_proj`); `<stem>` is what stands before it.
        k: Of the keys'.
        v: Of the values'.
        unbiased: Those that were published without a bias; theirs becomes zero.
    """

    def layout(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
        out = dict(state)
        for key in wanted:
            stem, sign, kind = key.partition(".qkv.")
            named = {name: f"{stem}.{name}.{kind}" for name in (q, k, v)}
            absent = {name for name, part in named.items() if part not in state}
            if not sign or len(absent) == len(named) or (absent and (kind != "bias" or not absent <= set(unbiased))):
                continue
            like = next(state[part] for part in named.values() if part in state)
            out[key] = torch.cat([torch.zeros_like(like) if n in absent else out.pop(p) for n, p in named.items()])
        return out

    return layout


# ------------------------------------------------------------------------------------------------------------- pixels


def imagenet(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return ImageNet's channel mean and deviation, (1, 3, 1, 1) each, as networks made for them expect pixels in [0, 1]."""
    mean = torch.tensor([0.485, 0.456, 0.406], device=like.device, dtype=like.dtype)
    std = torch.tensor([0.229, 0.224, 0.225], device=like.device, dtype=like.dtype)
    return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
