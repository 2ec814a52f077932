"""Building networks whose weights come from a file without drawing the random ones they would start from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset(
    {
        torch.Tensor.uniform_, torch.Tensor.normal_,
        # These announce themselves; what they call is then no longer seen.
        nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_,
    }
)  # fmt: skip


class Undrawn(TorchFunctionMode):
    """Within it, tensors are not filled with uniform or normal numbers: what they hold must be loaded.

    Drawing them takes a third of a second for Inception, and on the meta device, where it has no effect, the first draw
    imports PyTorch's compiler (one second and more).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, unless it draws; see `torch.overrides`."""
        if func in _DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
