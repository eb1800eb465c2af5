"""What every stage shares: outputs that appear whole or not at all, and a sidecar that tells the truth."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ptq2themoon.safety.sidecars import sha256
from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary.errors import UserError


def test_an_input_that_changes_while_a_stage_runs_is_refused(tmp_path: Path) -> None:
    read, made = tmp_path / "in.txt", tmp_path / "out.txt"
    read.write_text("old")

    def copy() -> None:
        with Stage("copy", inputs=[read], outputs=[made], parameters={}) as stage:
            stage.temporary(made).write_text(read.read_text())
            read.write_text("new!")

    with pytest.raises(UserError, match=r"in.txt: changed while stage copy ran; nothing is written"):
        copy()
    assert list(tmp_path.iterdir()) == [read]


def test_the_sidecar_has_the_hashes_of_what_was_read_and_written(tmp_path: Path) -> None:
    read, made = tmp_path / "in.txt", tmp_path / "out.txt"
    read.write_text("old")
    with Stage("copy", inputs=[read], outputs=[made], parameters={"a": 1}, seed=3) as stage:
        stage.temporary(made).write_text("made")
    sidecar = json.loads((tmp_path / "out.sidecar.json").read_text())
    assert sidecar["inputs"] == {str(read): sha256(read)}
    assert sidecar["outputs"] == {str(made): sha256(made)}
    assert (sidecar["parameters"], sidecar["seed"]) == ({"a": 1}, 3)


def test_outputs_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    made, other = tmp_path / "out.bin", tmp_path / "other.bin"
    with Stage("make", inputs=[], outputs=[made], parameters={}) as stage:
        os.close(os.open(stage.temporary(made), os.O_CREAT | os.O_WRONLY, 0o600))
    other.touch()
    assert made.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("error", [UserError("a: wrong\nb: wrong"), OSError("a: wrong\nb: wrong")])
def test_what_a_user_can_mend_is_a_line_each(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: a: wrong\nerror: b: wrong\n"


def test_a_disk_that_fails_as_outputs_get_their_names_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = [tmp_path / "first.txt", tmp_path / "second.txt"]
    replace = os.replace

    def fails_at_the_second(source: Path, target: Path) -> None:
        if target == outputs[1]:
            raise OSError(28, os.strerror(28))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_at_the_second)

    def make() -> None:
        with Stage("make", inputs=[], outputs=outputs, parameters={}) as stage:
            for path in outputs:
                stage.temporary(path).write_text("made")

    expected = "second.txt: not written: No space left on device; stage make leaves nothing"
    with pytest.raises(UserError, match=expected):
        make()
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_is_replaced_by_its_like_is_no_change(tmp_path: Path) -> None:
    read, made = tmp_path / "in.txt", tmp_path / "out.txt"
    read.write_text("same")
    with Stage("copy", inputs=[read], outputs=[made], parameters={}) as stage:
        stage.temporary(made).write_text("made")
        (tmp_path / "new").write_text("same")
        os.replace(tmp_path / "new", read)
    assert made.read_text() == "made"


def test_no_old_sidecar_stands_beside_a_new_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the stage is killed after its first output has its name."""
    outputs = [tmp_path / "first.txt", tmp_path / "second.txt"]

    def make(text: str) -> None:
        with Stage("make", inputs=[], outputs=outputs, parameters={}) as stage:
            for path in outputs:
                stage.temporary(path).write_text(text)

    make("old")
    replace = os.replace

    def fails_at_the_second(source: Path, target: Path) -> None:
        if target == outputs[1]:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        make("new")
    assert outputs[0].read_text() == "new"
    assert not (tmp_path / "first.sidecar.json").exists()
