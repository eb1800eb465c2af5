"""Libraries kept from speaking where our users cannot do anything about what they say."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

STANDARD_OUTPUT = 1  # its number


@contextmanager
def quiet(
    *loggers: str, message: str = "", stdout: bool = False, stderr: bool = False, native: bool = False
) -> Iterator[None]:
    """Within: no warnings, and nothing of what else is named; errors are raised as ever.

    Args:
        loggers: names of loggers that report errors alone.
        message: how the warnings begin that are left out, a regular expression; all by default.
        stdout, stderr: swallow what is printed there.
        native: swallow what compiled code prints on standard output.
    """
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=message)
        if stdout:
            stack.enter_context(redirect_stdout(io.StringIO()))
        if stderr:
            stack.enter_context(redirect_stderr(io.StringIO()))
        if native:
            stack.enter_context(_native_output_swallowed())
        for logger, level in levels.items():
            logger.setLevel(logging.ERROR)
            stack.callback(logger.setLevel, level)
        yield


@contextmanager
def _native_output_swallowed() -> Iterator[None]:
    """What torch's own libraries write past Python: a failing export prints its whole graph."""
    sys.stdout.flush()
    kept = os.dup(STANDARD_OUTPUT)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), STANDARD_OUTPUT)
        yield
    finally:
        os.dup2(kept, STANDARD_OUTPUT)
        os.close(kept)
