"""Constants of a graph: each is an array to who asks, and no weight is copied for who does not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ptq2themoon.graph.editing import held_constants
from ptq2themoon.graph.editing.held_constants import Constants
from ptq2themoon.graph.editing.onnx_graph import Graph

WEIGHT, BIAS = np.arange(2000, dtype=np.float32).reshape(40, 50), np.ones(50, np.float32)


@pytest.fixture
def model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["p"]),
        helper.make_node("Add", ["p", "bias"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    held = [numpy_helper.from_array(value, name) for name, value in (("weight", WEIGHT), ("bias", BIAS))]
    unused = numpy_helper.from_array(WEIGHT, "unused")
    return helper.make_model(helper.make_graph(nodes, "two", [x], [y], [*held, unused]))


def test_who_asks_gets_an_array(model: onnx.ModelProto) -> None:
    found = Constants(model.graph.initializer)
    assert list(found) == ["weight", "bias", "unused"]
    for name, value in (("weight", WEIGHT), ("bias", BIAS)):
        np.testing.assert_array_equal(found[name], value)
    one = found["weight"]
    assert found["weight"] is one  # while it is in use
    with pytest.raises(KeyError):
        found["none"]


def test_no_weight_is_read_that_nobody_asks_for(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a graph that is written out again change a byte of it."""
    read: list[str] = []
    to_array = numpy_helper.to_array

    def noted(tensor: TensorProto) -> np.ndarray:
        read.append(tensor.name)
        return to_array(tensor)

    monkeypatch.setattr(held_constants.numpy_helper, "to_array", noted)
    graph = Graph(model)
    assert "weight" in graph.constants
    assert "none" not in graph.constants
    assert len(graph.constants) == 3
    made = graph.finish()
    assert read == ["bias"]
    kept = [tensor.SerializeToString() for tensor in model.graph.initializer][:2]
    assert [tensor.SerializeToString() for tensor in made.graph.initializer] == kept


def test_what_is_put_in_counts(model: onnx.ModelProto) -> None:
    found = Constants(model.graph.initializer)
    before = found["weight"]
    found["weight"] = 2 * before
    found |= {"new": BIAS, "bias": 3 * BIAS}
    del found["unused"]
    np.testing.assert_array_equal(found["weight"], 2 * WEIGHT)
    written = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.tensors()}
    assert list(written) == ["weight", "bias", "new"]
    for name, value in (("weight", 2 * WEIGHT), ("bias", 3 * BIAS), ("new", BIAS)):
        np.testing.assert_array_equal(written[name], value)
    found.keep({"new"})
    assert dict(found) == {"new": BIAS}


@pytest.mark.parametrize("how", ["typed values", "a word about it"])
def test_what_others_wrote_in_another_way_is_written_as_all_are(model: onnx.ModelProto, how: str) -> None:
    weight = model.graph.initializer[0]
    expected = weight.SerializeToString()
    if how == "typed values":
        weight.ClearField("raw_data")
        weight.float_data.extend(WEIGHT.ravel().tolist())
    else:
        weight.doc_string = "a word"
    first, *_ = Constants(model.graph.initializer).tensors()
    assert first.SerializeToString() == expected
