"""What the classical codecs share: the exact 8-bit signal they take, and a thread pool that keeps the order of rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokbench.errors import MissingExtra, NotApplicable, UsageError
from tokbench.types import Code

T = TypeVar("T")
R = TypeVar("R")


def map_rows(function: Callable[[T], R], rows: Sequence[T]) -> list[R]:
    """Apply `function` to every row and return the results in the order of `rows`.

    Codecs release the interpreter lock, so rows run on as many threads as torch is given; with one thread, no pool is made.
    """
    threads = min(torch.get_num_threads(), len(rows))
    if threads <= 1:
        return [function(row) for row in rows]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, rows))


def payload_of(code: Code, name: str) -> tuple[bytes, ...]:
    """Return the byte strings of a code.

    Raises:
        UsageError: The code carries none, so it is not one of this tokenizer.
    """
    if code.payload is None:
        raise UsageError(f"{name} decodes payload bytes; this code carries none")
    return code.payload


def finite(x: Tensor, name: str) -> Tensor:
    """Return `x` as float32 on the CPU.

    Raises:
        NotApplicable: It holds a NaN or an infinity, which no codec can store.
    """
    x = x.detach().to(device="cpu", dtype=torch.float32)
    if not bool(torch.isfinite(x).all()):
        raise NotApplicable(f"{name} cannot encode NaN or infinity")
    return x


def sound_rows(x: Tensor, name: str, channels: Collection[int]) -> list[NDArray[np.float32]]:
    """Return the rows (C, T) of a batch of sound as float32.

    Raises:
        UsageError: Not (B, C, T).
        NotApplicable: Another number of channels than the codec takes, or NaN in the signal.
    """
    if x.ndim != 3:
        raise UsageError(f"{name} takes (B, C, T), got {tuple(x.shape)}")
    if x.shape[1] not in channels:
        wanted = " or ".join(map(str, sorted(channels)))
        raise NotApplicable(f"{name} takes {wanted} channel{'s' * (max(channels) > 1)}, got {x.shape[1]}")
    return list(finite(x, name).numpy())


def require_encoder(encoder: str, owners: str) -> None:
    """Raise MissingExtra where PyAV is not installed, or was built without an encoder; `owners` need it."""
    try:
        import av

        av.codec.Codec(encoder, "w")
    except ImportError as error:
        raise MissingExtra(f"{owners} need PyAV", "pip install av") from error
    except ValueError as error:
        fix = "pip install --only-binary av --force-reinstall av"
        raise MissingExtra(f"this PyAV was built without {encoder}", fix) from error


def to_8bit(x: Tensor, name: str) -> NDArray[np.uint8]:
    """Turn (B, 3, ...) in [0, 1] into (B, ..., 3) uint8: round half up of 255 x, saturated; exact where x = k / 255.

    Raises:
        UsageError: The channel axis is not 3.
        NotApplicable: A value is not finite.
    """
    if x.ndim < 4 or x.shape[1] != 3:
        raise UsageError(f"{name} takes (B, 3, ...) RGB, got {tuple(x.shape)}")
    levels = finite(x, name).mul(255).add(0.5).floor().clamp(0, 255).to(torch.uint8)
    return levels.movedim(1, -1).contiguous().numpy()


def from_8bit(rows: Sequence[NDArray[Any]]) -> Tensor:
    """Turn B arrays (..., 3) uint8 of one shape into (B, 3, ...) float32 in [0, 1]."""
    return torch.from_numpy(np.stack(rows)).movedim(-1, 1).to(torch.float32).div(255)
