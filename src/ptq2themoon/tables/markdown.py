"""Tables in Markdown, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table, its header first."""
    rule = ["---"] * len(header)
    return ["| " + " | ".join(map(str, line)) + " |" for line in (header, rule, *lines)]


def aligned_table(header: Sequence[str], lines: Iterable[Sequence[str]], text: Sequence[bool]) -> list[str]:
    """The lines of a table whose columns stand below each other in the file.

    Args:
        text: of each column, whether it stands at the left; figures stand at the right.
    """
    columns = list(zip(header, *lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    looks = list(zip(widths, text, strict=True))
    padded = [
        [cell.ljust(width) if left else cell.rjust(width) for cell in column]
        for column, (width, left) in zip(columns, looks, strict=True)
    ]
    head, *rows = zip(*padded, strict=True)
    found = table(head, rows)
    rule = ["-" * width if left else "-" * (width - 1) + ":" for width, left in looks]
    return [found[0], *table(rule, [])[:1], *found[2:]]


def signed(value: float, decimals: int = 2) -> str:
    """`+0.50` or `−0.50`, with a true minus sign; what rounds to zero is `+0.00`."""
    text = f"{value:+.{decimals}f}"
    return f"+{text[1:]}" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")
