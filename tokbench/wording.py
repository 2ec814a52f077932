"""A comparison in words: what the terminal, the Markdown comment and the HTML report share."""

from __future__ import annotations

from tokbench.markup import escape_markdown
from tokbench.verdicts import ColumnReport, Comparison, PairReport

HEADER = ("column", "base", "candidate", "difference", "95 % interval", "allowed", "n", "verdict")


def headline(found: Comparison) -> str:
    """Return the verdict over all pairs in two words."""
    return {0: "no regression", 1: "regression", 2: "not comparable"}[found.exit_code]


def to_markdown(found: Comparison) -> str:
    """Return a comparison as Markdown for a pull request: the verdict first, one table a pair."""
    parts = [f"## tokbench: {headline(found)}", ""]
    for pair in found.pairs:
        parts += [f"### {escape_markdown(title(pair))}: {pair.verdict}", ""]
        if pair.columns:
            parts += ["| " + " | ".join(HEADER) + " |", "| --- |" + " ---: |" * (len(HEADER) - 2) + " --- |"]
            parts += ["| " + " | ".join(map(escape_markdown, cells(column))) + " |" for column in pair.columns]
            parts.append("")
        lines = [line for _, line in remarks(pair)]
        parts += [*(f"- {escape_markdown(line)}" for line in lines), ""]
        if pair.regressed:
            parts += ["| lost most in | sample | base | candidate |", "| --- | --- | ---: | ---: |"]
            parts += [
                f"| {escape_markdown(r.column)} | {escape_markdown(r.key)} | {r.base:.6g} | {r.candidate:.6g} |"
                for r in pair.regressed
            ]
            parts.append("")
    parts += [f"- {escape_markdown(note)}" for note in found.notes]
    return "\n".join(parts).rstrip() + "\n"


def title(pair: PairReport) -> str:
    """Return which tokenizers are compared, on which suite."""
    names = pair.base if pair.base == pair.candidate else f"{pair.base} -> {pair.candidate}"
    return f"{names} on {pair.suite}"


def cells(column: ColumnReport) -> list[str]:
    """Return a column's line under `HEADER`; what decides nothing stands in brackets."""
    digits = column.decimals

    def number(value: float | None, sign: str = "") -> str:
        return "–" if value is None else f"{value:{sign}.{digits}f}"

    arrow = {True: " ↑", False: " ↓", None: ""}[column.higher_is_better]
    interval = "" if column.ci95 is None else f"{number(column.ci95[0], '+')} .. {number(column.ci95[1], '+')}"
    word = column.verdict if column.judged else f"({column.verdict})"
    return [
        column.column + arrow,
        number(column.base),
        number(column.candidate),
        number(column.difference, "+"),
        interval,
        f"{column.tolerance:g}" if column.higher_is_better is not None else "",
        str(column.n) if column.n else "",
        word + (f": {column.note}" if column.note else ""),
    ]


def remarks(pair: PairReport) -> list[tuple[str, str]]:
    """Return (style, line) of everything but the columns."""
    lines = [("red", f"not comparable: {field}") for field in pair.refused]
    lines += [("red", line) for line in pair.problems]
    for item in pair.speed:
        sure = "" if item.p is None else f", p {item.p:.2g}"
        text = f"{item.phase}: {item.base:.3g} s -> {item.candidate:.3g} s a sample, ratio {item.ratio:.2f}{sure}"
        lines.append(("red" if item.fails else "", text))
    if not pair.refused:
        words = {
            "equal": "the encoder emits the same tokens on the probe",
            "differs": "the encoder emits other tokens on the probe",
            "unknown": "token digest unknown",
        }
        lines.append(("", words[pair.digest]))
    lines += [("", f"changed: {line}") for line in pair.changes]
    return [*lines, *(("", note) for note in pair.notes)]
