"""What every stage shares: outputs that appear whole or not at all, and a sidecar that tells the truth."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ptq2themoon.safety.sidecars import sha256
from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.onnx_data import data_beside


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


# Weights in a file beside their ONNX file -----------------------------------------------------------------


def make_two(path: Path, text: str, data: str | None) -> None:
    """A stage whose output has data beside it, or none."""
    report = path.with_name("report.json")
    with Stage("make", inputs=[], outputs=[path, report], parameters={}) as stage:
        if data is not None:
            data_beside(stage.temporary(path)).write_text(data)
        stage.temporary(path).write_text(text)
        stage.temporary(report).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".json"}


def test_data_beside_an_output_are_recorded_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    make_two(path, "graph", "weights")
    assert content(tmp_path) == {"a.onnx": "graph", "a.onnx.data": "weights"}
    sidecar = json.loads((tmp_path / "a.sidecar.json").read_text())
    files = [data_beside(path), path, tmp_path / "report.json"]
    assert sidecar["outputs"] == {str(file): sha256(file) for file in files}
    assert sidecar["bytes"] == {str(file): file.stat().st_size for file in files}


def test_data_of_a_larger_model_before_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    make_two(path, "graph", "weights")
    make_two(path, "small", None)
    assert content(tmp_path) == {"a.onnx": "small"}
    assert str(data_beside(path)) not in json.loads((tmp_path / "a.sidecar.json").read_text())["outputs"]


@pytest.mark.parametrize("last", ["a.onnx.data", "a.onnx", "report.json"])
def test_data_have_their_name_before_the_file_that_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """A disk that fails at any of the files leaves none of them."""
    order: list[str] = []
    replace = os.replace

    def fails(source: Path, target: Path) -> None:
        order.append(target.name)
        if target.name == last:
            raise OSError(28, os.strerror(28), str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    output = last.removesuffix(".data")
    with pytest.raises(UserError, match=f"{output}: not written: No space left on device"):
        make_two(tmp_path / "a.onnx", "graph", "weights")
    assert order == ["a.onnx.data", "a.onnx", "report.json"][: len(order)]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_with_data_is_said_of_their_model(tmp_path: Path) -> None:
    """A failed write does not name its file, and the model is not begun."""
    path = tmp_path / "a.onnx"

    def make() -> None:
        with Stage("make", inputs=[], outputs=[path], parameters={}) as stage:
            data_beside(stage.temporary(path)).write_text("half")
            raise OSError(28, os.strerror(28))

    with pytest.raises(UserError, match=r"a\.onnx: not written: No space left on device; stage make"):
        make()
    assert list(tmp_path.iterdir()) == []
