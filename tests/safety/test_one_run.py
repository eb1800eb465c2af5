"""A folder has one run; what a dead one left is told apart from a living one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptq2themoon.safety import one_run
from ptq2themoon.vocabulary.errors import UserError

HOLD = """
from ptq2themoon.safety.one_run import take_folder
held = take_folder()
print("held", flush=True)
input()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    one_run.LOCKS.mkdir(parents=True)
    (one_run.LOCKS / "0.output.lock").write_text("results/x\n")
    return tmp_path


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = subprocess.Popen([sys.executable, "-c", HOLD], **pipes)  # type: ignore[call-overload]
    assert running.stdout.readline() == "held\n"
    yield running
    running.kill()
    running.communicate()


def test_a_living_run_is_named(other: subprocess.Popen[str], folder: Path) -> None:
    expected = (
        f"{folder}: another run works here (process {other.pid} on {socket.gethostname()}); wait for its end"
    )
    for refused in (one_run.take_folder, one_run.refuse):
        with pytest.raises(UserError, match=re.escape(expected)):
            refused()
    assert not one_run.remove_stale_locks()
    assert [*one_run.LOCKS.iterdir()]


def test_what_a_killed_run_left_is_removed(other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    assert one_run.remove_stale_locks()
    assert not [*one_run.LOCKS.iterdir()]
    assert not one_run.remove_stale_locks()
    one_run.take_folder().close()


@pytest.mark.parametrize("held", [None, "another-machine 12\n"])
def test_a_lock_of_which_nothing_is_known_stays_and_the_way_out_is_said(held: str | None) -> None:
    if held:
        one_run.HOLDER.write_text(held)
    assert not one_run.remove_stale_locks()
    assert [*one_run.LOCKS.iterdir()]
    with pytest.raises(UserError, match=r"or was killed; if none is alive: `snakemake --unlock`, then again"):
        one_run.refuse()


def test_a_job_knows_whether_its_run_is_dead(
    other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not one_run.is_abandoned()  # started by hand
    monkeypatch.setenv(one_run.STARTED_BY, f"process {other.pid} on {socket.gethostname()}")
    assert not one_run.is_abandoned()
    other.kill()
    other.wait()
    assert one_run.is_abandoned()
    with one_run.take_folder():  # another run
        assert one_run.is_abandoned()
        one_run.started_by_this()
        assert not one_run.is_abandoned()


def test_a_disk_without_such_locks_leaves_it_to_snakemake(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr("fcntl.flock", unsupported)
    one_run.take_folder().close()
    assert not one_run.remove_stale_locks()
    with pytest.raises(UserError, match=r"another run \(process \d+ on .+\) works here or was killed"):
        one_run.refuse()
