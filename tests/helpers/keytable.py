"""Key tables of checkpoints, written compactly: one line for a run of blocks."""

from __future__ import annotations

import itertools
import re

Table = dict[str, tuple[tuple[int, ...], str]]


def expand(lines: list[str]) -> Table:
    """Read a key table: `blocks.{0-11}.norm1.weight 768` stands for twelve keys of that shape."""
    table: Table = {}
    for line in lines:
        name, shape, *dtype = line.split(" ")
        parts: list[list[str]] = []
        for part in re.split(r"(\{[^}]*\})", name):
            if not part.startswith("{"):
                parts.append([part])
                continue
            spans = [span.partition("-") for span in part[1:-1].split(",")]
            parts.append([str(i) for first, _, last in spans for i in range(int(first), int(last or first) + 1)])
        size = tuple(int(n) for n in shape.split("x")) if shape else ()
        for combination in itertools.product(*parts):
            table["".join(combination)] = (size, dtype[0] if dtype else "float32")
    return table
