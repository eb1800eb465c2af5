"""Tables that a user may name: CSV files read as data frames, and checked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from ptq2themoon.vocabulary.errors import UserError, nearest


def named_paths(values: Sequence[str], option: str) -> dict[str, Path]:
    """`["vanilla=a.csv", …]` -> `{"vanilla": Path("a.csv"), …}`, in the order given."""
    found: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise UserError(f"{option} {value}: must read NAME=PATH, as in {option} vanilla=FILE")
        if name in found:
            raise UserError(f"{option} {value}: the name {name!r} is given twice")
        found[name] = Path(path)
    return found


def read_table(path: Path, columns: Collection[str]) -> pd.DataFrame:
    """A CSV that has rows and at least `columns`."""
    try:
        table = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV table ({str(error).strip()})") from error
    for column in columns:
        if column not in table.columns:
            raise UserError(f"{path}: no column {column!r}; {nearest(column, table.columns)}")
    if table.empty:
        raise UserError(f"{path}: the table has no rows; run the stage that writes it again")
    return table
