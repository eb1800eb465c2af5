"""Constants that lie in files beside an ONNX file: read from its own folder, and from nowhere else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_models import random_images, run_all, tiny_module, to_onnx
from tiny_stages import files, run_stage

from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_source import Source, source_problem
from ptq2themoon.vocabulary.onnx_data import data_files

NORMAL = json.dumps({"mean": [0.5], "std": [0.25]})


@pytest.fixture(scope="module")
def whole() -> onnx.ModelProto:
    return to_onnx(tiny_module())


def save(model: onnx.ModelProto, folder: Path, one_file: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    path = folder / "mine.onnx"
    onnx.save(
        copy, path, save_as_external_data=True, all_tensors_to_one_file=one_file, location="mine.onnx.data",
        size_threshold=0,
    )  # fmt: skip
    return path


def first_outside(model: onnx.ModelProto) -> TensorProto:
    return next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)


@pytest.mark.parametrize("one_file", [True, False], ids=["one file", "a file each"])
def test_read_with_the_model(tmp_path: Path, whole: onnx.ModelProto, one_file: bool) -> None:
    path = save(whole, tmp_path, one_file)
    beside = sorted(file for file in tmp_path.iterdir() if file != path)
    assert data_files(path) == beside
    assert Source(f"onnx:{path}").files() == [path, *beside]
    assert source_problem(f"onnx:{path}") is None
    images = random_images(2)
    expected = run_all(whole, images)[0]
    np.testing.assert_array_equal(run_all(read_graph(path), images)[0], expected)


def test_the_stage_records_the_data_and_writes_one_file(tmp_path: Path, whole: onnx.ModelProto) -> None:
    save(whole, tmp_path)
    ended = run_stage(tmp_path, "export", source="onnx:mine.onnx", preprocessing=NORMAL)
    assert (ended.status, ended.err) == (0, "")
    sidecar = json.loads((tmp_path / "out/model.sidecar.json").read_text())
    assert list(sidecar["inputs"]) == ["mine.onnx", "mine.onnx.data"]
    images = random_images(2)
    np.testing.assert_allclose(
        run_all(onnx.load(tmp_path / "out/model.onnx"), images)[0], run_all(whole, images)[0], atol=1e-5
    )


@pytest.mark.parametrize("way", ["up", "absolute", "link", "linked folder", "backslash", "missing"])
def test_no_file_elsewhere_is_read(tmp_path: Path, whole: onnx.ModelProto, way: str) -> None:
    path = save(whole, tmp_path / "model")
    data, secret = path.with_name("mine.onnx.data"), tmp_path / "secret.bin"
    data.rename(secret)
    (path.parent / "there").symlink_to(tmp_path)
    location = {
        "up": "../secret.bin", "absolute": str(secret), "link": "linked.bin",
        "linked folder": "there/secret.bin",
        "backslash": "..\\secret.bin", "missing": "mine.onnx.data",
    }[way]  # fmt: skip
    (path.parent / "linked.bin").symlink_to(secret)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    reason = "not there" if way == "missing" else "not in the file's own folder"
    line = rf"^{re.escape(str(path))}: its constants lie in .*, which is {reason}; put "
    with pytest.raises(UserError, match=line):
        read_graph(path)
    assert re.match(line, source_problem(f"onnx:{path}") or "")
    before = files(tmp_path)
    ended = run_stage(tmp_path, "export", source="onnx:model/mine.onnx", preprocessing=NORMAL)
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "999999999"), ("offset", "-4"), ("offset", "x"), ("length", "3")]
)
def test_data_that_do_not_hold_the_constant(
    tmp_path: Path, whole: onnx.ModelProto, key: str, value: str
) -> None:
    path = save(whole, tmp_path)
    model = onnx.load(path, load_external_data=False)
    tensor = first_outside(model)
    kept = [entry for entry in tensor.external_data if entry.key != key]
    tensor.ClearField("external_data")
    tensor.external_data.extend(kept)
    tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=f"constant {tensor.name!r} needs .* save the model again$"):
        read_graph(path)


def claimed(path: Path, constant: str, length: int) -> None:
    """A file whose constant has that length, of which no byte is there."""
    tensor = TensorProto(name=constant, data_type=TensorProto.FLOAT, dims=[length // 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "mine.onnx.data"), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    node = helper.make_node("Identity", [constant], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "claimed", [], [output], [tensor])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with path.with_name("mine.onnx.data").open("wb") as file:
        file.truncate(length)


def test_a_constant_of_more_than_2_gb(tmp_path: Path) -> None:
    """Known before anything runs, from the length that the file states; no weight is read."""
    path = tmp_path / "mine.onnx"
    claimed(path, "weight", 2_400_000_000)
    line = "has a constant of 2.4 GB, and ONNX holds 2 GB in one; give a smaller model"
    assert source_problem(f"onnx:{path}") == f"'onnx:{path}': {line}"
    with pytest.raises(UserError, match=f"^{path}: {line}$"):
        read_graph(path)


def test_a_file_of_more_than_2_gb(tmp_path: Path) -> None:
    """No file of ONNX has as much; it is refused by its size, and not read."""
    path = tmp_path / "mine.onnx"
    with path.open("wb") as file:
        file.truncate(2_200_000_000)
    line = (
        "has 2.2 GB, and an ONNX file holds 2 GB at most; save the model with its weights in a file beside it"
    )
    assert source_problem(f"onnx:{path}") == f"'onnx:{path}': {line}"
    with pytest.raises(UserError, match=f"^{path}: {line}$"):
        read_graph(path)


def test_zeros_are_no_outline(tmp_path: Path) -> None:
    """They would be read for minutes as fields of number 0."""
    path = tmp_path / "mine.onnx"
    with path.open("wb") as file:
        file.truncate(2_000_000_000)
    assert data_files(path) == []


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x3a\x7f", b"\x3a\x02\x2a\x05", b"PK\x03\x04 zip"])
def test_what_is_no_onnx_file_names_no_data(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(content)
    assert data_files(path) == []
