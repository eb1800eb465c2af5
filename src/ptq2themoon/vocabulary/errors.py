"""The one exception that a user is meant to read, and the suggestion that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 40  # that a message lists


class UserError(Exception):
    """Bad input. The message is one line: what, where (file, key or operator), and what to do."""


def printable(text: str) -> str:
    """Text as one line that does nothing to a terminal: what is no sign to read is written as an escape."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def lines_of(error: Exception) -> list[str]:
    """What a user reads of an error: `error: ...` for each line of its message."""
    return [f"error: {printable(line)}" for line in str(error).split("\n")]


def at_least(least: int, value: int, name: str) -> None:
    """Refuse a number below `least`."""
    if value < least:
        raise UserError(f"{name} {value}: must be {least} or more")


def nearest(value: object, valid: Iterable[object]) -> str:
    """A half-sentence naming the valid value closest to `value`, or what there is when none is close."""
    names = [str(v) for v in valid]
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"valid: {', '.join(names[:MOST_NAMES])}{more}"
