"""Draws the README's picture from a result store: `python docs/board.py results docs/board.svg`."""

from __future__ import annotations

import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from tokbench.leaderboard import boards
from tokbench.renderings import to_tables
from tokbench.store import Store


def main(store: Path, picture: Path) -> None:
    """Write the boards of a store as one SVG that refers to nothing outside itself."""
    console = Console(record=True, width=170, file=StringIO())
    order = {"image": 0, "video": 1, "audio": 2}
    for board in sorted(boards(Store(store).results()), key=lambda board: order[board.modality]):
        console.print(f"[bold]{board.title}[/bold]")
        for table in to_tables(board, console.width):
            console.print(table)
    svg = console.export_svg(title="tokbench run", unique_id="board")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code,", "")
    picture.write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
