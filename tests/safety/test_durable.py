"""What is published is on the disk before it has its name, and errors of a disk are told from others."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from ptq2themoon.safety.durable import publish, trouble


def test_contents_reach_the_disk_before_names_and_names_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace, paths = os.replace, {tmp_path / ".a": tmp_path / "a", tmp_path / ".b": tmp_path / "b"}
    for path in paths:
        path.write_text("content")
    monkeypatch.setattr(
        os, "fsync", lambda number: done.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
    )
    monkeypatch.setattr(
        os, "replace", lambda old, new: (done.append(f"{old.name} to {new.name}"), replace(old, new))
    )
    publish(paths)
    assert done == [".a", ".b", ".a to a", ".b to b", tmp_path.name]


def test_a_folder_that_cannot_be_settled_is_no_error_and_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(number: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{number}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    (tmp_path / ".a").write_text("content")
    monkeypatch.setattr(os, "fsync", refuses)
    publish({tmp_path / ".a": tmp_path / "a"})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "lost")))
    with pytest.raises(OSError, match="lost"):
        publish({tmp_path / "a": tmp_path / "b"})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (OSError(errno.EFBIG, "x", "file"), "File too large"),
        (PermissionError(errno.EACCES, "x"), "Permission denied"),
        (FileNotFoundError(errno.ENOENT, "x"), None),
        (ValueError("os error"), None),
        (ValueError("28"), None),
    ],
)
def test_errors_of_a_disk_are_told_from_others(error: Exception, what: str | None) -> None:
    found = trouble(error)
    assert (found and found[0]) == what
