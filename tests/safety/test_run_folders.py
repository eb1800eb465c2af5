"""Folders that take no file, and times in the future, are named in one line; results are set right."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from ptq2themoon.safety import run_folders
from ptq2themoon.vocabulary.errors import UserError

LATE = 4e9  # in the year 2096


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    return tmp_path


def test_a_folder_that_is_a_link_to_nowhere_is_named(folder: Path) -> None:
    Path("results/m").symlink_to("/nowhere")
    with pytest.raises(UserError, match=r"^results/m: is no folder, or a link that leads nowhere"):
        run_folders.check_writable(
            [Path("results/m/a/b.csv"), Path("results/m/c.csv"), Path("results/d.csv")]
        )


def test_a_folder_that_takes_no_files_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folders, "takes_files", lambda path: path != Path("results"))
    with pytest.raises(UserError) as refused:
        run_folders.check_writable([Path("results/m/b.csv"), Path("results/c.csv"), Path("logs/d.log")])
    assert str(refused.value).startswith("results: takes no file from this user, but results/")
    assert "`chmod u+rwx results`, or run in another --directory" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], "."), (["-n", "--directory", "a b"], "a b"), (["-d", "x"], "x"), (["--directory=ü", "-n"], "ü")],
)
def test_the_folder_of_a_run_is_that_of_the_command_line(words: list[str], expected: str) -> None:
    assert run_folders.directory(words) == Path(expected)


def test_a_full_disk_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit):
        run_folders.prepare_places([])
    expected = f"error: {folder}: no run can write here: No space left on device; make room on that disk"
    assert capsys.readouterr().err == f"{expected}, or run in another --directory\n"
    assert [path.name for path in folder.iterdir()] == ["results"]


@pytest.mark.parametrize("cache", ["/proc/nobody", "~", "file/x"])
def test_who_has_no_cache_gets_one(monkeypatch: pytest.MonkeyPatch, folder: Path, cache: str) -> None:
    Path("file").touch()
    cache = str(folder / cache) if cache.startswith("file") else cache
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    run_folders.prepare_places([])
    assert os.environ["XDG_CACHE_HOME"] == os.environ["MPLCONFIGDIR"] == str(folder / ".snakemake/cache")


def test_who_has_a_cache_keeps_it(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "new"))
    run_folders.prepare_places([])
    assert os.environ["XDG_CACHE_HOME"] == str(folder / "new")


def test_results_of_the_future_get_the_time_of_now() -> None:
    late, past = Path("results/late.onnx"), Path("results/past.onnx")
    for path, when in ((late, LATE), (past, 1e9)):
        path.touch()
        os.utime(path, (when, when))
    before = time.time()
    assert run_folders.set_right([late, past, Path("results/absent")], Path("results")) == [late]
    assert before <= late.stat().st_mtime <= time.time()
    assert past.stat().st_mtime == 1e9


def test_files_of_the_future_that_are_the_user_s_are_named_with_the_way_out() -> None:
    for name in ("weights.bin", "recipes/a.yaml", "recipes/b.yaml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
        os.utime(name, (LATE, LATE))
    with pytest.raises(UserError, match=r"^weights.bin: changed at 2096-.+or run `touch weights.bin`$"):
        run_folders.set_right([Path("weights.bin")], Path("results"))
    files = [Path("recipes/a.yaml"), Path("recipes/b.yaml"), Path("weights.bin")]
    with pytest.raises(
        UserError, match=r"^recipes/a.yaml, and 2 more: .+ -newermt now -exec touch"
    ) as refused:
        run_folders.set_right(files, Path("results"))
    told = str(refused.value).rpartition("run `")[2].rstrip("`")
    subprocess.run(shlex.split(told), check=True)
    assert run_folders.set_right(files, Path("results")) == []
