"""S3Tokenizer v2, the supervised speech tokens of CosyVoice 2 (Du et al. 2024, arXiv 2412.10117): an own module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokbench.errors import NotApplicable
from tokbench.spec import Card
from tokbench.types import Code, Stream, Weights
from tokbench.weights import WeightsRefused, load_state

from .nn.checkpoint import assemble, dtype_of, library, place
from .nn.filterbanks import whisper_log_mel
from .nn.whisper_fsq import SpeechEncoder

_WINDOW, _STRIDE, _EDGE = 3000, 2600, 50
"""Mel frames of a window (30 s) and between windows; tokens dropped at each inner edge."""

_FIXED = {
    "onnx::Conv_2216": "encoder.conv1.weight",
    "onnx::Conv_2217": "encoder.conv1.bias",
    "onnx::Conv_2218": "encoder.conv2.weight",
    "onnx::Conv_2219": "encoder.conv2.bias",
    "quantizer.project_in.bias": "quantizer._codebook.project_down.bias",
    "onnx::MatMul_2536": "quantizer._codebook.project_down.weight",
}


class S3Tokenizer:
    """25 tokens a second out of 6561, from speech to meaning: nothing decodes them, so there is no reconstruction.

    `card.architecture` holds the arguments of `SpeechEncoder`. Clips over 30 s are coded in windows of 30 s that overlap by
    4 s; 50 tokens are dropped at each inner edge, as in the official code.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> the published ONNX graph (only its tensors are read), or a state dict.

    Raises:
        MissingExtra: The file is an ONNX graph and onnx is not installed.
        WeightsRefused: The file does not fit the architecture.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        path = weights["model"]
        state = state_of_onnx(path, card.name) if path.suffix == ".onnx" else load_state(path)
        self._bins = int(card.architecture.get("n_mels", 128))
        self._module: SpeechEncoder = assemble(lambda: SpeechEncoder(**card.architecture), state, source=str(path))
        self.spec = card.spec

    def to(self, device: str, dtype: str) -> None:
        """Move the network; features are computed in float32."""
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 1, T) in [-1, 1] at 16 kHz to one stream (B, ceil(T // 160 / 4)).

        Raises:
            NotApplicable: The clip is shorter than 201 samples.
        """
        if x.shape[-1] <= 200:
            raise NotApplicable(f"{self.spec.name} needs more than 200 samples, got {x.shape[-1]}")
        mel = whisper_log_mel(x[:, 0].float(), self._bins).to(dtype_of(self._module))
        starts = range(0, mel.shape[-1], _STRIDE) if mel.shape[-1] > _WINDOW else (0,)
        parts = merged([self._module(mel[..., start : start + _WINDOW]) for start in starts])
        return Code((Stream("0", self.spec.codebook_size[0], parts),))

    def decode(self, code: Code) -> Tensor:
        """Refuse: no decoder was published.

        Raises:
            NotApplicable: Always.
        """
        raise NotApplicable(
            f"{self.spec.name} has no decoder: only its tokens can be judged, not {len(code.streams)} of them"
        )


def merged(windows: Sequence[Tensor]) -> Tensor:
    """Join the tokens (B, n) of overlapping windows, 50 of them dropped on both sides of every seam."""
    last = len(windows) - 1
    return torch.cat(
        [
            tokens[:, (0 if k == 0 else _EDGE) : (tokens.shape[1] if k == last else -_EDGE)]
            for k, tokens in enumerate(windows)
        ],
        dim=1,
    )


def state_of_onnx(path: Path, owner: str) -> dict[str, Tensor]:
    """Read the tensors of the published graph under the names of `SpeechEncoder`; nothing of the graph is run.

    An initializer is named by the node that uses it (`/blocks.0/attn/query/MatMul` holds a transposed weight, `.../Add` a
    bias, `.../LayerNormalization` both), except convolutions and quantizer, which have fixed names.

    Raises:
        MissingExtra: onnx is not installed.
        WeightsRefused: The file cannot be read.
    """
    load, helper = library("onnx", ["load", "numpy_helper"], owner, "audio")
    try:
        graph: Any = load(str(path)).graph
    except Exception as error:
        raise WeightsRefused(f"{path} is not a readable ONNX graph: {error}", "fetch the file again") from error
    tensors = {entry.name: entry for entry in graph.initializer}
    state: dict[str, Tensor] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name not in tensors:
                continue
            key = _FIXED.get(name) or _key_of(node.name, node.op_type, position)
            if key is None:
                continue
            value = torch.from_numpy(helper.to_array(tensors[name]).copy())
            state[key] = value.t().contiguous() if value.ndim == 2 else value
    return state


def _key_of(node: str, kind: str, position: int) -> str | None:
    if "blocks" not in node:
        return None
    stem, _, last = node.strip("/").replace("/", ".").rpartition(".")
    stem = f"encoder.{stem}".replace("mlp.mlp", "mlp")
    if kind == "LayerNormalization":
        return f"{stem}.{'weight' if position == 1 else 'bias'}"
    return {"MatMul": f"{stem}.weight", "Conv": f"{stem}.weight", "Add": f"{stem}.bias"}.get(last)
