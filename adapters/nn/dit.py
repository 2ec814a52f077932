"""Diffusion transformers as decoders: time-modulated blocks, and the ancestral sampler their authors decode with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .vit2d import Attention, Mlp

Floats = npt.NDArray[np.float64]


class TimeEmbedding(nn.Module):
    """cos and sin of t at half of `waves` frequencies each, then an MLP of two layers with SiLU."""

    def __init__(self, width: int, longest_period: float = 10_000.0, scale: float = 1.0, *, waves: int = 256) -> None:
        super().__init__()
        self._longest_period, self._scale, self._waves = longest_period, scale, waves
        self.mlp = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Map times (B,) to (B, width)."""
        half = self._waves // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t.float()[:, None] * self._scale * torch.exp(-math.log(self._longest_period) * steps / half)
        embedded = torch.cat([angles.cos(), angles.sin()], dim=-1)
        first: Tensor = next(self.mlp.parameters())
        out: Tensor = self.mlp(embedded.to(first.dtype))
        return out


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (B, N, D) scaled by 1 + scale and shifted; both (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class DitBlock(nn.Module):
    """Attention and an MLP, whose shift, scale and gate the time decides (adaLN-Zero). Reference: DiT, arXiv:2212.09748."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, 4 * width, tanh=True)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        out: Tensor = x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return out


class FinalLayer(nn.Module):
    """A time-modulated norm and a linear layer to `out` values a token."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        out: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return out


@dataclass(frozen=True)
class Moments:
    """What a step of the reverse process is drawn from: (B, C, H, W) each."""

    mean: Tensor
    log_variance: Tensor
    start: Tensor


class AncestralSampler:
    """The reverse process of DDPM with a learned range of variances, over some of its 1,000 steps.

    Betas run linearly from 1e-4 to 2e-2. The model predicts noise, and for each value where between the smallest and the
    largest sensible variance its own lies. References: arXiv:2102.09672; openai/guided-diffusion.

    Args:
        steps: How many of the 1,000 are taken, evenly.
    """

    def __init__(self, steps: int) -> None:
        betas = np.linspace(1e-4, 2e-2, 1000)
        kept: Floats = np.cumprod(1.0 - betas, dtype=np.float64)
        stride = 999 / (steps - 1) if steps > 1 else 0.0
        self.times = [round(index * stride) for index in range(steps)]
        total: Floats = kept[self.times]
        before: Floats = np.concatenate([[1.0], total[:-1]])
        beta: Floats = 1 - total / before
        variance: Floats = beta * (1 - before) / (1 - total)
        self._start = (np.sqrt(1 / total), np.sqrt(1 / total - 1))
        self._mean = (beta * np.sqrt(before) / (1 - total), (1 - before) * np.sqrt(1 - beta) / (1 - total))
        # The variance of the last step is zero; its logarithm is taken from the step before.
        smallest = np.concatenate([variance[1:2], variance[1:]]) if steps > 1 else beta
        self._range = (np.log(smallest), np.log(beta))

    def moments(self, index: int, x: Tensor, output: Tensor) -> Moments:
        """Return what step `index` (0 is the last one taken) is drawn from, given the model's 2C channels at its time."""
        noise, share = output.chunk(2, dim=1)
        start = float(self._start[0][index]) * x - float(self._start[1][index]) * noise
        mean = float(self._mean[0][index]) * start + float(self._mean[1][index]) * x
        low, high = (float(end[index]) for end in self._range)
        share = (share + 1) / 2
        return Moments(mean, share * high + (1 - share) * low, start)

    def sample(self, model: Callable[[Tensor, Tensor], Tensor], noise: Tensor) -> Tensor:
        """Run the whole process from `noise` (B, C, H, W); draws from torch's global generator.

        Args:
            model: Maps x and times (B,) int64 to (B, 2C, H, W).
            noise: Where it begins.
        """
        x = noise
        for index in self._indices():
            time = torch.full((len(x),), self.times[index], device=x.device, dtype=torch.int64)
            found = self.moments(index, x, model(x, time))
            x = found.mean
            if index > 0:
                x = x + torch.exp(0.5 * found.log_variance) * torch.randn(x.shape).to(x)
        return x

    def _indices(self) -> Iterator[int]:
        return iter(range(len(self.times) - 1, -1, -1))
