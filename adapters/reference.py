"""The upper bound of every board: tokenizers that change nothing, so that a row shows what preparation alone costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from tokbench.errors import UsageError
from tokbench.types import Code

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokbench.spec import Card


class Identity:
    """Hands the signal through to the bit. Its kind is `none`: the signal rides in `side`, and no rate is defined."""

    def __init__(self, card: Card, weights: Mapping[str, Path]) -> None:
        del weights
        self.spec = card.spec

    def encode(self, x: Tensor) -> Code:
        """Return the signal itself: (B, 3, H, W), (B, 3, T, H, W) or (B, C, T), any dtype and device."""
        return Code(side={"signal": x})

    def decode(self, code: Code) -> Tensor:
        """Return what `encode` was given.

        Raises:
            UsageError: The code carries no signal.
        """
        if "signal" not in code.side:
            raise UsageError(f"{self.spec.name} decodes the signal it was given; this code carries none")
        return code.side["signal"]
