"""Tables of operator errors, and the operators in graph order that they share as an axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from itertools import chain, pairwise

import numpy as np
import pandas as pd

from ptq2themoon.vocabulary.errors import UserError, nearest

COLUMNS = ("operator", "type", "role", "block", "mode", "nsr")
NAME = 24  # characters of an operator's name, at most
MOST_OUTSIDE = 12  # operators outside the blocks that can be listed
MODES = {
    "accumulated": "accumulated: output of the operator, whole graph quantized",
    "local": "local: output of the operator, only it quantized",
    "logits": "logits: output of the model, only this operator quantized",
}


def check_table(name: str, table: pd.DataFrame) -> None:
    """Raise `UserError` where a table of operators' errors is empty or has an unknown mode."""
    if table.empty:
        raise UserError(f"--table {name}: the table has no rows")
    for mode in table["mode"].unique():
        if mode not in MODES:
            raise UserError(f"--table {name}: unknown mode {mode!r}; {nearest(mode, MODES)}")
    double = table[table.duplicated(["operator", "mode"])]
    if not double.empty:
        row = double.iloc[0]
        raise UserError(f"--table {name}: operator {row.operator!r} has two rows of mode {row['mode']!r}")
    if not pd.api.types.is_numeric_dtype(table["nsr"]) or (table["nsr"] < 0).any():
        raise UserError(f"--table {name}: column 'nsr' must hold numbers, 0 or above")


def _graph_order(lists: Sequence[Sequence[str]]) -> list[str]:
    """All names, each list in its order; what the lists leave open is as in the first that has the name."""
    rank = {name: place for place, name in enumerate(dict.fromkeys(chain.from_iterable(lists)))}
    graph: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(rank, ()))
    for names in lists:
        for before, after in pairwise(names):
            graph.add(after, before)
    graph.prepare()
    found: list[str] = []
    ready: list[tuple[int, str]] = []
    while graph.is_active():
        for name in graph.get_ready():
            heappush(ready, (rank[name], name))
        found.append(heappop(ready)[1])
        graph.done(found[-1])
    return found


@dataclass(frozen=True)
class Network:
    """The operators on the x axis, in graph order, and the span of each block."""

    operators: tuple[str, ...]
    roles: tuple[str, ...]
    blocks: tuple[int | None, ...]

    @classmethod
    def of(cls, tables: Mapping[str, pd.DataFrame]) -> Network:
        """All operators of the tables; each has some of one model's, in graph order.

        Raises:
            UserError: a table has none of the others' operators, or has them in another order.
        """
        by_size = sorted(tables.values(), key=len, reverse=True)
        rows = pd.concat(by_size).drop_duplicates("operator")
        for name, table in tables.items():
            if not table["operator"].isin(by_size[0]["operator"]).any():
                raise UserError(
                    f"--table {name}: has no operator of the largest table; give tables of one model"
                )
        try:
            order = _graph_order([table["operator"].drop_duplicates().tolist() for table in by_size])
        except CycleError:
            names = ", ".join(tables)
            raise UserError(
                f"--table {names}: operators lie in different orders; give tables of one model"
            ) from None
        rows = rows.set_index("operator", drop=False).loc[order]
        return cls(
            operators=tuple(rows["operator"]),
            roles=tuple(
                np.where(rows["role"].isna() | (rows["role"] == "other"), rows["type"], rows["role"])
            ),
            blocks=tuple(None if pd.isna(block) else int(block) for block in rows["block"]),
        )

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Block, position of its first operator, position of its last."""
        for block in sorted({block for block in self.blocks if block is not None}):
            inside = [i for i, each in enumerate(self.blocks) if each == block]
            yield block, inside[0], inside[-1]

    def is_outside(self, position: int) -> bool:
        """Whether an operator stands there, and in no block."""
        return 0 <= position < len(self.blocks) and self.blocks[position] is None

    def label(self, position: int) -> str:
        """`fc2 · 5`: role and block of an operator; its name where neither tells it from others."""
        role, block = self.roles[position], self.blocks[position]
        if block is not None:
            return f"{role} · {block}"
        if self.roles.count(role) == 1:
            return role
        name = self.operators[position]
        return name if len(name) <= NAME else f"…{name[1 - NAME :]}"

    def summary(self) -> str:
        """The roles in graph order; those of a block once, where all blocks are alike."""
        spans = list(self.spans())
        patterns = {self.roles[first : last + 1] for _, first, last in spans}
        total, outside = len(self.roles), self.blocks.count(None)
        if not spans:
            return f"{total} operators, none in a block"
        if len(patterns) != 1 or outside > MOST_OUTSIDE:
            blocks = "block" if len(spans) == 1 else "blocks"
            return f"{total} operators, {total - outside} in {len(spans)} {blocks}, {outside} outside"
        before, after = self.roles[: spans[0][1]], self.roles[spans[-1][2] + 1 :]
        parts = [", ".join(before), f"in every block: {', '.join(patterns.pop())}", ", ".join(after)]
        return "; ".join(part for part in parts if part)
