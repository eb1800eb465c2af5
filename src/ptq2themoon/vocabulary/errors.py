"""The one exception that a user is meant to read, and the suggestion that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line: what, where (file, key or operator), and what to do."""


def at_least(least: int, value: int, name: str) -> None:
    """Refuse a number below `least`."""
    if value < least:
        raise UserError(f"{name} {value}: must be {least} or more")


def nearest(value: object, valid: Iterable[object]) -> str:
    """A half-sentence naming the valid value closest to `value`, or all of them when none is close."""
    names = [str(v) for v in valid]
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid: {', '.join(names)}"
