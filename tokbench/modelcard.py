"""A tokenizer's measured numbers as the metric block of a Hugging Face model card."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokbench.entries import Entry
from tokbench.errors import UsageError


def model_card(name: str, licence: str, found: Sequence[Entry]) -> str:
    """Return the YAML front matter (`model-index`) and a Markdown table of the complete, unlimited results of `name`.

    Strings are written as JSON, which YAML reads: no name can break out of its place.

    Raises:
        UsageError: No such result is there.
    """
    mine = [
        entry.result
        for entry in found
        if entry.name == name and entry.result["status"] == "complete" and entry.result["protocol"]["limit"] is None
    ]
    if not mine:
        known = ", ".join(sorted({entry.name for entry in found if entry.result["status"] == "complete"}))
        raise UsageError(f"no complete result of {name} here; there are: {known or 'none'}")
    lines = ["---", f"license: {json.dumps(licence)}", "model-index:", f"- name: {json.dumps(name)}", "  results:"]
    table = ["| suite | protocol | metric | value | 95 % interval | n |", "| --- | --- | --- | ---: | ---: | ---: |"]
    for result in mine:
        lines += [
            "  - task:",
            f"      type: {json.dumps(result['modality'] + '-reconstruction')}",
            "    dataset:",
            f"      type: {json.dumps(result['dataset']['uri'])}",
            f"      name: {json.dumps(result['suite'], ensure_ascii=False)}",
            f"      revision: {json.dumps(result['dataset']['manifest'])}",
            "    metrics:",
        ]
        for column in result["board"] or sorted(result["metrics"]):
            cell = result["metrics"].get(column)
            if cell is None or cell["value"] is None:
                continue
            digits = cell["decimals"]
            lines += [f"    - type: {json.dumps(column)}", f"      value: {cell['value']!r}"]
            interval = "" if cell["ci95"] is None else f"{cell['ci95'][0]:.{digits}f} to {cell['ci95'][1]:.{digits}f}"
            hash_ = result["protocol"]["hash"][:8]
            words = (result["suite"], hash_, column, f"{cell['value']:.{digits}f}", interval, str(cell["n"]))
            table.append("| " + " | ".join(word.replace("|", "\\|") for word in words) + " |")
        lines += [
            "    source:",
            '      name: "tokbench"',
            f"      url: {json.dumps('tokbench:' + result['protocol']['hash'])}",
        ]
    return "\n".join([*lines, "---", "", *table, ""])
