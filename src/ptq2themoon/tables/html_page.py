"""A page of tables that a browser opens without a network, as the report shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = (
    "body{font:14px sans-serif;margin:1em;color:#222}table{border-collapse:collapse;margin-bottom:1.5em}"
    "th,td{padding:.3em .6em;border-bottom:1px solid #ccc;vertical-align:bottom}"
    "th{border-bottom:2px solid #666}.n{text-align:right}"
)


def html_table(header: Sequence[str], lines: Iterable[Sequence[str]], text: Sequence[bool]) -> str:
    """A table; `text` says of each column whether it stands at the left, figures stand at the right."""
    looks = ["" if left else ' class="n"' for left in text]

    def row(cells: Sequence[str], tag: str) -> str:
        found = (f"<{tag}{look}>{escape(cell)}</{tag}>" for cell, look in zip(cells, looks, strict=True))
        return f"<tr>{''.join(found)}</tr>\n"

    return f"<table>\n{row(header, 'th')}{''.join(row(line, 'td') for line in lines)}</table>\n"


def html_page(title: str, parts: Iterable[tuple[str, str]]) -> str:
    """A page of headings, each with the HTML below it."""
    body = "".join(f"<h2>{escape(head)}</h2>\n{content}" for head, content in parts)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f"<!DOCTYPE html>\n<html><head>{head}</head>\n<body>\n{body}</body></html>\n"
