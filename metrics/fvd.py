"""Reconstruction FVD: the Fréchet distance between I3D logits of clips and their reconstructions, by preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from torch import Tensor

from tokbench.errors import UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample

from ._backbones import digest, fetch
from ._exact import SHIFTS
from .features import Side, Variant
from .frechet import FrechetDistance
from .i3d import FRAMES, WEIGHTS, Fit, I3d

Covariance = Literal["n-1", "n"]

DEFAULT = "tokenbench"

_TF, _VIDEOGPT = 1e-3, 1e-5


@dataclass(frozen=True)
class Preset:
    """What a published rFVD does behind the decoder.

    Attributes:
        variant: How the decoder's output becomes a clip.
        fit: How a frame becomes 224 x 224.
        epsilon: Of the network's batch norms.
        covariance: What the sums of squares are divided by.
        used_by: Where it is from.
    """

    variant: Variant
    fit: Fit
    epsilon: float
    covariance: Covariance
    used_by: str


PRESETS: Mapping[str, Preset] = {
    "tokenbench": Preset("round", "crop", _TF, "n-1", "NVIDIA TokenBench: Cosmos tokenizers"),
    "styleganv": Preset("round", "squeeze", _TF, "n", "StyleGAN-V's fvd2048_16f"),
    "larp": Preset("clamp", "squeeze", _TF, "n", "LARP"),
    "videogpt": Preset("truncate", "crop", _VIDEOGPT, "n-1", "VideoGPT; common_metrics_on_video_quality, videogpt"),
    "omnitokenizer": Preset("truncate", "squeeze", _VIDEOGPT, "n-1", "OmniTokenizer; TATS"),
    "seed-voken": Preset("truncate", "squeeze", _VIDEOGPT, "n-1", "SEED-Voken: Open-MAGVIT2 video"),
    "cd-fvd": Preset("truncate", "squeeze", _VIDEOGPT, "n", "content-debiased-fvd with its I3D"),
}
"""Preset -> its arithmetic. What comes before it (frames, size, data) is the suite's."""


class Rfvd(FrechetDistance):
    """Reconstruction Fréchet video distance of clips, in one of the seven forms that are published under that name.

    `rfvd` is the preset `tokenbench`: 8-bit frames, aspect ratio kept, the network with TF-Hub's epsilon, n - 1. Other presets
    have their own column, `rfvd_<preset>`, so that no two definitions share one. Presets that see the same pixels through the
    same network share its forward passes; of square clips all that have one epsilon and one rounding do.

    The network is I3D, trained on Kinetics-400; its 400 logits, averaged over time, are the features. Every clip counts once.
    A clip has as many frames as the suite cuts, at least nine; FVD of 16 and of 17 frames are different numbers, and so are
    those of different n: compare only numbers of one suite.

    The state is exact like that of `rfid`: the same bits for any batch, order or split. Logits beyond 14.6 lie on a grid of
    2^-11, which moves √FVD by at most 2·√400·2^-12 = 0.01 were all errors to conspire, and FVD by about 1e-5 since they do not.

    Reference: Unterthiner et al. 2018, arXiv 1812.01717, and the code that `PRESETS` names.

    Args:
        preset: One of `PRESETS`.
        weights: An I3D weight file of one's own.
        covariance: `n-1` or `n`; empty: what the preset has. Where it differs, the column ends in `_unbiased` or `_biased`.

    Raises:
        UsageError: No such preset or covariance, or `weights` names nothing.
    """

    def __init__(self, *, preset: str = DEFAULT, weights: str = "", covariance: Literal["", "n-1", "n"] = "") -> None:
        if preset not in PRESETS:
            raise UsageError(f"rfvd: unknown preset {preset!r}; one of {', '.join(sorted(PRESETS))}")
        if covariance and covariance not in get_args(Covariance):
            raise UsageError(f"rfvd: covariance is n-1 or n, got {covariance!r}")
        self._name, self._preset, self._weights = preset, PRESETS[preset], weights
        self._covariance = covariance or self._preset.covariance
        self._extract = I3d(self._preset.fit, self._preset.epsilon, weights)
        own = "" if preset == DEFAULT else f"_{preset.replace('-', '_')}"
        changed = (
            {"n": "_biased", "n-1": "_unbiased"}[self._covariance]
            if self._covariance != self._preset.covariance
            else ""
        )
        super().__init__(f"rfvd{own}{changed}", self._seen, divide_by_n=self._covariance == "n")
        self.undefined: Mapping[str, str] = {self.column: "needs at least two clips"}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the weights' sha256 is one of them."""
        text = f"Fréchet distance of I3D logits, preset {self._name} ({self._preset.used_by})"
        return MetricSpec(
            name=self.column,
            modalities=("video",),
            columns=(Column(self.column, "", False, text, atol=1e-2, decimals=2, where="corpus"),),
            summary="Reconstruction FVD",
            reference="NVlabs/TokenBench token_bench/fvd.py; VideoGPT videogpt/fvd; StyleGAN-V; LARP eval/rfvd_evaluator.py",
            protocol={
                "preset": self._name,
                "input": self._preset.variant,
                "fit": self._preset.fit,
                "epsilon": self._preset.epsilon,
                "covariance": self._covariance,
                "least_frames": FRAMES,
                "grid": SHIFTS[0],
                "weights": digest(WEIGHTS, self._weights),
            },
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        fetch(WEIGHTS, self._weights, offline)

    def _seen(self, sample: Sample, side: Side) -> Tensor:
        return self._extract(sample, side, self._preset.variant)
