"""LPIPS as particular projects feed it: each reproduces a published column, none is a better measure than `lpips`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample

from .perceptual import Lpips


class LpipsVariant:
    """`lpips` of other pictures than reference and reconstruction. Built by the functions below."""

    undefined: Mapping[str, str] = {}

    def __init__(
        self, name: str, usual: str, plain: Lpips, read: Callable[[Sample], Sample], text: str, reference: str
    ) -> None:
        self._plain, self._read, self._text, self._reference = plain, read, text, reference
        net = plain.column.removeprefix("lpips_")
        self.column = f"{name}_{net}"
        self._name = name if net == usual else self.column

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the trunk's sha256 is one of them."""
        return MetricSpec(
            name=self._name,
            modalities=("image", "video"),
            columns=(Column(self.column, "", False, self._text, atol=1e-5),),
            summary=f"LPIPS, {self._text}",
            reference=self._reference,
            protocol={**self._plain.spec.protocol, "input": self._text},
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the trunk where it is absent and `offline` allows it."""
        self._plain.fetch(offline=offline)

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: one column, (B,) float64. Raises what `Lpips` does."""
        return {self.column: self._plain(self._read(sample))[self._plain.column]}


def lpips_unmapped(*, net: str = "alex", weights: str = "") -> LpipsVariant:
    """LPIPS of pictures in [0, 1] given to a network made for [-1, 1]: a mistake in circulation, lower than `lpips`.

    VTBench's, which is torchmetrics' `LearnedPerceptualImagePatchSimilarity()` with its default `normalize=False`.

    Args:
        net: `alex`, `vgg` or `squeeze`.
        weights: As for `lpips`.
    """
    return LpipsVariant(
        "lpips_unmapped",
        "alex",
        Lpips(net=net, weights=weights),
        # `lpips` maps v to 2v - 1: it gets what that makes the old value of.
        lambda s: replace(s, reference=(s.reference + 1) / 2, reconstruction=(s.reconstruction + 1) / 2),
        "[0, 1] taken for [-1, 1]",
        "torchmetrics LearnedPerceptualImagePatchSimilarity(normalize=False) on [0, 1]",
    )


def lpips_unclamped(*, net: str = "vgg", weights: str = "") -> LpipsVariant:
    """LPIPS of the decoder's output as it comes, neither clamped nor rounded: LightningDiT (VA-VAE), with VGG.

    Args:
        net: `alex`, `vgg` or `squeeze`.
        weights: As for `lpips`.
    """
    return LpipsVariant(
        "lpips_unclamped",
        "vgg",
        Lpips(net=net, weights=weights),
        lambda s: replace(s, reconstruction=s.raw),
        "the decoder's output neither clamped nor rounded",
        "hustvl/LightningDiT evaluate_tokenizer.py: taming's LPIPS, the weights of lpips vgg 0.1",
    )
