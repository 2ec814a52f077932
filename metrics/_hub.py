"""Checkpoints of `transformers` as folders on this machine: found, downloaded where that is allowed, never unpickled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokbench.errors import NotAvailable, UsageError, WeightsAbsent
from tokbench.spec import WeightFile, digest
from tokbench.weights import ALL_ROLES, WeightsRefused, file_digest, missing, resolve

from ._backbones import ABSENT
from ._optional import optional

STATES = ("model.safetensors", "pytorch_model.bin")
"""Names of the file of weights; a folder needs one of them."""


@dataclass(frozen=True)
class Checkpoint:
    """A repository on the Hugging Face hub that holds one model.

    Attributes:
        owner: The metric it belongs to, for messages.
        hub: Its id, `organisation/name`.
        files: What is needed beside the weights: configurations, tokenizer files.
        explicit: A folder of the user's that holds all of it; empty: looked for.
    """

    owner: str
    hub: str
    files: tuple[str, ...]
    explicit: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.hub):
            raise UsageError(f"{self.owner}: model is an id such as openai/whisper-small, got {self.hub!r}")

    @property
    def slug(self) -> str:
        """The model as columns spell it: `whisper_large_v3`."""
        return re.sub(r"\W+", "_", self.hub.partition("/")[2]).lower()


def find(checkpoint: Checkpoint) -> Path | None:
    """Return the folder, or None; uses no network.

    Looked for: `explicit`; `$TOKBENCH_WEIGHTS/<id>/`; the Hugging Face cache at `main`.

    Raises:
        UsageError: `explicit` or `TOKBENCH_WEIGHTS` names nothing, or `explicit` lacks a file.
    """
    overrides = {ALL_ROLES: Path(checkpoint.explicit)} if checkpoint.explicit else {}
    if checkpoint.explicit and not Path(checkpoint.explicit).is_dir():
        raise UsageError(f"{checkpoint.owner}: weights={checkpoint.explicit}: no such folder; it holds config.json")
    for state in STATES:
        if checkpoint.explicit and not (Path(checkpoint.explicit) / state).is_file():
            continue
        wanted = _wanted(checkpoint, state)
        if not missing(wanted, owner=checkpoint.owner, overrides=overrides):
            found = resolve(wanted, owner=checkpoint.owner, offline=True, overrides=overrides)
            folders = {path.parent for path in found.values()}
            if len(folders) == 1:
                return folders.pop()
    if checkpoint.explicit:
        raise UsageError(f"{checkpoint.owner}: weights={checkpoint.explicit} holds no {' nor '.join(STATES)}")
    return None


def require(checkpoint: Checkpoint) -> Path:
    """Return the folder.

    Raises:
        WeightsAbsent: It is nowhere; `fix` says how to get it.
    """
    folder = find(checkpoint)
    if folder is None:
        raise WeightsAbsent(
            f"{checkpoint.owner} needs {checkpoint.hub}: {', '.join(checkpoint.files)} and {' or '.join(STATES)}",
            f"`hf download {checkpoint.hub}`, or put them in $TOKBENCH_WEIGHTS/{checkpoint.hub}/, "
            "or name the folder with the metric's option: weights=/path/to/folder",
        )
    return folder


def fetch(checkpoint: Checkpoint, offline: bool) -> None:
    """Download what is absent and may be had; without it the metric's cells say what is missing."""
    if not offline and not checkpoint.explicit and find(checkpoint) is None:
        _download(checkpoint)


@lru_cache
def _download(checkpoint: Checkpoint) -> None:
    for state in STATES:
        with suppress(NotAvailable):
            resolve(_wanted(checkpoint, state), owner=checkpoint.owner, offline=False)
            return


def identity(checkpoint: Checkpoint) -> str:
    """Return one digest over the weights and every file beside them, or `absent`: what a metric's protocol says of them."""
    try:
        folder = find(checkpoint)
    except NotAvailable:
        return ABSENT
    if folder is None:
        return ABSENT
    state = next(name for name in STATES if (folder / name).is_file())
    return digest({name: file_digest(folder / name) for name in (*checkpoint.files, state)})


def build(checkpoint: Checkpoint, kind: str, device: str) -> Any:
    """Build a model of `transformers` from the checkpoint: float32, frozen, eval, on `device`.

    Args:
        checkpoint: What to load.
        kind: The class, `WavLMForXVector`.
        device: As torch spells it.

    Raises:
        MissingExtra: transformers is not installed.
        WeightsAbsent: The checkpoint is not on this machine.
        WeightsRefused: The file lacks tensors of the model, or would have to be unpickled.
    """
    folder = require(checkpoint)
    return _build(folder, _stamp(folder), kind, device)


@lru_cache(maxsize=2)
def _build(folder: Path, _files: tuple[object, ...], kind: str, device: str) -> Any:
    import pickle

    import torch

    loader = library([kind])[0]
    try:
        with quiet():
            model, report = loader.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, weights_only=True, output_loading_info=True
            )
    except pickle.UnpicklingError as error:
        raise WeightsRefused(
            f"{folder} cannot be read as plain tensors, and tokbench never runs the code inside a pickle",
            "fetch the repository again, or one that has model.safetensors",
        ) from error
    except (OSError, ValueError, RuntimeError, EOFError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsRefused(
            f"{folder} does not load as {kind}: {reason[:300]}", "fetch the repository again"
        ) from error
    lost = sorted(str(key) for key in report["missing_keys"])
    if lost:
        raise WeightsRefused(
            f"{folder} lacks tensors of {kind}: {', '.join(lost[:5])}", "name a checkpoint of that architecture"
        )
    return model.eval().requires_grad_(False).to(device)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing bars, advice, and tables of the tensors that a part of a model leaves unused."""
    from transformers.utils import logging as talk

    logging: Any = talk
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def frames(model: Any, samples: int) -> int:
    """Return how many frames the convolutions of a wav2vec-like model (HuBERT, WavLM) make of a clip; below 1: none."""
    for width, stride in zip(model.config.conv_kernel, model.config.conv_stride, strict=True):
        samples = (samples - width) // stride + 1
    return samples


def beside(checkpoint: Checkpoint, kind: str) -> Any:
    """Build what stands beside a model (a feature extractor, a processor) from its folder."""
    folder = require(checkpoint)
    return _beside(folder, _stamp(folder), kind)


@lru_cache(maxsize=4)
def _beside(folder: Path, _files: tuple[object, ...], kind: str) -> Any:
    return library([kind])[0].from_pretrained(folder, local_files_only=True)


def _stamp(folder: Path) -> tuple[object, ...]:
    """Return what changes when a file of the folder does: asked for at every row, so no file is read."""
    return tuple(
        sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file())
    )


def library(names: Sequence[str]) -> list[Any]:
    """Return classes of `transformers` by name.

    Raises:
        MissingExtra: It is not installed.
    """
    transformers = optional("transformers", "this metric", extra="transformers")
    return [getattr(transformers, name) for name in names]


def _wanted(checkpoint: Checkpoint, state: str) -> list[WeightFile]:
    return [WeightFile(name, name, hub=checkpoint.hub) for name in (*checkpoint.files, state)]
