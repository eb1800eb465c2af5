"""How far the jobs are that Snakemake runs now, by what they write into their logs."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

LOGS = "logs"
EVERY = 2.0  # seconds between two looks
FAR = re.compile(r"\d+ of \d+ \(\d+ %\)")  # as `progress` writes it


class Progress:
    """The news in the logs of a folder.

    Args:
        folder: where Snakemake runs.
        since: of older logs there is no news (seconds since the epoch).
    """

    def __init__(self, folder: Path, since: float) -> None:
        self._folder, self._since = folder, since
        self._told: dict[Path, str] = {}

    def news(self) -> list[str]:
        """A line for each job that has come further since the last call: its log, how far, the time left."""
        found = []
        for log in sorted((self._folder / LOGS).rglob("*.log")):
            if log.stat().st_mtime < self._since:
                continue
            lines = [line for line in log.read_text(errors="replace").splitlines() if FAR.search(line)]
            if lines and self._told.get(log) != lines[-1]:
                self._told[log] = lines[-1]
                found.append(f"  {log.relative_to(self._folder)}: {lines[-1]}")
        return found


def waited_for(process: subprocess.Popen[bytes], folder: Path, tell: Callable[[str], None]) -> int:
    """The exit status of Snakemake; until it ends, tell how far its jobs are."""
    progress = Progress(folder, time.time())
    while True:
        try:
            return process.wait(timeout=EVERY)
        except subprocess.TimeoutExpired:
            for line in progress.news():
                tell(line)
