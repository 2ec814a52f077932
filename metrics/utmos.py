"""UTMOS22 strong learner: the opinion score of speech most codec tables print, in pure torch, weights by path or download."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample
from tokbench.undrawn import Undrawn
from tokbench.weights import file_digest, load_into, load_state

from ._backbones import Backbone, digest, fetch, require
from ._speech import MONO, RATE, mono_rows

WEIGHTS = Backbone(
    owner="utmos",
    files=("utmos22_strong_step7459_v1.pt",),
    url="https://github.com/tarepan/SpeechMOS/releases/download/v1.0.0/utmos22_strong_step7459_v1.pt",
    sha256="",
)
"""SpeechMOS's file of the official checkpoint; its publishers state no digest."""

SHORTEST = 400
"""Samples at 16 kHz below which the network has no frame."""

_CONVOLUTIONS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
_WIDTH, _HEADS, _EMBEDDING = 768, 12, 128


@dataclass(frozen=True)
class Utmos:
    """UTMOS22 strong learner of the reconstruction, without a reference, 1 to 5.

    16 kHz, channels averaged, level as it is, whole clips one by one: the network has no notion of padding, so a clip in a
    padded batch would score otherwise. Domain 0 and judge 288 of VoiceMOS as in every published table; the mean over frames,
    times 2 plus 3. Ground truth of LibriSpeech test-clean reads 4.09. Not UTMOSv2, another model that changes its score
    from call to call.

    Args:
        weights: SpeechMOS's `utmos22_strong_step7459_v1.pt` where it is in no usual place.

    Reference: Saeki et al., "UTMOS", Interspeech 2022, arXiv 2204.02152; tarepan/SpeechMOS v1.2.0 `utmos22_strong`.
    """

    weights: str = ""

    undefined: ClassVar[Mapping[str, str]] = {"utmos": f"the clip has fewer than {SHORTEST} samples at 16 kHz"}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the weights' sha256 is one of them."""
        return MetricSpec(
            name="utmos",
            modalities=("audio",),
            summary="UTMOS22 strong of the reconstruction, no reference",
            reference="Saeki et al. 2022, arXiv 2204.02152; tarepan/SpeechMOS v1.2.0",
            protocol={
                "rate": RATE,
                "channels": MONO,
                "level": "as it is",
                "model": "utmos22_strong, domain 0, judge 288",
                "weights": digest(WEIGHTS, self.weights),
            },
            columns=(Column("utmos", "MOS", True, "UTMOS22 strong, 1 to 5", 1e-3, 3),),
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        fetch(WEIGHTS, self.weights, offline)

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return `utmos`, (B,) float64, of a batch (B, C, T) of sound.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            WeightsAbsent: The weights are not on this machine.
        """
        path = require(WEIGHTS, self.weights)
        network = load(path, file_digest(path), str(sample.reference.device))
        with torch.inference_mode():
            scores = [
                float(network(wave[None]).item()) if len(wave) >= SHORTEST else math.nan
                for wave in mono_rows("utmos", sample, "reconstruction")
            ]
        return {"utmos": torch.tensor(scores, dtype=torch.float64)}


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(_WIDTH, _WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return out


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = _Attention()
        self.fc1, self.fc2 = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x))
        out: Tensor = self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))
        return out


class _PositionConv(nn.Conv1d):
    """A convolution whose kernel is stored as direction and length for each of its 128 taps."""

    def __init__(self) -> None:
        super().__init__(_WIDTH, _WIDTH, 128, padding=64, groups=16)
        del self.weight
        self.weight_g = nn.Parameter(torch.empty(1, 1, 128))
        self.weight_v = nn.Parameter(torch.empty(_WIDTH, _WIDTH // 16, 128))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight_g * self.weight_v / self.weight_v.norm(dim=(0, 1), keepdim=True)
        return F.gelu(F.conv1d(x, kernel, self.bias, padding=64, groups=16)[..., :-1])


class _Encoder(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.pos_conv = nn.Sequential(_PositionConv())
        self.layer_norm = nn.LayerNorm(_WIDTH)
        self.layers = nn.ModuleList([_Layer() for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2))
        for layer in self.layers:
            x = layer(x)
        return x


class _Frames(nn.Module):
    """The convolutions of wav2vec 2.0 base: a frame of 512 numbers every 20 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList()
        for k, (width, stride) in enumerate(_CONVOLUTIONS):
            # The published keys count a dropout (1) and put the norm of the first layer behind it (2).
            norm = [nn.Identity(), nn.GroupNorm(512, 512)] if k == 0 else []
            conv = nn.Conv1d(512 if k else 1, 512, width, stride, bias=False)
            self.conv_layers.append(nn.Sequential(conv, *norm, nn.GELU()))

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x.transpose(1, 2)


class _Wav2Vec2(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.feature_extractor = _Frames()
        self.layer_norm = nn.LayerNorm(512)
        self.post_extract_proj = nn.Linear(512, _WIDTH)
        self.encoder = _Encoder(layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(self.post_extract_proj(self.layer_norm(self.feature_extractor(x))))
        return out


class Network(nn.Module):
    """UTMOS22 strong from 16 kHz sound on, with SpeechMOS's keys.

    Args:
        layers: Of the transformer; the published model has twelve.
    """

    def __init__(self, layers: int = 12) -> None:
        super().__init__()
        self.wav2vec2 = _Wav2Vec2(layers)
        self.domain_emb = nn.Parameter(torch.empty(1, _EMBEDDING))
        self.judge_emb = nn.Parameter(torch.empty(1, _EMBEDDING))
        self.blstm = nn.LSTM(_WIDTH + 2 * _EMBEDDING, 512, batch_first=True, bidirectional=True)
        self.projection = nn.Sequential(nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, T) at 16 kHz, T at least 400, to (n,) scores."""
        units = self.wav2vec2(x)
        said = torch.cat([self.domain_emb, self.judge_emb], dim=1)[:, None].expand(*units.shape[:2], -1)
        frames, _ = self.blstm(torch.cat([units, said], dim=2))
        score: Tensor = self.projection(frames).mean(dim=1).squeeze(1)
        return score * 2 + 3


@lru_cache(maxsize=1)
def load(path: Path, _sha256: str, device: str) -> Network:
    """Build the network from SpeechMOS's file; kept for the process, by the file's content.

    Raises:
        WeightsRefused: The file does not fit, or would have to be unpickled.
    """
    with torch.device("meta"), Undrawn():
        network = Network()
    load_into(network, load_state(path), drop=["wav2vec2.mask_emb"], source=str(path))
    return network.to(device)
