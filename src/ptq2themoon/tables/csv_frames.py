"""Tables that a user may name: CSV files read as data frames, and checked."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from ptq2themoon.vocabulary.errors import UserError, nearest


def read_table(path: Path, columns: Collection[str]) -> pd.DataFrame:
    """A CSV that has rows and at least `columns`."""
    try:
        table = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV table ({str(error).strip()})") from error
    for column in table.columns:
        if table[column].dtype.kind == "O" and any(isinstance(value, int) for value in table[column]):
            raise UserError(f"{path}: column {column!r} holds a number larger than 64 bits hold")
    for column in columns:
        if column not in table.columns:
            raise UserError(f"{path}: no column {column!r}; {nearest(column, table.columns)}")
    if table.empty:
        raise UserError(f"{path}: the table has no rows; run the stage that writes it again")
    return table
