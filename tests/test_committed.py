"""What is committed is read from the working tree, or from the last commit after a run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from committed import Snapshot
from hypothesis import settings

TABLE, SIDECAR, PAGE = "results/demo/table.csv", "results/demo/table.sidecar.json", "docs/page.md"


def git(folder: Path, *words: str) -> None:
    name = ["-c", "user.name=test", "-c", "user.email=test", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *name, *words], cwd=folder, capture_output=True, check=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One commit of a page, a table and its sidecar."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # of a git hook that runs the tests: another checkout's
    for name in (TABLE, SIDECAR, PAGE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"committed")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "results")
    return tmp_path


def change(project: Path, *names: str) -> None:
    for name in names:
        (project / name).write_bytes(b"changed")


def test_an_edited_page_is_held_to_the_tables_before_it_is_committed(project: Path) -> None:
    change(project, PAGE, SIDECAR)
    found = Snapshot(project)
    assert [found.read(name) for name in (PAGE, TABLE)] == [b"changed", b"committed"]


@pytest.mark.parametrize("staged", [False, True])
def test_after_a_run_all_is_as_of_the_last_commit(project: Path, staged: bool) -> None:
    change(project, PAGE, TABLE)
    if staged:
        git(project, "add", ".")
    found = Snapshot(project)
    assert [found.read(name) for name in (PAGE, TABLE)] == [b"committed"] * 2
    with pytest.raises(FileNotFoundError, match="other: not in the last commit"):
        found.read("other")


def test_a_deleted_result_is_read_from_the_last_commit(project: Path) -> None:
    (project / TABLE).unlink()
    found = Snapshot(project)
    assert found.read(TABLE) == b"committed"
    assert found.names("results/*/*.csv") == [TABLE]


def test_results_of_a_user_s_own_run_are_not_listed(project: Path) -> None:
    change(project, "results/demo/mine.csv")
    assert Snapshot(project).names("results/*/*.csv") == [TABLE]
    change(project, TABLE)
    assert Snapshot(project).names("results/*/*.csv") == [TABLE]
    assert Snapshot(project).names("results/*.csv") == []


@pytest.mark.parametrize("inside", [False, True], ids=["without git", "inside another project"])
def test_an_archive_has_its_files_only(project: Path, tmp_path: Path, inside: bool) -> None:
    archive = tmp_path / "archive"
    (archive / "results/demo").mkdir(parents=True)
    change(archive, TABLE)
    if not inside:
        (project / ".git").rename(project / "no git")
    change(project, TABLE)
    found = Snapshot(archive)
    assert found.read(TABLE) == b"changed"
    assert found.names("results/*/*.csv") == [TABLE]


def test_no_property_test_has_a_deadline() -> None:
    assert settings().deadline is None
