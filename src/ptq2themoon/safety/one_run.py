"""One run at a time in a folder: who holds it, and whether the lock that is left is of a run that is dead."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from ptq2themoon.safety.run_folders import RECORDS
from ptq2themoon.vocabulary.errors import UserError

HOLDER = Path(RECORDS, "held_by")  # host and process of the last run; the living one has it locked
STARTED_BY = "PTQ2THEMOON_RUN"  # variable of the environment: the run that started a job of this machine
LOCKS = Path(RECORDS, "locks")  # Snakemake's own, which a killed run leaves
# File systems without such locks: Snakemake's own remain.
WITHOUT = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EACCES, errno.EROFS)


@dataclass(frozen=True)
class Holder:
    """The run that had this folder last.

    Attributes:
        alive: None where nobody can tell.
    """

    name: str
    alive: bool | None


def holder() -> Holder | None:
    """Who had this folder last; None where nobody did."""
    try:
        with open(HOLDER, "r+", encoding="utf-8") as file:
            host, _, process = file.read().strip().partition(" ")
            free = _lock(file) if host == socket.gethostname() else None
            return Holder(f"process {process} on {host}", alive=None if free is None else not free)
    except OSError:
        return None


def _lock(file: TextIO) -> bool | None:
    """Lock an open file, until it is closed; whether nobody else has it, None where no file can be locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT:
            raise
        return None
    return True


def remove_stale_locks() -> bool:
    """Remove the locks of a run of this machine that is dead; whether there were any."""
    found = list(LOCKS.glob("*.lock"))
    last = holder() if found else None
    if last is None or last.alive is not False:
        return False
    for path in found:
        path.unlink(missing_ok=True)
    return True


def take_folder() -> TextIO:
    """Hold this folder while the file that is returned is open: until this process ends, however it does.

    Raises:
        UserError: another run holds it.
    """
    HOLDER.parent.mkdir(exist_ok=True)
    file = open(HOLDER, "a+", encoding="utf-8")  # noqa: SIM115
    free = _lock(file)
    for _ in range(5):  # a job that looks who is alive has it for a moment
        if free is False:
            time.sleep(0.05)
            free = _lock(file)
    if free is False:
        file.close()
        refuse()
    file.truncate(0)
    file.write(f"{socket.gethostname()} {os.getpid()}\n")
    file.flush()
    return file


def started_by_this() -> None:
    """Have the jobs that this process starts know it, so that they write nothing once it is dead."""
    os.environ[STARTED_BY] = f"process {os.getpid()} on {socket.gethostname()}"


def is_abandoned() -> bool:
    """Whether the run that started this process is dead: another may have started the same job again."""
    last = holder() if STARTED_BY in os.environ else None
    return last is not None and (last.name != os.environ[STARTED_BY] or last.alive is False)


def refuse() -> NoReturn:
    """Say why no run can start here, and the way out.

    Raises:
        UserError: always.
    """
    last, here = holder(), Path.cwd()
    if last is not None and last.alive:
        raise UserError(
            f"{here}: another run works here ({last.name}); wait for its end, or give another --directory"
        )
    who = f" ({last.name})" if last else ""
    raise UserError(
        f"{here}: another run{who} works here or was killed; "
        "if none is alive: `snakemake --unlock`, then again"
    )
