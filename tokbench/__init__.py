"""tokbench: benchmark and evaluation suite for image, video and audio tokenizers.

Importing it imports no torch; `run` and `evaluate_tokenizer` do when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokbench.api import Request, evaluate_tokenizer, run

__version__ = "0.1.0"
__all__ = ["Request", "__version__", "evaluate_tokenizer", "run"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("tokbench.api"), name)
    raise AttributeError(f"module 'tokbench' has no attribute {name!r}")
