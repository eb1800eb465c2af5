"""Write the tables of docs/models.md: every family of models by every exporter (`make matrix`).

tests/support/exporter_matrix.py computes the cells; tests/graph/test_matrix.py compares them with the page.
"""

from __future__ import annotations

import re

from exporter_matrix import (
    COLUMNS,
    PAGE,
    ROWS,
    UNWRITABLE,
    cell,
    exporters_table,
    families_table,
    region,
    table,
)
from relatives import HEAD, RELATIVES, row


def write_page() -> None:
    places = [(family, exporter) for family in ROWS for exporter in COLUMNS]
    cells = {place: "torch fails" if place in UNWRITABLE else cell(*place).text() for place in places}
    page = PAGE.read_text(encoding="utf-8")
    lines = [row(name) for name in RELATIVES]
    tables = {
        "families": families_table(), "exporters": exporters_table(cells), "relatives": table([*HEAD], lines),
    }  # fmt: skip
    for name, text in tables.items():
        page = re.sub(region(name), lambda found, text=text: found[1] + text + found[3], page, flags=re.S)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write_page()
