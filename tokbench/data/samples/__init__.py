"""Built-in sample sets: files inside installed packages, and signals made on the spot; nothing is downloaded."""

from __future__ import annotations

from tokbench.data.samples.source import open_samples

__all__ = ["open_samples"]
