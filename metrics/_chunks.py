"""Networks run at one number of rows a call, so that a row's bits do not depend on the batch it came in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Chunks:
    """A network (rows in, rows out) called with `size` rows at a time.

    Fewer rows are padded with zeros, unless this machine was seen to give the same bits without the padding: which
    kernels a network runs may depend on the number of rows, and often does not.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], size: int) -> None:
        self._network, self._size = network, size
        self._alone: dict[tuple[object, ...], bool] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return the rows of the network for (B, ...) rows."""
        return torch.cat([self._part(part) for part in torch.split(x, self._size)])

    def padded(self, x: Tensor) -> Tensor:
        """Return at most `size` rows with zeros behind them, `size` in all."""
        missing = self._size - x.shape[0]
        return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x

    def _part(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        case = (x.shape, torch.get_num_threads())
        if rows == self._size or self._alone.get(case):
            return self._network(x)
        out = self._network(self.padded(x))[:rows]
        if case not in self._alone:
            self._alone[case] = x.device.type == "cpu" and torch.equal(self._network(x), out)
        return out
