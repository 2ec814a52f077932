"""Text that may stand in a page: templates filled and escaped, JSON in script elements, cells of Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any


def render(template: str, styles: Sequence[str], scripts: Sequence[str], values: Mapping[str, Any]) -> str:
    """Fill a template of `tokbench/templates`; its `style` and `script` are the named files put together.

    Values are escaped where the template does not say `safe`.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = ("\n".join(map(_text, names)) for names in (styles, scripts))
    return environment.from_string(_text(template)).render(style=style, script=script, **values)


def _text(name: str) -> str:
    return resources.files("tokbench").joinpath("templates").joinpath(name).read_text(encoding="utf-8")


def script_json(value: object) -> str:
    """Return JSON that may stand inside a script element, whatever strings it holds."""
    dumped = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        dumped = dumped.replace(char, f"\\u{ord(char):04x}")
    return dumped


def escape_markdown(text: str) -> str:
    """Make any text harmless inside a Markdown table cell."""
    table = {ord(char): f"\\{char}" for char in "\\`*_[]|#"} | {ord("<"): "&lt;", ord(">"): "&gt;", ord("\n"): " "}
    return text.translate(table)
