"""Speaker similarity with the WavLM-large ECAPA-TDNN of UniSpeech: the SIM of X-Codec 2's, XY-Tokenizer's and MOSS's tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import WeightFile
from tokbench.weights import ALL_ROLES, file_digest, load_into, load_state, missing, resolve

from . import _hub
from ._backbones import digest_of
from .speaker import SpeakerSimilarity

FILE = "wavlm_large_finetune.pth"
NAME = "speaker_wavlm_large"

SHORTEST = 720
"""Samples at 16 kHz below which the network has fewer than two frames."""

_LARGE: Mapping[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": False,
}

_RENAMED = (
    (re.compile(r"feature_extractor\.conv_layers\.(\d+)\.0\."), r"feature_extractor.conv_layers.\1.conv."),
    (re.compile(r"feature_extractor\.conv_layers\.(\d+)\.2(\.1)?\."), r"feature_extractor.conv_layers.\1.layer_norm."),
    (re.compile(r"^layer_norm\."), "feature_projection.layer_norm."),
    (re.compile(r"^post_extract_proj\."), "feature_projection.projection."),
    (re.compile(r"pos_conv\.0\.weight_g"), "pos_conv_embed.conv.parametrizations.weight.original0"),
    (re.compile(r"pos_conv\.0\.weight_v"), "pos_conv_embed.conv.parametrizations.weight.original1"),
    (re.compile(r"pos_conv\.0\."), "pos_conv_embed.conv."),
    (re.compile(r"self_attn_layer_norm"), "layer_norm"),
    (re.compile(r"self_attn\.grep_linear"), "attention.gru_rel_pos_linear"),
    (re.compile(r"self_attn\.grep_a"), "attention.gru_rel_pos_const"),
    (re.compile(r"self_attn\.relative_attention_bias"), "attention.rel_attn_embed"),
    (re.compile(r"self_attn\."), "attention."),
    (re.compile(r"\.fc1\."), ".feed_forward.intermediate_dense."),
    (re.compile(r"\.fc2\."), ".feed_forward.output_dense."),
)


def speaker_wavlm_large(*, weights: str = "") -> SpeakerSimilarity:
    """Build the metric.

    Args:
        weights: UniSpeech's `wavlm_large_finetune.pth`; it is on no hub: its README links the file.
    """
    return SpeakerSimilarity(WavLmEcapa(weights))


@dataclass(frozen=True)
class WavLmEcapa:
    """UniSpeech's speaker-verification network: fine-tuned WavLM large, all its layers weighted, under a small ECAPA-TDNN.

    Whole clips one by one, each normalised to mean 0 and deviation 1, so the level does not matter.

    Attributes:
        weights: The file, where it is not at `$TOKBENCH_WEIGHTS/speaker_wavlm_large/wavlm_large_finetune.pth`.
    """

    weights: str = ""

    name = column = NAME
    about = "UniSpeech WavLM-large ECAPA-TDNN (wavlm_large_finetune)"
    reference = "Chen et al. 2022, arXiv 2110.13900; microsoft/UniSpeech downstreams/speaker_verification"
    extra = "transformers"

    def settings(self) -> Mapping[str, Any]:
        """Return the weights' sha256."""
        return {"level": "mean 0, deviation 1", "weights": digest_of(lambda: _find(self.weights))}

    def fetch(self, *, offline: bool) -> None:
        """Do nothing: the file has no address that serves it."""

    def embed(self, wave: Tensor) -> Tensor | None:
        """Return the vector of (T,) at 16 kHz, 256 numbers; None for clips without two frames, or silent ones."""
        path = _require(self.weights)
        network = load(path, file_digest(path), str(wave.device))
        if len(wave) < SHORTEST or not bool(wave.any()):
            return None
        with torch.inference_mode():
            found: Tensor = network(wave[None])[0].float().cpu()
        return found


def _find(explicit: str) -> Path | None:
    wanted, overrides = _wanted(explicit)
    return None if missing(wanted, owner=NAME, overrides=overrides) else _require(explicit)


def _require(explicit: str) -> Path:
    wanted, overrides = _wanted(explicit)
    return resolve(wanted, owner=NAME, offline=True, overrides=overrides)["model"]


def _wanted(explicit: str) -> tuple[list[WeightFile], dict[str, Path]]:
    return [WeightFile("model", FILE)], {ALL_ROLES: Path(explicit)} if explicit else {}


class _ConvNorm(nn.Module):
    """A convolution, ReLU, then batch norm: in that order."""

    def __init__(self, channels: int, width: int, taps: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, taps, padding=taps // 2)
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x).relu())
        return out


