"""XY-Tokenizer (Gong et al. 2025, arXiv 2506.23325): eight residual codebooks of 1024, 12.5 frames a second of speech."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights

from .nn.checkpoint import weight_norm
from .nn.codebooks import CodebookTokenizer
from .nn.filterbanks import whisper_log_mel
from .nn.keynames import Rule, published_as
from .nn.neighbours import TableNeighbours
from .nn.network import load_network
from .nn.quantize import no_single_search
from .nn.residual_tables import ResidualTables
from .nn.vocos import SpectrumHead, VocosBackbone
from .nn.whisper import WhisperDecoder, WhisperEncoder, WhisperStack

NAMES: tuple[Rule, ...] = (
    (r"^quantizer\.residual\.tables\.(\d+)\.weight$", r"quantizer.quantizers.\1.codebook"),
    (r"^vocos_", "vocos."),
)
_UNUSED = (
    "*.positional_embedding",
    "vocos.head.istft.window",
    "quantizer.quantizers.*.inited",
    "quantizer.quantizers.*.cluster_size",
    "quantizer.quantizers.*.embed_avg",
)
_RATE = 16_000
_HOP = 1280
_MEL_HOP = 160
_WINDOW = 30 * _RATE  # samples that are coded together
_KEPT = 20 * _RATE  # samples of a window whose code is kept


class _Down(nn.Module):
    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        wide = width * factor
        self.gate_proj = nn.Conv1d(width, wide, factor, factor, bias=False)
        self.up_proj = nn.Conv1d(width, wide, factor, factor, bias=False)
        self.down_proj = nn.Linear(wide, wide, bias=False)
        self.layer_norm = nn.LayerNorm(wide)

    def forward(self, x: Tensor) -> Tensor:
        by_channel = x.transpose(1, 2)
        gated = F.silu(self.gate_proj(by_channel)) * self.up_proj(by_channel)
        folded = x.reshape(len(x), gated.shape[-1], -1)
        y: Tensor = self.layer_norm(self.down_proj(gated.transpose(1, 2)) + folded)
        return y


class _Quantizer(nn.Module):
    def __init__(self, channels: int, dim: int, entries: int, depth: int) -> None:
        super().__init__()
        self.input_proj = nn.Conv1d(channels, dim, 1)
        self.output_proj = nn.Conv1d(dim, channels, 1)
        self.residual = ResidualTables(entries, dim, depth)

    def encode(self, x: Tensor) -> Tensor:
        return self.residual.encode(self.input_proj(x.transpose(1, 2)).transpose(1, 2))

    def decode(self, indices: Tensor) -> Tensor:
        y: Tensor = self.output_proj(self.residual.decode(indices).transpose(1, 2))
        return y.transpose(1, 2)


class XyTokenizer(nn.Module):
    """Two Whisper encoders, one for meaning and one for sound, one residual code of both, and Vocos behind a decoder.

    Clips longer than 20 s are coded in windows of 30 s that start 20 s apart; of each window the first 20 s are kept. The
    official code pads each window to 30 s and masks what it padded; here nothing is padded, which gives the same codes.

    Args:
        width: Of all Whisper stacks.
        heads: Of their attention.
        hidden: Inside their layers.
        layers: Of the encoders and the decoder.
        adapter_layers: Of the stacks between.
        mels: Of the spectrogram that goes in, and of what Vocos is given.
        pool: Frames of 20 ms that share a code.
        code: Length of a row of the tables.
        entries: Of a table.
        depth: Residual tables.
        vocos_width: Of Vocos.
        vocos_hidden: Inside its layers.
        vocos_layers: How many.
    """

    def __init__(
        self,
        width: int = 768,
        heads: int = 12,
        hidden: int = 3072,
        layers: int = 12,
        adapter_layers: int = 4,
        mels: int = 80,
        pool: int = 4,
        code: int = 512,
        entries: int = 1024,
        depth: int = 8,
        vocos_width: int = 512,
        vocos_hidden: int = 4096,
        vocos_layers: int = 30,
    ) -> None:
        super().__init__()
        stack = (width, heads, hidden)
        self.semantic_encoder = WhisperEncoder(mels, *stack, layers)
        self.semantic_encoder_adapter = WhisperStack(*stack, adapter_layers)
        self.acoustic_encoder = WhisperEncoder(mels, *stack, layers)
        self.pre_rvq_adapter = WhisperStack(*stack, adapter_layers, channels=2 * width)
        self.downsample = _Down(width, pool)
        self.quantizer = _Quantizer(width * pool, code, entries, depth)
        self.post_rvq_adapter = WhisperStack(*stack, adapter_layers, channels=width * pool, out=width * pool)
        self.upsample = nn.ModuleDict({"up_conv": nn.ConvTranspose1d(width * pool, width, pool, pool, bias=False)})
        self.acoustic_decoder = WhisperDecoder(mels, *stack, layers)
        self.vocos_backbone = VocosBackbone(mels, vocos_width, vocos_hidden, vocos_layers)
        self.vocos_head = SpectrumHead(vocos_width, 4 * _MEL_HOP, _MEL_HOP)
        self._mels, self._pool = mels, pool

    def latents(self, x: Tensor) -> Tensor:
        """Map (B, 1, T), at most 30 s, to what is quantized, (B, L, width x pool)."""
        dtype = self.downsample.down_proj.weight.dtype
        frames = -(-x.shape[-1] // _MEL_HOP) // 2
        # A few frames of silence, which the convolutions see across the end of the clip, unless the window is full.
        silence = min(_WINDOW - x.shape[-1], 10 * _MEL_HOP)
        mel = whisper_log_mel(F.pad(x[:, 0].float(), (0, silence)), self._mels).to(dtype)
        semantic = self.semantic_encoder_adapter(self.semantic_encoder.encode(mel, frames))
        mixed = self.pre_rvq_adapter(torch.cat([semantic, self.acoustic_encoder.encode(mel, frames)], dim=-1))
        y: Tensor = self.downsample(mixed[:, : frames // self._pool * self._pool])
        return y

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) to indices (B, depth, T // 1280)."""
        codes = []
        for start in range(0, x.shape[-1], _KEPT):
            window = x[..., start : start + _WINDOW]
            if window.shape[-1] >= _HOP:
                codes.append(self.quantizer.encode(self.latents(window))[..., : _KEPT // _HOP])
        return torch.cat(codes, dim=-1)[..., : x.shape[-1] // _HOP]

    def mel(self, indices: Tensor) -> Tensor:
        """Map indices (B, depth, L), at most 30 s of them, to what Vocos is given, (B, mels, 8L)."""
        code = self.post_rvq_adapter(self.quantizer.decode(indices))
        return self.acoustic_decoder.decode(self.upsample["up_conv"](code.transpose(1, 2)).transpose(1, 2))

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, depth, L) to (B, 1, 1280 L), not clipped; long ones in the windows of `encode`."""
        parts = []
        for start in range(0, indices.shape[-1], _KEPT // _HOP):
            window = indices[..., start : start + _WINDOW // _HOP]
            parts.append(self.vocos_head(self.vocos_backbone(self.mel(window)))[..., :_KEPT])
        return torch.cat(parts, dim=-1)

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table of one depth."""
        return TableNeighbours(self.quantizer.residual.table(int(codebook)))

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Raise NotApplicable: a table sees a residual a depth."""
        del x
        raise no_single_search(codebook)


def xy_tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load a checkpoint of this family.

    Args:
        card: `architecture` holds the arguments of `XyTokenizer`.
        weights: Role `model` -> the published file, a state dict under `generator` or a bare one.

    Raises:
        WeightsRefused: The file does not fit.
    """
    network = load_network(
        card,
        weights,
        lambda: XyTokenizer(**card.architecture),
        inside=("generator",),
        or_inside=[()],
        layouts=[weight_norm, published_as(NAMES)],
        drop=_UNUSED,
    )
    return CodebookTokenizer(network, network.module)
