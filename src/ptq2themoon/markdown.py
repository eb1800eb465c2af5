"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table, its header first."""
    rule = ["---"] * len(header)
    return ["| " + " | ".join(map(str, line)) + " |" for line in (header, rule, *lines)]
