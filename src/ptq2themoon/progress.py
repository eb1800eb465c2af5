"""Progress on stderr: a bar on a terminal, a few plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

MIN_SECONDS = 1.0  # a short loop in a log needs its closing line only


def progress(
    iterable: Iterable[T],
    total: int | None = None,
    desc: str = "",
    *,
    done: int = 0,
    note: Callable[[], str] | None = None,
) -> Iterator[T]:
    """Pass `iterable` on; off a terminal a line every tenth of `total`, with the time left, and one at last.

    Args:
        done: how many of `total` were done before, in a run that goes on.
        note: what to say of the last one besides.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if sys.stderr.isatty():
        yield from _bar(iterable, total, desc, done, note)
        return
    start = shown = time.monotonic()
    step, before = max(1, -(-total // 10)) if total else None, done
    for number, item in enumerate(iterable, start=1):
        yield item
        done = before + number
        now = time.monotonic()
        if step and total and done % step == 0 and done < total and now - shown >= MIN_SECONDS:
            left = (now - start) / number * (total - done)
            said = f", {note()}" if note else ""
            _line(f"{desc}: {done} of {total} ({100 * done // total} %){said}, {left:.0f} s left")
            shown = now
    said = f", {note()}" if note and done else ""
    _line(f"{desc}: {done} in {time.monotonic() - start:.1f} s{said}")


def _bar(
    iterable: Iterable[T], total: int | None, desc: str, done: int, note: Callable[[], str] | None
) -> Iterator[T]:
    with tqdm(iterable, total=total, desc=desc, file=sys.stderr, initial=done) as bar:
        for item in bar:
            yield item
            if note:
                bar.set_postfix_str(note(), refresh=False)


def say(message: str) -> None:
    """One line on stderr, above a progress bar if one is shown."""
    tqdm.write(message, file=sys.stderr)


def warn(message: str) -> None:
    """One warning line on stderr, above a progress bar if one is shown."""
    say(f"warning: {message}")


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
