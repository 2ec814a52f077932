"""Batches of pictures and clips for the tests of metrics."""

from __future__ import annotations

from torch import Tensor

from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, Sample

_MODALITIES: dict[int, Modality] = {3: "audio", 4: "image", 5: "video"}


def picture_sample(reference: Tensor, reconstruction: Tensor, modality: Modality | None = None) -> Sample:
    """Return a batch without a code; its modality is what the number of axes says, where none is given."""
    keys = tuple(str(i) for i in range(len(reference)))
    spec = TokenizerSpec(name="test", modality=modality or _MODALITIES[reference.ndim], kind="none")
    return Sample(keys, reference, reconstruction, reconstruction, Code(), spec, groups=keys)
