"""Files under their final names when they are whole and on the disk; what is wrong with a disk."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

# Of a whole disk or folder, not of one call: what the user can mend, and how.
REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`)",
    errno.EROFS: "write to a disk that is not read-only",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.EIO: "look at that disk",
}


def settle(path: Path) -> None:
    """Return when a file's content, or a folder's list of names, is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # Some file systems cannot do it with a folder, and keep its names in order themselves.
        if not (error.errno in (errno.EINVAL, errno.ENOTSUP) and path.is_dir()):
            raise
    finally:
        os.close(number)


def publish(files: Mapping[Path, Path]) -> None:
    """Give files their final names: all contents are on the disk before the first has its name.

    Args:
        files: the final name by the temporary one, in the same folder.
    """
    for temporary in files:
        settle(temporary)
    for temporary, path in files.items():
        os.replace(temporary, path)
    for folder in {path.parent for path in files.values()}:
        settle(folder)


def trouble(error: BaseException) -> tuple[str, str] | None:
    """What is wrong with the disk, and what to do, if that is why a write failed.

    Libraries that are not written in Python say it in the text of an error of their own.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"\bos error (\d+)\b", str(error))):
        number = int(found[1])
    if number in REMEDIES:
        return os.strerror(number), REMEDIES[number]
    return None
