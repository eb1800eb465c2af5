"""Lines of tables that anybody may have written: none is read before it is known to be of bearable length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

LONGEST = 65_536  # characters; no path is longer than 4,096


def short_lines(file: TextIO) -> Iterator[str]:
    """The lines of a file.

    Raises:
        ValueError: one of more than `LONGEST` characters.
    """
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise ValueError(f"line {number} has more than {LONGEST} characters")
        yield line
