"""Distill-MOS: an opinion score of speech without a reference, by a small network whose weights ride inside its wheel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample
from tokbench.weights import file_digest, load_into, load_state

from ._packaged import Packaged, digest, require
from ._speech import MONO, RATE, mono_rows

WEIGHTS = Packaged("distillmos", "distillmos", "weights/distill_mos_v7.pt", "audio-models")

WINDOW = 122_880
"""Samples the network sees at once: 7.68 s."""

_HOP, _TAPER = 160, 320
_CHANNELS = (2, 64, 64, 128, 256, 256, 256)
_WIDTH, _HEADS, _LAYERS = 200, 8, 7
_CHUNK = 4


@dataclass(frozen=True)
class DistillMos:
    """Distill-MOS (variant 7) of the reconstruction, without a reference, 1 to 5.

    16 kHz, channels averaged. Windows of 7.68 s spread evenly over the clip, at most a second apart, each divided by its
    own peak (so the level does not matter), scored and averaged; a shorter clip gets zeros at its end, as the published
    model does it. A row is scored on its own, whatever its batch: the published model, given a padded batch, moves by up to
    0.35.

    Args:
        weights: The published `distill_mos_v7.pt` where the package is not installed.

    Reference: Stahl and Gamper, "Distillation and Pruning for Scalable Self-Supervised Representation-Based Speech Quality
    Assessment", ICASSP 2025, arXiv 2502.05356; `distillmos.ConvTransformerSQAModel` 0.9.1.
    """

    weights: str = ""

    undefined: ClassVar[Mapping[str, str]] = {"distillmos": "the clip holds no sample"}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the weights' sha256 is one of them."""
        return MetricSpec(
            name="distillmos",
            modalities=("audio",),
            summary="Distill-MOS of the reconstruction, no reference",
            reference="Stahl and Gamper 2025, arXiv 2502.05356; distillmos 0.9.1",
            protocol={
                "rate": RATE,
                "channels": MONO,
                "level": "each window divided by its peak",
                "windows": "7.68 s, at most 1 s apart, evenly spread; shorter clips zero-padded",
                "weights": digest(WEIGHTS, self.weights),
            },
            columns=(Column("distillmos", "MOS", True, "Distill-MOS variant 7, 1 to 5", 1e-3, 3),),
            extra="audio-models",
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return `distillmos`, (B,) float64, of a batch (B, C, T) of sound.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            MissingExtra: distillmos is not installed.
        """
        path = require(WEIGHTS, self.weights)
        network = load(path, file_digest(path), str(sample.reference.device))
        scores = [_score(network, wave) for wave in mono_rows("distillmos", sample, "reconstruction")]
        return {"distillmos": torch.tensor(scores, dtype=torch.float64)}


def _score(network: nn.Module, wave: Tensor) -> float:
    if not len(wave):
        return math.nan
    with torch.inference_mode():
        parts = [network(part) for part in torch.split(windows(wave), _CHUNK)]
    values = torch.cat(parts).double().tolist()
    return math.fsum(values) / len(values)


def windows(wave: Tensor) -> Tensor:
    """Cut (T,) at 16 kHz into what the network scores, (n, 122880), each divided by its peak."""
    wave = F.pad(wave, (0, max(0, WINDOW - len(wave))))
    spare = len(wave) - WINDOW
    count = math.ceil(spare / RATE) + 1
    starts = [int(k / (count - 1) * spare) for k in range(count)] if count > 1 else [0]
    cut = torch.stack([wave[start : start + WINDOW] for start in starts])
    return cut / (cut.abs().amax(dim=1, keepdim=True) + 1e-8)


class _Spectrum(nn.Module):
    """Convolutions over a complex spectrum whose magnitudes are raised to 0.3."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = len(_CHANNELS) - 2
        for k, (before, after) in enumerate(pairwise(_CHANNELS)):
            stride = (2 if k else 1, 2 if k == last else 1)
            layers += [nn.Conv2d(before, after, 3, stride, padding=(0, 1)), nn.LeakyReLU(0.1)]
        self.cnn = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, samples) to (n, frames, features)."""
        x = F.pad(x, ((_TAPER - _HOP) // 2,) * 2, mode="reflect")
        taper = torch.hann_window(_TAPER, device=x.device)
        bins = torch.stft(x, _TAPER, _HOP, _TAPER, taper, center=False, return_complex=True)
        planes = torch.view_as_real(bins)
        size = planes.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)
        out: Tensor = self.cnn((size**0.3 * planes / size).permute(0, 3, 1, 2))
        return out.flatten(1, 2).transpose(1, 2)


class _Positions(nn.Module):
    def __init__(self, length: int = 384) -> None:
        super().__init__()
        self.register_buffer("pe", torch.zeros(1, length, _WIDTH))
        self.pe: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe


class _Trunk(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features)
        self.position_encoding = _Positions()
        self.linear_proj = nn.Linear(features, _WIDTH)
        layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, 2 * _WIDTH, dropout=0.0, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear_proj(_normed(self.norm, x))
        out: Tensor = self.transformer_encoder(self.position_encoding(x))
        return out


class _Pool(nn.Module):
    """The mean over time weighted by attention, then one number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(_WIDTH, 2 * _WIDTH)
        self.linear2 = nn.Linear(2 * _WIDTH, 1)
        self.linear3 = nn.Linear(_WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        share = self.linear2(self.linear1(x).relu()).transpose(1, 2).softmax(-1)
        out: Tensor = self.linear3((share @ x).squeeze(1))
        return out


class _Head(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm_input = nn.BatchNorm1d(features)
        self.transformer = _Trunk(features)
        self.norm_trans = nn.BatchNorm1d(_WIDTH)
        self.pool = _Pool()

    def forward(self, x: Tensor) -> Tensor:
        x = self.transformer(_normed(self.norm_input, x))
        out: Tensor = self.pool(_normed(self.norm_trans, x))
        return out


class Network(nn.Module):
    """Distill-MOS from windows of 7.68 s on, with the published keys."""

    def __init__(self) -> None:
        super().__init__()
        bins = _TAPER // 2 + 1
        for k in range(len(_CHANNELS) - 1):
            bins = (bins - 3) // (2 if k else 1) + 1
        self.cnn = _Spectrum()
        self.transformer_pool_attn = _Head(_CHANNELS[-1] * bins)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 122880), peak 1, to (n,) scores from 1 to 5."""
        quality: Tensor = self.transformer_pool_attn(self.cnn(x)).sigmoid().squeeze(-1)
        return 1 + 4 * quality


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = norm(x.transpose(1, 2)).transpose(1, 2)
    return out


@lru_cache(maxsize=1)
def load(path: Path, _sha256: str, device: str) -> Network:
    """Build the network from the published file; kept for the process, by the file's content."""
    network = Network()
    load_into(network, load_state(path, inside=("model",)), source=str(path))
    return network.to(device)
