"""Discrete speech units: k-means over a layer of HuBERT or WavLM (Lakhotia et al. 2021, arXiv 2102.01192), encode-only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokbench.errors import NotApplicable
from tokbench.spec import Card
from tokbench.types import Code, Stream, Weights
from tokbench.weights import WeightsRefused, load_state

from .nn.checkpoint import assemble, dtype_of, library, place, weight_norm

_MODELS = {"hubert": "Hubert", "wavlm": "WavLM"}
_FIRST_FRAME = 400


class Units:
    """The index of the nearest centroid to every frame of one hidden layer.

    `card.architecture` holds `model_type` (`hubert` or `wavlm`), `layer` (0 is what enters the first block), `normalize`
    (bring each clip to mean 0 and variance 1 first, as large models want) and `config`, the arguments of the configuration.
    Only the blocks up to the layer are built. Vocoders that speak units are synthesis and none is used, so there is no
    reconstruction.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> a state dict in transformers' key names; role `centroids` -> (K, D) float32 as `.npy`, or as
            `centroids` in a `.safetensors` file.

    Raises:
        MissingExtra: transformers is not installed.
        WeightsRefused: A file does not fit.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        prefix = _MODELS[str(card.architecture["model_type"])]
        config_kind, model_kind = library(
            "transformers", [f"{prefix}Config", f"{prefix}Model"], card.name, card.extra or "transformers"
        )
        arguments = dict(card.architecture.get("config", {}))
        self._layer = int(card.architecture["layer"])
        full: Any = config_kind(**arguments)
        # Where norms come first, the last block's output is normalised once more: then one block beyond the layer is kept.
        depth = min(full.num_hidden_layers, self._layer + int(bool(full.do_stable_layer_norm)))
        config: Any = config_kind(**{**arguments, "num_hidden_layers": depth})
        path = weights["model"]
        self._module: Any = assemble(
            lambda: model_kind(config),
            load_state(path),
            layouts=[weight_norm],
            drop=["masked_spec_embed", *(f"encoder.layers.{k}.*" for k in range(depth, full.num_hidden_layers))],
            optional=["masked_spec_embed"],
            source=str(path),
        )
        self._normalize = bool(card.architecture.get("normalize", False))
        self._centroids = centroids_of(weights["centroids"], card.spec.codebook_size[0], int(config.hidden_size))
        self.spec = card.spec

    def to(self, device: str, dtype: str) -> None:
        """Move the network and the centroids; distances are computed in float32."""
        place(self._module, device, dtype)
        self._centroids = self._centroids.to(device)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 1, T) in [-1, 1] at 16 kHz to one stream (B, frames), frames = floor((T - 80) / 320).

        Raises:
            NotApplicable: The clip is shorter than one frame of 25 ms.
        """
        if x.shape[-1] < _FIRST_FRAME:
            raise NotApplicable(f"{self.spec.name} needs {_FIRST_FRAME} samples at least, got {x.shape[-1]}")
        sound = x[:, 0].float()
        if self._normalize:
            sound = F.layer_norm(sound, sound.shape[-1:])
        states = self._module(sound.to(dtype_of(self._module)), output_hidden_states=True).hidden_states
        features = states[self._layer].float()
        distance = self._centroids.square().sum(1) - 2 * features @ self._centroids.t()
        return Code((Stream("0", len(self._centroids), distance.argmin(-1)),))

    def decode(self, code: Code) -> Tensor:
        """Refuse: units alone do not make a signal.

        Raises:
            NotApplicable: Always.
        """
        del code
        raise NotApplicable(f"{self.spec.name} has no decoder: only its tokens can be judged")


def centroids_of(path: Path, count: int, width: int) -> Tensor:
    """Read (count, width) float32 centroids from `.npy` or `.safetensors`.

    Raises:
        WeightsRefused: Another kind of file (the published ones are pickles of scikit-learn), or another shape.
    """
    convert = (
        'where you trust the published pickle: python -c "import joblib, numpy, sys; numpy.save(sys.argv[2], '
        f"joblib.load(sys.argv[1]).cluster_centers_.astype('float32'))\" {path.name} {path.stem}.npy"
    )
    if path.suffix == ".npy":
        try:
            found = torch.from_numpy(np.load(path, allow_pickle=False))
        except ValueError as error:
            raise WeightsRefused(f"{path} is not a plain array: {error}", convert) from error
    elif path.suffix == ".safetensors":
        found = load_state(path).get("centroids", torch.empty(0))
    else:
        raise WeightsRefused(f"{path} is neither .npy nor .safetensors, and pickles are not opened", convert)
    if tuple(found.shape) != (count, width):
        raise WeightsRefused(f"{path} holds centroids of shape {tuple(found.shape)}, not {(count, width)}", convert)
    return found.float().contiguous()
