"""A comparison for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from ptq2themoon.console.comparison.findings import Comparison, Figure
from ptq2themoon.tables.markdown import signed
from ptq2themoon.vocabulary.errors import printable

DIGITS = {"top1": 2, "top5": 2, "agreement": 2}


def differing(found: Comparison) -> Table:
    """The figures that differ by more than noise, or all that differ at all."""
    table = Table(title_justify="left")
    for name in ("run", "figure"):
        table.add_column(name, overflow="fold")
    for name in ("first", "second", "difference"):
        table.add_column(name, justify="right")
    table.add_column("noise", overflow="fold")
    for figure in found.beyond:
        table.add_row(*_cells(figure))
    return table


def _cells(figure: Figure) -> list[str]:
    digits = DIGITS.get(figure.name, 4)
    values = [f"{value:.{digits}f}" for value in (figure.first, figure.second)]
    change = signed(figure.second - figure.first, digits)
    names = (escape(printable(name)) for name in (figure.where, figure.name))  # of others' folders
    return [*names, *values, change, figure.judgement.how]


def lines(found: Comparison) -> Iterator[str]:
    """All but the figures beyond noise, a line each, the verdict last."""
    yield from (f"made otherwise: {line}" for line in found.made)
    yield from (f"scales moved: {line}" for line in found.scales)
    yield from found.alone
    yield from (f"note: {line}" for line in found.notes)
    changed = sum(figure.first != figure.second for figure in found.figures)
    counted = f"{len(found.figures)} figures compared, {changed} changed, {len(found.beyond)} beyond noise"
    yield f"{counted} (one test counts below p = {found.level:.2g})"
    yield "the results differ" if found.differs else "no difference beyond noise"


COLUMNS = ("run", "figure", "first", "second", "noise", "beyond")


def all_figures(found: Comparison) -> Iterator[dict[str, str]]:
    """Every figure that changed, for programs."""
    beyond = set(map(id, found.beyond))
    for figure in found.figures:
        if figure.first != figure.second:
            values = figure.where, figure.name, f"{figure.first:.9g}", f"{figure.second:.9g}"
            row = *values, figure.judgement.how, str(id(figure) in beyond).lower()
            yield dict(zip(COLUMNS, row, strict=True))
