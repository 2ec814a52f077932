"""Keeps what metric states gain in large blocks: small tensors that stay would pin the memory of large ones that go."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokbench.types import State

_BLOCK = 8 << 20
_ALIGN = 64
_SMALL = _BLOCK // 16


class Blocks:
    """Room for the small tensors that states keep until the end of a shard.

    A metric of the set keeps a row for each sample. Allocated one by one between the activations of networks, such rows keep
    the allocator from using the room around them again: 1,000 images of Inception features, 16 MB, then cost 1 GB.
    """

    def __init__(self) -> None:
        self._block: Tensor | None = None
        self._used = 0

    def moved(self, before: State, after: State) -> State:
        """Return `after` with what it has more than `before` copied into blocks: small tensors on the CPU; equal in value."""
        new = after.keys() - before.keys()
        return {key: self._placed(value) if key in new else value for key, value in after.items()}

    def _placed(self, value: Tensor) -> Tensor:
        size = value.numel() * value.element_size()
        if value.device.type != "cpu" or not 0 < size <= _SMALL:
            return value
        if self._block is None or self._used + size > _BLOCK:
            self._block, self._used = torch.empty(_BLOCK, dtype=torch.uint8), 0
        room = self._block[self._used : self._used + size].view(value.dtype).view(value.shape)
        self._used = math.ceil((self._used + size) / _ALIGN) * _ALIGN
        return room.copy_(value)
