"""Write the tables of docs/models.md (`make matrix`): families by exporters, relatives, and the whole chain.

tests/support computes the cells; tests/graph/test_matrix.py, test_relatives.py and test_chain.py compare them
with the page. `make matrix ARGS=chain` writes only the tables that are named.
"""

from __future__ import annotations

import re
import sys

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
from whole_chain import CHAIN_HEAD, LABELS, chain_row


def _exporters() -> str:
    places = [(family, exporter) for family in ROWS for exporter in COLUMNS]
    return exporters_table(
        {place: "torch fails" if place in UNWRITABLE else cell(*place).text() for place in places}
    )


TABLES = {
    "families": families_table,
    "exporters": _exporters,
    "relatives": lambda: table([*HEAD], [row(name) for name in RELATIVES]),
    "chain": lambda: table([*CHAIN_HEAD], [chain_row(name) for name in LABELS]),
}


def write_page(names: list[str]) -> None:
    for name in names:
        text = TABLES[name]()
        page = PAGE.read_text(encoding="utf-8")
        page = re.sub(region(name), lambda found, text=text: found[1] + text + found[3], page, flags=re.S)
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write_page(sys.argv[1:] or list(TABLES))
