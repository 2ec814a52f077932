"""AudioDec (Wu et al. 2023, arXiv 2305.16608): a causal codec of residual tables, with its own decoder or a vocoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights
from tokbench.weights import load_state

from .nn.checkpoint import State, assemble, weight_norm
from .nn.codebooks import CodebookTokenizer
from .nn.hifigan import CausalConv1d, CausalConvTranspose1d, CausalHifiGan
from .nn.neighbours import TableNeighbours
from .nn.network import NetworkTokenizer
from .nn.quantize import no_single_search
from .nn.residual_tables import ResidualTables

_TABLE = "quantizer.codebook.layers."
_SENDER = ("encoder.", "projector.", "quantizer.")


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = CausalConv1d(width, width, 7, dilation=dilation, bias=False)
        self.conv2 = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv2(F.elu(self.conv1(F.elu(x))))
        return y


class _Stage(nn.Module):
    def __init__(self, width: int, out: int, stride: int, *, up: bool) -> None:
        super().__init__()
        self.res_units = nn.Sequential(*(_Residual(out if up else width, dilation) for dilation in (1, 3, 9)))
        self.conv: nn.Module = (
            CausalConvTranspose1d(width, out, stride) if up else CausalConv1d(width, out, 2 * stride, stride)
        )
        self._up = up

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.res_units(self.conv(x)) if self._up else self.conv(self.res_units(x))
        return y


class _Encoder(nn.Module):
    def __init__(self, widths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.conv = CausalConv1d(1, widths[0], 7, bias=False)
        pairs = zip(pairwise(widths), strides, strict=True)
        self.conv_blocks = nn.Sequential(*(_Stage(width, out, stride, up=False) for (width, out), stride in pairs))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_blocks(self.conv(x))
        return y


class _Decoder(nn.Module):
    def __init__(self, code: int, widths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = CausalConv1d(code, widths[0], 7, bias=False)
        pairs = zip(pairwise(widths), strides, strict=True)
        self.conv_blocks = nn.Sequential(*(_Stage(width, out, stride, up=True) for (width, out), stride in pairs))
        self.conv2 = CausalConv1d(widths[-1], 1, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv_blocks(self.conv1(x)))
        return y


class AudioDec(nn.Module):
    """Strided causal convolutions, residual tables, and the same backwards or a causal HiFi-GAN.

    This is what the official test script computes: every layer starts from zeros. The official streaming demo starts from
    the state that silence leaves, which differs in the first few thousand samples.

    Args:
        strides: Of the encoder, first to last; the decoder's are the same backwards.
        width: Channels of the first convolution.
        ratios: By which each stride's channels exceed them.
        code: Channels of the latents and of the tables.
        entries: Of a table.
        depth: Residual tables.
        vocoder: Arguments of `CausalHifiGan`; None: the symmetric decoder.
    """

    def __init__(
        self,
        strides: Sequence[int] = (3, 4, 5, 5),
        width: int = 32,
        ratios: Sequence[int] = (2, 4, 8, 16),
        code: int = 64,
        entries: int = 1024,
        depth: int = 8,
        vocoder: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        widths = [width, *(width * ratio for ratio in ratios)]
        back = tuple(reversed(strides))
        self.encoder = _Encoder(widths, strides)
        self.projector = nn.ModuleDict({"project": CausalConv1d(widths[-1], code, 3, bias=False)})
        self.quantizer = ResidualTables(entries, code, depth)
        self.decoder: nn.Module = (
            _Decoder(code, widths[::-1], back) if vocoder is None else CausalHifiGan(code, back, **vocoder)
        )

    def latents(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) to what is quantized, (B, L, code)."""
        y: Tensor = self.projector["project"](self.encoder(x))
        return y.transpose(1, 2)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 1, T) to indices (B, depth, ceil(T / hop))."""
        return self.quantizer.encode(self.latents(x))

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, depth, L) to (B, 1, L x hop)."""
        y: Tensor = self.decoder(self.quantizer.decode(indices).transpose(1, 2))
        return y

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table of one depth."""
        return TableNeighbours(self.quantizer.table(int(codebook)))

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Raise NotApplicable: a table sees a residual a depth."""
        del x
        raise no_single_search(codebook)


def tables(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Turn the tables, which are stored by column, into rows."""
    del wanted
    out = {}
    for key, value in state.items():
        layer = key.removeprefix(_TABLE).removesuffix(".embed")
        if key == f"{_TABLE}{layer}.embed":
            out[f"quantizer.tables.{layer}.weight"] = value.T.contiguous()
        else:
            out[key] = value
    return out


def published_state(weights: Weights, *, vocoder: bool) -> dict[str, Tensor]:
    """Join the sender's half of one checkpoint with the receiver of another: its decoder, or all of a vocoder."""
    inside = ("model", "generator")
    sender, receiver = load_state(weights["encoder"], inside=inside), load_state(weights["decoder"], inside=inside)
    state = {key: value for key, value in sender.items() if key.startswith(_SENDER)}
    for key, value in receiver.items():
        if vocoder or key.startswith("decoder."):
            state["decoder." + key.removeprefix("" if vocoder else "decoder.")] = value
    return state


def audiodec(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load a pair of checkpoints of this family.

    Args:
        card: `architecture` holds the arguments of `AudioDec`.
        weights: Role `encoder` -> an autoencoder; role `decoder` -> the same one trained on, or a vocoder.

    Raises:
        WeightsRefused: The files do not fit.
    """
    module = assemble(
        lambda: AudioDec(**card.architecture),
        published_state(weights, vocoder="vocoder" in card.architecture),
        layouts=[weight_norm, tables],
        # What a stream keeps between calls, and statistics of the tables' training.
        drop=["*.pad_buffer", "quantizer.codebook.layers.*.cluster_size", "quantizer.codebook.layers.*.embed_avg"],
        source=f"{weights['encoder']} and {weights['decoder']}",
    )
    return CodebookTokenizer(NetworkTokenizer(card.spec, module), module)
