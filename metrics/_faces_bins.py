"""Scale bins of faces: the two published sets of TokBench, by picture size, and free edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from tokbench.errors import UsageError
from tokbench.spec import Modality

Edges = tuple[float, ...]

PUBLISHED: Mapping[str, Mapping[str, Mapping[int, Edges]]] = {
    "2025-06": {
        "image": {256: (0.1, 0.2, 0.3, 1), 512: (0.05, 0.1, 0.2, 1), 1024: (0.02, 0.05, 0.1, 1)},
        "video": {256: (0.05, 0.1, 0.2, 1), 480: (0.02, 0.05, 0.1, 1)},
    },
    "2025-05": {
        "image": {256: (0, 0.1, 0.2, 1), 512: (0, 0.05, 0.2, 1), 1024: (0, 0.05, 0.1, 1)},
    },
}
"""Set -> modality -> size S of the protocol -> edges. `2025-06` is that of the published board (UniTok 0.35 at 256);
`2025-05` that of the first release of the code (0.232), under the same name there."""

_MODALITIES: tuple[Modality, ...] = ("image", "video")
_THREE = ("small", "medium", "large")


@dataclass(frozen=True)
class Bins:
    """Half-open intervals of a face's ratio (its longer side over the picture's), for the modalities that have them.

    Attributes:
        name: `tokbench-face@2025-06`, `tokbench-face@2025-05`, or `free`.
        edges: Modality -> increasing edges; bin i is [edges[i], edges[i + 1]).
        suffix: What columns of a set other than the default one end with.
    """

    name: str
    edges: Mapping[str, Edges]
    suffix: str = ""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Return the modalities that have edges."""
        return tuple(modality for modality in _MODALITIES if modality in self.edges)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the bins' names: small, medium, large where there are three, else bin1, bin2, ..."""
        count = len(next(iter(self.edges.values()))) - 1
        return _THREE if count == 3 else tuple(f"bin{n + 1}" for n in range(count))

    def place(self, modality: str, ratio: float | None) -> str | None:
        """Return the bin of a ratio, or None where it lies in none."""
        if ratio is None:
            return None
        found = zip(self.labels, pairwise(self.edges[modality]), strict=True)
        return next((label for label, (low, high) in found if low <= ratio < high), None)


def parse_bins(text: str, size: int) -> Bins:
    """Read the options `bins` and `size`.

    Args:
        text: `2025-06`, `2025-05` (or with `tokbench-face@` before it), or edges with commas between them: `0,0.1,0.3,1`.
        size: S of the protocol, which chooses the edges of a published set: 256, 512 or 1024; 480 for video.

    Raises:
        UsageError: No such set, no edges for that size, or edges that do not increase within [0, 1].
    """
    name = text.removeprefix("tokbench-face@")
    if name in PUBLISHED:
        edges = {modality: sizes[size] for modality, sizes in PUBLISHED[name].items() if size in sizes}
        if not edges:
            known = sorted({known for sizes in PUBLISHED[name].values() for known in sizes})
            raise UsageError(
                f"face: bins {name} have edges for size {', '.join(map(str, known))}, not for {size}; "
                "name one of these, or free edges: bins=0.1,0.2,0.3,1"
            )
        return Bins(f"tokbench-face@{name}", edges, "" if name == "2025-06" else "_" + name.replace("-", "_"))
    try:
        free = tuple(float(part) for part in text.split(","))
    except ValueError:
        free = ()
    if len(free) < 2 or any(not 0 <= a < b <= 1 for a, b in pairwise(free)):
        raise UsageError(
            f"face: bins={text!r} is neither one of {', '.join(sorted(PUBLISHED))} nor edges that increase within "
            "[0, 1], such as 0.1,0.2,0.3,1"
        )
    return Bins("free", {"image": free, "video": free}, "_free")
