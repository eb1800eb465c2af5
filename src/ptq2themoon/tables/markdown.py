"""Tables in Markdown, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table, its header first."""
    rule = ["---"] * len(header)
    return ["| " + " | ".join(map(str, line)) + " |" for line in (header, rule, *lines)]


def signed(value: float, decimals: int = 2) -> str:
    """`+0.50` or `−0.50`, with a true minus sign; what rounds to zero is `+0.00`."""
    text = f"{value:+.{decimals}f}"
    return f"+{text[1:]}" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")
