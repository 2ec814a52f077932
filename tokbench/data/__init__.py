"""Datasets: folders, tar shards, hub datasets and built-in samples, decoded in key order ahead of the device."""

from __future__ import annotations

from tokbench.data.decode import load
from tokbench.data.manifest import manifest
from tokbench.data.pool import DecodePool, stream
from tokbench.data.sources import open_source
from tokbench.data.types import Blob, Failure, Item, Made, Manifest, Raw, Source

__all__ = [
    "Blob",
    "DecodePool",
    "Failure",
    "Item",
    "Made",
    "Manifest",
    "Raw",
    "Source",
    "load",
    "manifest",
    "open_source",
    "stream",
]
