"""Reads the training checkpoints that LlamaGen and the tokenizers built on its code publish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from tokbench.types import Weights
from tokbench.weights import WeightsRefused, load_into, load_state

from .checkpoint import skeleton

Net = TypeVar("Net", bound=nn.Module)


def fill(
    weights: Weights, make: Callable[[], Net], published: Callable[[str], str], *, drop: Sequence[str] = ()
) -> Net:
    """Build a module, give it the tensors of the card's file of role `model`, and freeze it.

    Args:
        weights: Role `model` -> the checkpoint, a training checkpoint or plain tensors as safetensors.
        make: Builds the module.
        published: Spells a key of the module as the checkpoint does.
        drop: Globs of published keys that inference does not need.

    Raises:
        WeightsRefused: The file cannot be read safely or does not fit.
    """
    path = weights["model"]
    module: Net = skeleton(make)
    own = {published(key): key for key in module.state_dict()}
    state = {own.get(key, key): value for key, value in training_state(path).items()}
    load_into(module, state, drop=drop, source=str(path))
    return module


def training_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint: those under `ema` where there are any, else under `model`, else `state_dict`.

    Raises:
        WeightsRefused: The file cannot be read safely, or holds none of the three.
    """
    if path.suffix == ".safetensors":
        return load_state(path)
    for name in ("ema", "model", "state_dict"):
        try:
            return load_state(path, inside=(name,))
        except WeightsRefused as error:
            if f"holds no {name!r}" not in error.message:
                raise
    raise WeightsRefused(
        f"{path} holds none of 'ema', 'model' and 'state_dict'",
        "name a training checkpoint, or its tensors as safetensors",
    )
