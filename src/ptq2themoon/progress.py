"""Progress on stderr: a bar on a terminal, a few plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

MIN_SECONDS = 1.0  # a short loop in a log needs its closing line only


def progress(iterable: Iterable[T], total: int | None = None, desc: str = "") -> Iterator[T]:
    """Pass `iterable` on; off a terminal one line every tenth of `total`, and one at the end."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if sys.stderr.isatty():
        yield from tqdm(iterable, total=total, desc=desc, file=sys.stderr)
        return
    start = shown = time.monotonic()
    step = max(1, -(-total // 10)) if total else None
    done = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if step and total and done % step == 0 and done < total and now - shown >= MIN_SECONDS:
            _line(f"{desc}: {done} of {total} ({100 * done // total} %)")
            shown = now
    _line(f"{desc}: {done} in {time.monotonic() - start:.1f} s")


def warn(message: str) -> None:
    """One warning line on stderr, above a progress bar if one is shown."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
