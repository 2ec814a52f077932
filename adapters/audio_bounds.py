"""Rows that say what a number means: the original at another rate or band, and noise of its level; no tokenizers at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.types import Code

if TYPE_CHECKING:
    from tokbench.spec import Card


class Resampled:
    """The original brought to `rate` Hz and back by the engine's resampler: the ceiling of every codec of that rate."""

    def __init__(self, card: Card, weights: Mapping[str, Path]) -> None:
        del weights
        self.spec = replace(card.spec, sample_rate=int(card.options["rate"]))

    def encode(self, x: Tensor) -> Code:
        """Return the signal itself, (B, C, T)."""
        return Code(side={"signal": x})

    def decode(self, code: Code) -> Tensor:
        """Return what `encode` was given.

        Raises:
            UsageError: The code carries no signal.
        """
        return _signal(code, self.spec.name)


class BandLimited:
    """The original through a linear-phase low-pass at `cutoff` Hz: the anchors of listening tests (ITU-R BS.1534).

    A windowed sinc at the card's rate, flat to the cut-off and 60 dB down 500 Hz above it, without delay.
    """

    def __init__(self, card: Card, weights: Mapping[str, Path]) -> None:
        del weights
        self.spec = card.spec
        rate = card.spec.sample_rate or 48_000
        self._filter = low_pass(rate, float(card.options["cutoff"]), 500.0, 60.0)

    def encode(self, x: Tensor) -> Code:
        """Filter (B, C, T) row by row.

        Raises:
            UsageError: Not (B, C, T).
        """
        if x.ndim != 3:
            raise UsageError(f"{self.spec.name} takes (B, C, T), got {tuple(x.shape)}")
        kernel = self._filter.to(x.device)[None, None]
        rows = [
            torch.nn.functional.conv1d(row.double()[:, None], kernel, padding=kernel.shape[-1] // 2)[:, 0].float()
            for row in x
        ]
        return Code(side={"signal": torch.stack(rows)})

    def decode(self, code: Code) -> Tensor:
        """Return the filtered signal.

        Raises:
            UsageError: The code carries no signal.
        """
        return _signal(code, self.spec.name)


class Noise:
    """White Gaussian noise with the level (root mean square) of each row's channels: the floor of every metric."""

    def __init__(self, card: Card, weights: Mapping[str, Path]) -> None:
        del weights
        self.spec = card.spec

    def encode(self, x: Tensor) -> Code:
        """Draw noise of the level and shape of (B, C, T) from torch's global generator, seeded by the engine.

        Raises:
            NotApplicable: A value is not finite.
        """
        if not bool(torch.isfinite(x).all()):
            raise NotApplicable(f"{self.spec.name} cannot take the level of NaN or infinity")
        level = x.double().square().mean(-1, keepdim=True).sqrt()
        noise = torch.randn(x.shape, dtype=torch.float64).to(x.device)
        return Code(side={"signal": (noise * level).float()})

    def decode(self, code: Code) -> Tensor:
        """Return the noise.

        Raises:
            UsageError: The code carries no signal.
        """
        return _signal(code, self.spec.name)


def low_pass(rate: int, cutoff: float, width: float, attenuation: float) -> Tensor:
    """Design a symmetric low-pass of odd length by Kaiser's window method, gain 1 at 0 Hz: float64 (N,).

    Args:
        rate: Hz.
        cutoff: Hz up to which it is flat.
        width: Hz from there to the stop band.
        attenuation: Of the stop band in dB, above 50.
    """
    taps = math.ceil((attenuation - 7.95) / (2.285 * 2 * math.pi * width / rate)) // 2 * 2 + 1
    at = torch.arange(taps, dtype=torch.float64) - taps // 2
    middle = 2 * (cutoff + width / 2) / rate
    window = torch.kaiser_window(taps, periodic=False, beta=0.1102 * (attenuation - 8.7), dtype=torch.float64)
    kernel: Tensor = torch.special.sinc(at * middle) * window
    return kernel / kernel.sum()


def _signal(code: Code, name: str) -> Tensor:
    if "signal" not in code.side:
        raise UsageError(f"{name} decodes the signal it was given; this code carries none")
    return code.side["signal"]