class _Res2(nn.Module):
    """Eight groups of channels; each of the first seven hears the one before it as well."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.width = channels // 8
        self.convs = nn.ModuleList(
            [nn.Conv1d(self.width, self.width, 3, padding=dilation, dilation=dilation) for _ in range(7)]
        )
        self.bns = nn.ModuleList([nn.BatchNorm1d(self.width) for _ in range(7)])

    def forward(self, x: Tensor) -> Tensor:
        parts = list(torch.split(x, self.width, 1))
        for k, (conv, norm) in enumerate(zip(self.convs, self.bns, strict=True)):
            heard = parts[k] + parts[k - 1] if k else parts[k]
            parts[k] = norm(conv(heard).relu())
        return torch.cat(parts, dim=1)


class _Squeeze(nn.Module):
    """Weights of the channels, from their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(channels, 128), nn.Linear(128, channels)

    def forward(self, x: Tensor) -> Tensor:
        share: Tensor = self.linear2(self.linear1(x.mean(2)).relu()).sigmoid()
        return x * share[..., None]


class _Block(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        # Names of the published keys.
        self.Conv1dReluBn1 = _ConvNorm(channels, channels)
        self.Res2Conv1dReluBn = _Res2(channels, dilation)
        self.Conv1dReluBn2 = _ConvNorm(channels, channels)
        self.SE_Connect = _Squeeze(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.SE_Connect(self.Conv1dReluBn2(self.Res2Conv1dReluBn(self.Conv1dReluBn1(x))))
        return out + x


class _Pool(nn.Module):
    """Mean and deviation over time, weighted by attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Conv1d(channels, 128, 1), nn.Conv1d(128, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        share = self.linear2(self.linear1(x).tanh()).softmax(2)
        mean = (share * x).sum(2)
        spread = (share * x.square()).sum(2) - mean.square()
        return torch.cat([mean, spread.clamp(min=1e-9).sqrt()], dim=1)


class Head(nn.Module):
    """ECAPA-TDNN (small) over the hidden states of a transformer, with UniSpeech's keys.

    Args:
        states: Hidden states it weighs: the layers' inputs and the last output.
        features: Of each.
        channels: Of the network.
        size: Of the vector.
    """

    def __init__(self, states: int, features: int, channels: int = 512, size: int = 256) -> None:
        super().__init__()
        self.feature_weight = nn.Parameter(torch.zeros(states))
        self.layer1 = _ConvNorm(features, channels, 5)
        self.layer2, self.layer3, self.layer4 = (_Block(channels, dilation) for dilation in (2, 3, 4))
        self.conv = nn.Conv1d(3 * channels, 1536, 1)
        self.pooling = _Pool(1536)
        self.bn = nn.BatchNorm1d(3072)
        self.linear = nn.Linear(3072, size)

    def forward(self, states: Tensor) -> Tensor:
        """Map (states, n, frames, features) to (n, size)."""
        share = self.feature_weight.softmax(-1)
        x = torch.einsum("s,sntf->nft", share, states) + 1e-6
        x = self.layer1(F.instance_norm(x))
        second = self.layer2(x)
        third = self.layer3(second)
        fourth = self.layer4(third)
        out: Tensor = self.linear(self.bn(self.pooling(self.conv(torch.cat([second, third, fourth], dim=1)).relu())))
        return out


class Network(nn.Module):
    """WavLM and the head over it, from 16 kHz sound on.

    Args:
        settings: Of `transformers.WavLMConfig`.
        channels: Of the head.
        size: Of the vector.

    Raises:
        MissingExtra: transformers is not installed.
    """

    def __init__(self, settings: Mapping[str, Any], channels: int = 512, size: int = 256) -> None:
        super().__init__()
        config_kind, model_kind = _hub.library(["WavLMConfig", "WavLMModel"])
        config = config_kind(**settings, layerdrop=0.0, apply_spec_augment=False)
        self.wavlm: Any = model_kind(config)
        self.head = Head(config.num_hidden_layers + 1, config.hidden_size, channels, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (1, T), T at least 720, to (1, size)."""
        said = self.wavlm(F.layer_norm(x, x.shape[1:]), output_hidden_states=True)
        # Releases of transformers differ in whether the last of the hidden states went through the final norm.
        out: Tensor = self.head(torch.stack([*said.hidden_states[:-1], said.last_hidden_state]))
        return out


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn UniSpeech's keys into those of `Network`; the loss's own projection is left out."""
    out = {}
    for key, value in state.items():
        inner = key.removeprefix("feature_extract.model.")
        if inner == key:
            if not key.startswith(("loss_calculator.", "feature_extract.")):
                out[f"head.{key}"] = value
            continue
        for pattern, target in _RENAMED:
            inner = pattern.sub(target, inner)
        out[f"wavlm.{inner}"] = value
    return out


@lru_cache(maxsize=1)
def load(path: Path, _sha256: str, device: str) -> Network:
    """Build the network from UniSpeech's file; kept for the process, by the file's content.

    Raises:
        WeightsRefused: The file does not fit, or would have to be unpickled.
    """
    network = Network(_LARGE)
    state = renamed(load_state(path, inside=("model",)))
    load_into(network, state, drop=["wavlm.mask_emb"], optional=["wavlm.masked_spec_embed"], source=str(path))
    return network.to(device)
