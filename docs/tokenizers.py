"""Writes docs/tokenizers.md from the cards and the parity goldens: `python docs/tokenizers.py`. Nothing is kept by hand."""

from __future__ import annotations

import json
from pathlib import Path

from tokbench.catalog import at_point
from tokbench.cli.listing import geometry
from tokbench.markup import escape_markdown
from tokbench.registry import catalogs
from tokbench.spec import Card, TokenizerSpec

ROOT = Path(__file__).resolve().parents[1]
HEADER = """# Tokenizers

Made by `python docs/tokenizers.py` from the cards and from the goldens in `tests/parity/tokenizers/`; a test holds it to them.

**parity** says how a row's arithmetic is proven, always with seeded weights, because tests have no network: `golden`, this card
equals what the official code gave on the same input; `same code`, a sibling on the same adapter does, and this card differs in
its sizes or options; `library`, the adapter calls the library's own class; `codec`, the row is a codec, tested for its own
contract. **offers** lists the capabilities of the card (`tokbench.spec.Capability`), which the contract check holds to
the code. No published weight file was opened to make this table.

"""


def proven() -> set[str]:
    """Return the names of the cards that a golden proves."""
    names = set()
    for path in (ROOT / "tests" / "parity" / "tokenizers").glob("*/golden.json"):
        about = json.loads(path.read_text(encoding="utf-8"))
        names.update(about.get("cards") or [about.get("card") or about.get("tokenizer") or path.parent.name])
    return names


def parity(card: Card, names: set[str], targets: set[str]) -> str:
    """Return the parity column of a card."""
    if card.status != "available":
        return card.status
    if card.name in names:
        return "golden"
    if card.extra in {"diffusers", "transformers", "audio", "video"}:
        return "library"
    if card.target in targets:
        return "same code"
    return "codec" if card.spec.kind in {"payload", "none"} or not card.weights else "contract only"


def offers(spec: TokenizerSpec) -> str:
    """Return what a tokenizer declares beside encode and decode."""
    size = spec.native_size
    also = {
        "stochastic": not spec.deterministic,
        f"{size[0]}x{size[1]} only" if size else "": size is not None,
        "encode only": spec.encode_only,
        "padding-safe": spec.padding_safe,
    }
    return ", ".join([*spec.capabilities, *(name for name, holds in also.items() if holds)]) or "–"


def table() -> str:
    """Return the whole page."""
    cards = catalogs().cards
    names = proven() & set(cards)
    targets = {cards[name].target for name in names}
    parts = [HEADER]
    for modality in ("image", "video", "audio"):
        chosen = [card for card in cards.values() if card.spec.modality == modality]
        ready = sum(card.status == "available" for card in chosen)
        parts.append(f"## {modality.capitalize()}: {ready} available, {len(chosen) - ready} planned or unreleased\n\n")
        parts.append("| name | family | code | stride, codebooks or channels | offers | licence | weights | parity |\n")
        parts.append("|---|---|---|---|---|---|---|---|\n")
        for card in sorted(chosen, key=lambda card: (card.status != "available", card.family, card.name)):
            weights = (
                ", ".join(dict.fromkeys(file.hub or file.package or "a file by hand" for file in card.weights)) or "–"
            )
            spec = at_point(card, {}).spec
            about = (card.name, card.family, spec.kind, geometry(spec), offers(spec))
            cells = (*about, card.licence, weights)
            row = [escape_markdown(cell) for cell in (*cells, parity(card, names, targets))]
            parts.append("| " + " | ".join(row) + " |\n")
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "tokenizers.md").write_text(table(), encoding="utf-8")
