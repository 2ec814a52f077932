"""Speaker similarity: the cosine between what a speaker-verification network makes of reference and reconstruction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample, readings
from tokbench.weights import file_digest, load_into, load_state

from . import _hub
from ._hub import Checkpoint
from ._models import Model
from ._packaged import Packaged, digest, require
from ._packing import packed, unpacked
from ._speech import MONO, RATE, mono_rows
from .spectral import mel_filterbank

RESEMBLYZER = Packaged("speaker_resemblyzer", "resemblyzer", "pretrained.pt", "audio-models")
WAVLM = "microsoft/wavlm-base-plus-sv"

LEVEL_DBFS = -30.0
"""Root mean square to which Resemblyzer raises quieter clips, dB of full scale."""

_MELS, _FRAME, _HOP, _PARTIAL, _STEP, _COVERAGE = 40, 400, 160, 160, 77, 0.75


class Voice(Model, Protocol):
    """A network that turns a clip into a vector whose direction is the speaker."""

    @property
    def column(self) -> str:
        """Of its number."""
        ...

    def embed(self, wave: Tensor) -> Tensor | None:
        """Return the vector of (T,) at 16 kHz, float32 on the CPU; None where the clip has none."""
        ...


@dataclass(frozen=True)
class SpeakerSimilarity:
    """Cosine between the speaker vectors of reference and reconstruction, in [-1, 1]; higher is the same voice.

    16 kHz, channels averaged; every row on its own. Each network has its own scale and its own column: the same codec reads
    0.70 with one and 0.96 with another. The vectors of references are kept for the next tokenizer.

    Args:
        voice: The network.
    """

    voice: Voice

    @property
    def undefined(self) -> Mapping[str, str]:
        """Say why a row has no number."""
        return {self.voice.column: "the reference or the reconstruction is silent or too short for a speaker vector"}

    @cached_property
    def spec(self) -> MetricSpec:
        """Column and settings; the weights are among them."""
        return MetricSpec(
            name=self.voice.name,
            modalities=("audio",),
            summary=f"Speaker similarity: {self.voice.about}",
            reference=self.voice.reference,
            protocol={"rate": RATE, "channels": MONO, "distance": "cosine", **self.voice.settings()},
            columns=(Column(self.voice.column, "", True, f"Cosine, {self.voice.about}", 1e-4, 3),),
            extra=self.voice.extra,
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        self.voice.fetch(offline=offline)

    def read(self, sample: Sample) -> Sequence[str]:
        """Return the vector of each reference: base64 of little-endian float32; empty where there is none."""
        return [_kept(self.voice.embed(wave)) for wave in mono_rows(self.voice.name, sample, "reference")]

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Return the cosine, (B,) float64, of a batch (B, C, T) of sound.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            NotAvailable: A library or the weights are absent.
        """
        known = [torch.from_numpy(unpacked(text)) if text else None for text in readings(self, sample)]
        heard = [self.voice.embed(wave) for wave in mono_rows(self.voice.name, sample, "reconstruction")]
        values = [_cosine(a, b) for a, b in zip(known, heard, strict=True)]
        return {self.voice.column: torch.tensor(values, dtype=torch.float64)}


def speaker_resemblyzer(*, weights: str = "") -> SpeakerSimilarity:
    """Build the metric with Resemblyzer's network, which rides inside its package.

    Args:
        weights: The published `pretrained.pt` where the package is not installed.
    """
    return SpeakerSimilarity(Resemblyzer(weights))


def speaker_wavlm(*, model: str = WAVLM, weights: str = "") -> SpeakerSimilarity:
    """Build the metric with a WavLM x-vector network of `transformers`.

    Args:
        model: Its id on the hub; `microsoft/wavlm-base-sv` is audiocodecs' and DASB's.
        weights: A folder with `config.json`, `preprocessor_config.json` and the weights.
    """
    files = ("config.json", "preprocessor_config.json")
    return SpeakerSimilarity(WavLm(Checkpoint("speaker_wavlm", model, files, weights)))


@dataclass(frozen=True)
class Resemblyzer:
    """Resemblyzer's GE2E d-vector: 256 numbers of 1.6 s partials, averaged.

    The clip is raised to -30 dBFS when quieter; 40 mel powers every 10 ms; partials 0.77 s apart, the last one counts when
    three quarters of it are sound. **The package also cuts out silence with webrtcvad; that is left out here**, on both
    sides alike, so numbers differ from `VoiceEncoder().embed_utterance(preprocess_wav(x))` by the pauses, and equal
    `embed_utterance(normalize_volume(x, -30, increase_only=True))`.

    Attributes:
        weights: The published file, where the package is not installed.
    """

    weights: str = ""

    name = column = "speaker_resemblyzer"
    about = "Resemblyzer GE2E d-vector, silence kept"
    reference = "Wan et al. 2018, arXiv 1710.10467; resemblyzer 0.1.4"
    extra = "audio-models"

    def settings(self) -> Mapping[str, Any]:
        """Return the front end and the weights' sha256."""
        return {
            "level": f"raised to {LEVEL_DBFS:g} dBFS when quieter",
            "vad": "none",
            "partials": "1.6 s, 0.77 s apart, coverage 0.75",
            "weights": digest(RESEMBLYZER, self.weights),
        }

    def fetch(self, *, offline: bool) -> None:
        """Do nothing: a package cannot be fetched from here."""

    def embed(self, wave: Tensor) -> Tensor | None:
        """Return the unit vector of (T,) at 16 kHz; None for digital silence."""
        path = require(RESEMBLYZER, self.weights)
        network = load_resemblyzer(path, file_digest(path), str(wave.device))
        signal = wave.detach().cpu().double()
        power = float(signal.square().mean()) if len(signal) else 0.0
        if power <= 0:
            return None
        change = LEVEL_DBFS - 10 * math.log10(power)
        with torch.inference_mode():
            parts = network(partials(signal * 10 ** (max(0.0, change) / 20)).to(wave.device)).cpu()
        mean: Tensor = parts.mean(0)
        length = float(mean.norm())
        return mean / length if length > 0 else None


