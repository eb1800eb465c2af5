"""A model whose weights are too many for one file: written as two, read and run as one, and never half."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import random_images, run_all, tiny_module, to_onnx

from ptq2themoon.graph.editing.model_files import copy_model, write_model
from ptq2themoon.graph.editing.one_message import by_outline, check_model, fits_one_message
from ptq2themoon.graph.editing.onnx_graph import inline_functions
from ptq2themoon.graph.editing.onnx_run import product_kernels, run_onnx, session
from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.forms.support import to_opset
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.vocabulary import onnx_data
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.onnx_data import data_beside, data_files, model_bytes

LIMIT = 10_000  # bytes of weights


@pytest.fixture(scope="module")
def whole() -> onnx.ModelProto:
    return to_onnx(tiny_module())


@pytest.fixture
def large(whole: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    monkeypatch.setattr(onnx_data, "MOST_BYTES", LIMIT)
    assert not fits_one_message(whole)
    return whole


@pytest.fixture
def written(large: onnx.ModelProto, tmp_path: Path) -> Path:
    write_model(large, tmp_path / "large.onnx")
    return tmp_path / "large.onnx"


def values(model: onnx.ModelProto) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


def test_two_files_hold_what_one_would(written: Path, whole: onnx.ModelProto) -> None:
    data = data_beside(written)
    assert sorted(path.name for path in written.parent.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert data_files(written) == [data]
    assert model_bytes(written) >= whole.ByteSize()
    outline = onnx.load(written, load_external_data=False)
    outside = [t for t in outline.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert len(outside) > 5
    assert not any(t.HasField("raw_data") for t in outside)
    for tensor in outside:
        stated = {entry.key: entry.value for entry in tensor.external_data}
        assert stated["checksum"] == hashlib.sha1(data.read_bytes(), usedforsecurity=False).hexdigest()
        assert int(stated["offset"]) % 4096 == 0
    onnx.checker.check_model(written, full_check=True)
    found = read_graph(written)
    assert values(found) == values(whole)
    assert [t.name for t in found.graph.initializer] == [t.name for t in whole.graph.initializer]
    assert found.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


def test_it_runs_from_its_files_and_from_memory(
    written: Path, large: onnx.ModelProto, tmp_path: Path
) -> None:
    images = random_images(3)
    expected = run_all(large, images)[0]
    np.testing.assert_array_equal(run_onnx(written, images), expected)
    np.testing.assert_array_equal(run_onnx(large, images), expected)
    session(large, quantized=False, optimised=tmp_path / "optimised.onnx")
    assert product_kernels(written, tmp_path, quantized=False)


def test_a_model_that_fits_is_one_file_of_its_own_bytes(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a larger one before it go."""
    model = read_graph(written)
    monkeypatch.undo()
    write_model(model, written)
    assert written.read_bytes() == model.SerializeToString()
    assert list(written.parent.iterdir()) == [written]


