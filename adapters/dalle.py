"""DALL-E's discrete VAE: residual convolutions without normalisation, 8192 codes chosen by the largest logit."""

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


class _Conv(nn.Module):
    """A same-size convolution whose parameters are called `w` and `b`."""

    def __init__(self, width_in: int, width_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(width_out, width_in, kernel, kernel))
        self.b = nn.Parameter(torch.empty(width_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=(self.w.shape[-1] - 1) // 2)


class _Block(nn.Module):
    def __init__(self, width_in: int, width_out: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        hidden = width_out // 4
        widths = (width_in, hidden, hidden, hidden, width_out)
        self._gain = gain
        self.id_path = _Conv(width_in, width_out, 1) if width_in != width_out else nn.Identity()
        self.res_path = nn.ModuleDict(
            {f"conv_{i + 1}": _Conv(widths[i], widths[i + 1], kernel) for i, kernel in enumerate(kernels)}
        )

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in self.res_path.values():
            h = conv(F.relu(h))
        out: Tensor = self.id_path(x) + self._gain * h
        return out


class _Half(nn.Module):
    """The encoder (halves the grid after each group but the last) or the decoder (doubles it)."""

    def __init__(
        self, entry: _Conv, widths: tuple[int, ...], per_group: int, out: int, kernels: tuple[int, ...], *, up: bool
    ) -> None:
        super().__init__()
        self._groups, self._up = len(widths) - 1, up
        gain = 1 / (self._groups * per_group) ** 2
        parts: dict[str, nn.Module] = {"input": entry}
        for g in range(self._groups):
            blocks = {
                f"block_{i + 1}": _Block(widths[g + (i > 0)], widths[g + 1], kernels, gain) for i in range(per_group)
            }
            parts[f"group_{g + 1}"] = nn.ModuleDict(blocks)
        parts["output"] = nn.ModuleDict({"conv": _Conv(widths[-1], out, 1)})
        self.blocks = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks["input"](x)
        for g in range(1, self._groups + 1):
            for block in self.blocks[f"group_{g}"].values():  # type: ignore[operator]
                h = block(h)
            if g < self._groups:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest") if self._up else F.max_pool2d(h, 2)
        out: Tensor = self.blocks["output"]["conv"](F.relu(h))  # type: ignore[index]
        return out


class DalleVae(nn.Module):
    """The two halves and the logit-Laplace map of pixels around them.

    References: Ramesh et al., arXiv:2102.12092; openai/DALL-E.
    """

    def __init__(
        self,
        n_hid: int = 256,
        n_init: int = 128,
        n_blk_per_group: int = 2,
        vocab_size: int = 8192,
        logit_laplace_eps: float = 0.1,
    ) -> None:
        super().__init__()
        self._vocabulary, self._eps = vocab_size, logit_laplace_eps
        down = (n_hid, n_hid, 2 * n_hid, 4 * n_hid, 8 * n_hid)
        up = (n_init, 8 * n_hid, 4 * n_hid, 2 * n_hid, n_hid)
        self.encoder = _Half(_Conv(3, n_hid, 7), down, n_blk_per_group, vocab_size, (3, 3, 3, 1), up=False)
        self.decoder = _Half(_Conv(vocab_size, n_init, 1), up, n_blk_per_group, 6, (1, 3, 3, 3), up=True)

    def features(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to logits (B, vocabulary, H/8, W/8)."""
        out: Tensor = self.encoder((1 - 2 * self._eps) * x + self._eps)
        return out

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to indices (B, 1, H/8, W/8), the largest logit, without Gumbel noise."""
        return self.features(x).argmax(1, keepdim=True)

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, h, w) to (B, 3, 8h, 8w), nominally in [0, 1]; the predicted log-scales are left out."""
        first: Tensor = self.decoder.blocks["input"].w  # type: ignore[assignment]
        one_hot = F.one_hot(indices[:, 0], self._vocabulary).movedim(-1, 1).to(first.dtype)
        means = torch.sigmoid(self.decoder(one_hot)[:, :3])
        return (means - self._eps) / (1 - 2 * self._eps)


def network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module a card's architecture describes."""
    return DalleVae(**architecture)


def tokenizer(card: Card, weights: Weights) -> NetworkTokenizer:
    """Load the two halves from their state dicts (roles `encoder` and `decoder`).

    The published files are pickled modules, which are refused; see the card's notes for their conversion.
    """
    state = {
        f"{half}.{key}": value for half in ("encoder", "decoder") for key, value in load_state(weights[half]).items()
    }
    source = f"{weights['encoder']} and {weights['decoder']}"
    return NetworkTokenizer(card.spec, assemble(lambda: network(card.architecture), state, source=source))