def partials(signal: Tensor) -> Tensor:
    """Return the mel powers of the partials of (T,) float64 at 16 kHz: (n, 160, 40) float32."""
    frames = -(-(len(signal) + 1) // _HOP)
    starts = list(range(0, max(1, frames - _PARTIAL + _STEP + 1), _STEP))
    covered = (len(signal) - starts[-1] * _HOP) / (_PARTIAL * _HOP)
    if covered < _COVERAGE and len(starts) > 1:
        starts.pop()
    size = (starts[-1] + _PARTIAL) * _HOP
    signal = nn.functional.pad(signal, (_FRAME // 2, max(0, size - len(signal)) + _FRAME // 2))
    taper = torch.hann_window(_FRAME, dtype=torch.float64)
    bins = torch.stft(signal, _FRAME, _HOP, _FRAME, taper, center=False, return_complex=True)
    mels = (mel_filterbank(RATE, _FRAME, _MELS) @ bins.abs().square()).T.float()
    return torch.stack([mels[start : start + _PARTIAL] for start in starts])


class GeneralisedEndToEnd(nn.Module):
    """Resemblyzer's network, with the published keys."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """Map (n, 160, 40) to (n, 256) unit vectors."""
        _, (hidden, _) = self.lstm(mels)
        raw: Tensor = self.linear(hidden[-1]).relu()
        return nn.functional.normalize(raw, dim=1)


@lru_cache(maxsize=1)
def load_resemblyzer(path: Path, _sha256: str, device: str) -> GeneralisedEndToEnd:
    """Build the network from the published file; kept for the process, by the file's content."""
    network = GeneralisedEndToEnd()
    load_into(network, load_state(path, inside=("model_state",)), drop=["similarity_*"], source=str(path))
    return network.to(device)


@dataclass(frozen=True)
class WavLm:
    """A WavLM x-vector network of `transformers`, whole clips one by one, the checkpoint's own feature extractor.

    Attributes:
        checkpoint: Which, and where it is.
    """

    checkpoint: Checkpoint

    reference = "Chen et al. 2022, arXiv 2110.13900; transformers WavLMForXVector"
    extra = "transformers"

    @property
    def name(self) -> str:
        """Every checkpoint is a metric of its own."""
        return "speaker_wavlm" if self.checkpoint.hub == WAVLM else self.column

    @property
    def column(self) -> str:
        """The checkpoint is in the column's name: scales differ."""
        return f"speaker_{self.checkpoint.slug}"

    @property
    def about(self) -> str:
        """Name the checkpoint."""
        return f"{self.checkpoint.hub} x-vector"

    def settings(self) -> Mapping[str, Any]:
        """Return the checkpoint and its digest."""
        return {"model": self.checkpoint.hub, "weights": _hub.identity(self.checkpoint)}

    def fetch(self, *, offline: bool) -> None:
        """Download the checkpoint where it is absent and `offline` allows it."""
        _hub.fetch(self.checkpoint, offline)

    def embed(self, wave: Tensor) -> Tensor | None:
        """Return the x-vector of (T,) at 16 kHz; None for clips shorter than the network's context, or silent ones."""
        model = _hub.build(self.checkpoint, "WavLMForXVector", str(wave.device))
        if not bool(wave.any()) or _frames(model, len(wave)) < 2:  # a deviation over time needs two
            return None
        extract = _hub.beside(self.checkpoint, "Wav2Vec2FeatureExtractor")
        values = extract(wave.cpu().numpy(), sampling_rate=RATE, return_tensors="pt").input_values
        with torch.inference_mode():
            found: Tensor = model(values.to(wave.device)).embeddings[0].float().cpu()
        return found


def _frames(model: Any, samples: int) -> int:
    """Return how many frames are left of a clip behind the convolutions and the time-delay layers."""
    kernels, dilations = model.config.tdnn_kernel, model.config.tdnn_dilation
    context: int = sum((k - 1) * d for k, d in zip(kernels, dilations, strict=True))
    return _hub.frames(model, samples) - context


def _cosine(a: Tensor | None, b: Tensor | None) -> float:
    if a is None or b is None:
        return math.nan
    a, b = a.double(), b.double()
    return float((a * b).sum() / (a.norm() * b.norm()))


def _kept(vector: Tensor | None) -> str:
    return "" if vector is None else packed(vector.numpy())