def test_the_name_is_that_of_the_file_in_the_end(large: onnx.ModelProto, tmp_path: Path) -> None:
    for folder in ("once", "again"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / ".large.7.tmp.onnx"
        write_model(large, path, "large.onnx")
        data_beside(path).rename(path.with_name("large.onnx.data"))
        path.rename(path.with_name("large.onnx"))
        assert values(read_graph(path.with_name("large.onnx"))) == values(large)
    for name in ("large.onnx", "large.onnx.data"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_copy_has_data_of_its_own(written: Path, tmp_path: Path) -> None:
    images = random_images(2)
    expected = run_onnx(written, images)
    (tmp_path / "there").mkdir()
    copy = tmp_path / "there/mine.onnx"
    copy_model(written, copy)
    for path in (written, data_beside(written)):
        path.unlink()
    assert data_files(copy) == [data_beside(copy)]
    np.testing.assert_array_equal(run_onnx(copy, images), expected)


def test_a_copy_of_one_file_is_equal_and_alone(whole: onnx.ModelProto, written: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    onnx.save(whole, tmp_path / "one/small.onnx")
    copy_model(tmp_path / "one/small.onnx", written)
    assert written.read_bytes() == (tmp_path / "one/small.onnx").read_bytes()
    assert not data_beside(written).exists()


# What ONNX's own code takes as one message ---------------------------------------------------------------


def with_function(model: onnx.ModelProto) -> onnx.ModelProto:
    fused, _ = fuse(normalise(model))
    assert fused.functions
    return fused


@pytest.mark.parametrize(
    "change",
    [lambda model: to_opset(model, 20), lambda model: inline_functions(with_function(model)), with_function],
    ids=["another opset", "functions written out", "fused"],
)
def test_no_result_depends_on_the_size(
    whole: onnx.ModelProto,
    change: Callable[[onnx.ModelProto], onnx.ModelProto],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = change(whole)
    monkeypatch.setattr(onnx_data, "MOST_BYTES", LIMIT)
    found = change(whole)
    assert values(found) == values(expected)
    for field in ("node", "input", "output"):
        assert list(getattr(found.graph, field)) == list(getattr(expected.graph, field))
    assert found.functions == expected.functions
    assert sorted(map(str, found.opset_import)) == sorted(map(str, expected.opset_import))


def test_no_weight_reaches_the_code_of_onnx(large: onnx.ModelProto) -> None:
    seen: list[int] = []

    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        seen.append(model.ByteSize())
        return model

    made = by_outline(large, change)
    assert seen[0] < large.ByteSize() / 2
    assert values(made) == values(large)
    assert list(made.graph.input) == list(large.graph.input)


def test_the_check_finds_what_is_wrong_with_the_graph(large: onnx.ModelProto) -> None:
    check_model(large, full=True)
    broken = onnx.ModelProto()
    broken.CopyFrom(large)
    broken.graph.node.append(helper.make_node("Relu", ["nowhere"], ["end"], "end"))
    with pytest.raises(onnx.checker.ValidationError, match="nowhere"):
        check_model(broken)


# What is not whole ---------------------------------------------------------------------------------------


def removed(data: Path) -> None:
    data.unlink()


def cut_short(data: Path) -> None:
    data.write_bytes(data.read_bytes()[:-5000])


def empty(data: Path) -> None:
    data.write_bytes(b"")


def changed(data: Path) -> None:
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)


def linked(data: Path) -> None:
    data.rename(data.parent.parent / "elsewhere")
    data.symlink_to(data.parent.parent / "elsewhere")


def a_folder(data: Path) -> None:
    data.unlink()
    data.mkdir()


def offsets(data: Path) -> None:
    stated(data, offset=10**9)


def lengths(data: Path) -> None:
    stated(data, length=2**62)


def stated(data: Path, **numbers: int) -> None:
    """Let the graph say other numbers of each constant outside."""
    path = data.with_suffix("")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = str(numbers.get(entry.key, entry.value))
    path.write_bytes(model.SerializeToString())


NOT_THERE = "its constants lie in 'large.onnx.data', which is not there; put it beside the model"
NOT_HELD = "constant '.*' needs .* bytes; large.onnx.data of .* does not hold them from .* on; save the model"
REASONS: dict[Callable[[Path], None], str] = {
    removed: NOT_THERE,
    a_folder: NOT_THERE,
    cut_short: NOT_HELD,
    empty: NOT_HELD,
    offsets: NOT_HELD,
    lengths: "has a constant of 4611686018.4 GB, and ONNX holds 2 GB in one; give a smaller model",
    changed: "large.onnx.data beside it has other content than when the model was saved; put the right",
    linked: "its constants lie in 'large.onnx.data', which is not in the file's own folder; put",
}


@pytest.mark.parametrize("spoil", REASONS, ids=lambda value: value.__name__)
@pytest.mark.parametrize("use", ["read", "run", "copy"])
def test_data_that_are_not_whole_are_refused(
    large: onnx.ModelProto, tmp_path: Path, spoil: Callable[[Path], None], use: str
) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "model/large.onnx"
    write_model(large, path)
    spoil(data_beside(path))
    uses: dict[str, Callable[[], object]] = {
        "read": lambda: read_graph(path),
        "run": lambda: session(path, quantized=False),
        "copy": lambda: copy_model(path, tmp_path / "copy.onnx"),
    }
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {REASONS[spoil]}") as error:
        uses[use]()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "copy.onnx").exists()
