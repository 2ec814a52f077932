"""What lies near an entry of a codebook: in a table of vectors, on a grid of levels, among words of bits.

Each class is a `tokbench.types.Neighbours`, the table a `LatentNeighbours` too. An adapter offers it in one method:

    def neighbours(self, codebook: str) -> Neighbours:
        return TableNeighbours(self._net.quantize.embedding.weight)

The neighbourhood never holds the entry itself, so that a perturbed token always changes; of codebooks without distances
between vectors it is the smallest whole ball, so that no member is preferred for the order in which it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import comb, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from tokbench.errors import UsageError

_BLOCK = 2**24
_WIDEST = 62


@dataclass(frozen=True)
class TableNeighbours:
    """A table of vectors (VQ, residual VQ, product VQ): the `delta` entries of least Euclidean distance, one of them drawn.

    Attributes:
        table: (K, D), one vector an entry.
        cosine: Vectors are l2-normalised first, as the quantizer itself does.
    """

    table: Tensor
    cosine: bool = False

    def choose(self, indices: Tensor, delta: int, uniform: Tensor) -> Tensor:
        """Return for each of (N,) indices one of the `delta` entries nearest to it; at one distance the lower index first.

        Raises:
            UsageError: `delta` is below 1, or the table has a single entry.
        """
        rows = self._rows()
        delta = _checked(delta, len(rows))

        def members(entry: int) -> Tensor:
            distance = (rows - rows[entry]).square_().sum(-1, dtype=torch.float64)
            distance[entry] = torch.inf
            return _smallest(distance, delta)

        return _drawn(indices, uniform, members)

    def choose_near(self, latents: Tensor, delta: int, uniform: Tensor) -> Tensor:
        """Return for each of (N, D) latents one of the `delta` entries nearest to it, the nearest of all included.

        Raises:
            UsageError: `delta` is below 1.
        """
        rows = self._rows().double()
        points = F.normalize(latents.double(), dim=-1) if self.cosine else latents.double()
        delta = min(_checked(delta, len(rows) + 1), len(rows))
        rank = _rank(uniform, delta).to(rows.device)
        norms, found = rows.square().sum(-1), []
        step = max(1, _BLOCK // len(rows))
        for part, at in zip(torch.split(points, step), torch.split(rank, step), strict=True):
            near = (norms - 2 * part @ rows.T).topk(delta, dim=1, largest=False).indices
            found.append(near.gather(1, at[:, None])[:, 0])
        return torch.cat(found)

    def _rows(self) -> Tensor:
        rows = self.table.detach().float()
        return F.normalize(rows, dim=-1) if self.cosine else rows


@dataclass(frozen=True)
class GridNeighbours:
    """A grid of levels (FSQ): the smallest L1 ball of level steps with at least `delta` other entries, one of them drawn.

    Attributes:
        levels: Level count of each dimension.
        first_fastest: The first dimension varies fastest in an index (Mentzer et al. 2023); else the last one.
    """

    levels: Sequence[int]
    first_fastest: bool = True

    def choose(self, indices: Tensor, delta: int, uniform: Tensor) -> Tensor:
        """Return for each of (N,) indices a member of its ball; at the edge of the grid a ball is wider.

        Raises:
            UsageError: `delta` is below 1, or the grid has a single entry.
        """
        size = prod(self.levels)
        delta = _checked(delta, size)
        order = self.levels if self.first_fastest else tuple(reversed(self.levels))
        rest, steps = torch.arange(size, device=indices.device), []
        for count in order:
            steps.append(rest % count)
            rest = rest // count
        places = torch.stack(steps)

        def members(entry: int) -> Tensor:
            distance = (places - places[:, entry, None]).abs().sum(0)
            radius = distance.sort().values[delta]
            return ((distance <= radius) & (distance > 0)).nonzero()[:, 0]

        return _drawn(indices, uniform, members)


@dataclass(frozen=True)
class BitNeighbours:
    """Words of bits (LFQ, BSQ): the smallest Hamming ball with at least `delta` other words, one of them drawn.

    Nothing is enumerated, so 62 bits cost what 10 do.

    Attributes:
        width: Bits of a word; the codebook has 2^width entries.

    Raises:
        UsageError: `width` is not in [1, 62].
    """

    width: int

    def __post_init__(self) -> None:
        if not 1 <= self.width <= _WIDEST:
            raise UsageError(f"words of 1 to {_WIDEST} bits have neighbours, got {self.width}")

    def choose(self, indices: Tensor, delta: int, uniform: Tensor) -> Tensor:
        """Return for each of (N,) indices a word at a Hamming distance of 1 to the ball's radius.

        Raises:
            UsageError: `delta` is below 1.
        """
        delta = _checked(delta, 2**self.width)
        within = list(accumulate(comb(self.width, bits) for bits in range(1, self.width + 1)))
        radius = next(bits for bits, count in enumerate(within, start=1) if count >= delta)
        below = torch.tensor([0, *within[:radius]], device=indices.device)
        rank = _rank(uniform, within[radius - 1]).to(indices.device)
        bits = torch.searchsorted(below[1:].contiguous(), rank, right=True) + 1
        return indices ^ self._mask(rank - below[bits - 1], bits)

    def _mask(self, rank: Tensor, bits: Tensor) -> Tensor:
        """Return the word number `rank` among those with `bits` ones, in the combinatorial number system."""
        ways = torch.tensor([[comb(n, k) for k in range(self.width + 1)] for n in range(self.width)])
        ways, word = ways.to(rank.device), torch.zeros_like(rank)
        for place in range(self.width - 1, -1, -1):
            skipped = ways[place][bits]
            taken = (bits > 0) & (rank >= skipped)
            word = torch.where(taken, word | (1 << place), word)
            rank = torch.where(taken, rank - skipped, rank)
            bits = bits - taken.long()
        return word


def _checked(delta: int, size: int) -> int:
    if delta < 1 or size < 2:
        raise UsageError(f"a neighbourhood needs a strength of at least 1 and two entries, got {delta} of {size}")
    return min(delta, size - 1)


def _smallest(distance: Tensor, count: int) -> Tensor:
    """Return the places of the `count` smallest values, smallest first, the lower place first where they are equal."""
    near = (distance <= distance.kthvalue(count).values).nonzero()[:, 0]
    return near[distance[near].sort(stable=True).indices][:count]


def _rank(uniform: Tensor, count: int) -> Tensor:
    return (uniform.double() * count).long().clamp(max=count - 1)


def _drawn(indices: Tensor, uniform: Tensor, members: Callable[[int], Tensor]) -> Tensor:
    """Draw a member for every token; the members of an entry are found once however often it occurs."""
    out = torch.empty_like(indices)
    for entry in torch.unique(indices).tolist():
        here = indices == entry
        near = members(entry)
        out[here] = near[_rank(uniform.to(indices.device)[here], len(near))]
    return out
