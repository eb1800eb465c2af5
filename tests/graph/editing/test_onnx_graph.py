"""Questions to a graph, and edits of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tiny_models import random_images, run_all, written

from ptq2themoon.graph.editing.one_message import LIGHT
from ptq2themoon.graph.editing.onnx_graph import Graph, attribute, tensor_shapes, unique_name
from ptq2themoon.vocabulary.errors import UserError

BODY = """
    a = Neg (x)
    b = Mul (a, a)
    c = Add (w, b)
    y = Exp (c)
"""
WEIGHT = {"w": random_images(1, 8)[0]}


@pytest.fixture
def graph() -> Graph:
    return Graph(written(BODY, WEIGHT, ["y", "c"]))


def node(graph: Graph, output: str) -> onnx.NodeProto:
    found = graph.producer(output)
    assert found is not None
    return found


def test_who_makes_a_tensor(graph: Graph) -> None:
    assert node(graph, "b").op_type == "Mul"
    assert graph.producer("x") is None
    assert graph.producer("w") is None
    assert graph.producer("nowhere") is None
    assert (graph.inputs, graph.outputs) == (["x"], ["y", "c"])


def test_who_reads_a_tensor_once_for_each_use(graph: Graph) -> None:
    assert [reader.op_type for reader in graph.consumers("a")] == ["Mul", "Mul"]
    assert graph.consumers("y") == []


def test_the_only_reader(graph: Graph) -> None:
    found = graph.only_consumer(node(graph, "b"), "Add")
    assert found is node(graph, "c")
    assert graph.only_consumer(node(graph, "b"), "Sub") is None  # another type
    assert graph.only_consumer(node(graph, "a"), "Mul") is None  # reads it twice
    assert graph.only_consumer(node(graph, "c"), "Exp") is None  # an output of the graph too


def test_operands_in_either_order(graph: Graph) -> None:
    operands = graph.split_operands(node(graph, "c"))
    assert operands is not None
    assert operands[0] == "b"
    np.testing.assert_array_equal(operands[1], WEIGHT["w"])
    assert graph.split_operands(node(graph, "b")) is None  # two activations
    assert graph.split_operands(node(graph, "a")) is None  # one input
    assert graph.split_operands(helper.make_node("Add", ["w", "w"], ["z"])) is None  # two constants


def test_new_tensors_have_names_of_their_own(graph: Graph) -> None:
    value = np.zeros(1)
    assert graph.add_constant("new", value) == "new"
    assert [graph.add_constant(name, value) for name in ("new", "w", "b", "x")] == [
        "new_2",
        "w_2",
        "b_2",
        "x_2",
    ]
    assert graph.free_tensor("new") == "new_3"
    assert unique_name("n", {"n", "n_2"}) == "n_3"
    assert unique_name("n", set()) == "n"


def test_replace_and_finish(graph: Graph) -> None:
    new = helper.make_node("Abs", ["x"], ["b"], "abs")
    graph.replace([node(graph, "a"), node(graph, "b")], [new])
    assert [n.op_type for n in graph.nodes] == ["Abs", "Add", "Exp"]
    assert graph.producer("b") is new
    assert graph.producer("a") is None
    model = graph.finish()
    onnx.checker.check_model(model, full_check=True)
    x = random_images(2, 4, 8)
    np.testing.assert_allclose(run_all(model, x)[1], np.abs(x) + WEIGHT["w"], rtol=1e-6)


def test_new_nodes_stand_where_the_last_old_one_stood(graph: Graph) -> None:
    first, second = helper.make_node("Abs", ["b"], ["d"]), helper.make_node("Add", ["d", "w"], ["c"])
    graph.replace([node(graph, "a"), node(graph, "c")], [first, second])
    assert [n.op_type for n in graph.nodes] == ["Mul", "Abs", "Add", "Exp"]


def test_readers_follow_a_new_name(graph: Graph) -> None:
    graph.rename_uses("a", "x")
    assert list(node(graph, "b").input) == ["x", "x"]
    assert graph.consumers("a") == []
    assert len(graph.consumers("x")) == 3
    assert [n.op_type for n in graph.finish().graph.node] == ["Mul", "Add", "Exp"]  # Neg is dead


def test_what_no_output_needs_goes(graph: Graph) -> None:
    graph.constants["unused"] = np.zeros(3)
    graph.replace([node(graph, "b")], [helper.make_node("Abs", ["x"], ["b"])])
    model = graph.finish()
    assert [n.op_type for n in model.graph.node] == ["Abs", "Add", "Exp"]
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]


def test_the_model_itself_stays() -> None:
    model = written(BODY, WEIGHT)
    before = model.SerializeToString(deterministic=True)
    graph = Graph(model)
    graph.rename_uses("a", "x")
    graph.nodes[0].name = "renamed"
    graph.finish()
    assert model.SerializeToString(deterministic=True) == before


def test_finish_keeps_header_and_drops_stale_shapes(tiny) -> None:
    model = onnx.shape_inference.infer_shapes(tiny.fused)
    assert model.graph.value_info
    finished = Graph(model).finish()
    assert not finished.graph.value_info
    assert finished.functions == tiny.fused.functions
    assert finished.opset_import == tiny.fused.opset_import
    assert finished.graph.node == tiny.fused.graph.node
    assert finished.graph.input == tiny.fused.graph.input
    assert finished.graph.output == tiny.fused.graph.output


def test_constants_in_another_file_are_refused(tmp_path: Path) -> None:
    model = written("y = Add (x, w)", {"w": random_images(1, 4, 8)})
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(UserError, match="constant 'w' lies outside the ONNX file"):
        Graph(onnx.load(path, load_external_data=False))


def test_attributes(graph: Graph) -> None:
    made = helper.make_node("ReduceMean", ["x"], ["m"], axes=[-1], keepdims=0)
    assert attribute(made, "axes") == [-1]
    assert attribute(made, "keepdims", 1) == 0
    assert attribute(made, "missing") is None
    assert attribute(made, "missing", 7) == 7


def test_shapes_are_those_of_shape_inference_on_the_whole(tiny) -> None:
    """Large constants are left out of the inference, and must not change it."""
    assert any(np.prod(tensor.dims) > LIGHT for tensor in tiny.fused.graph.initializer)
    shapes = tensor_shapes(tiny.fused)
    inferred = onnx.shape_inference.infer_shapes(tiny.fused, data_prop=True).graph
    for value in [*inferred.input, *inferred.output, *inferred.value_info]:
        dims = value.type.tensor_type.shape.dim
        assert shapes[value.name] == tuple(dim.dim_param or dim.dim_value for dim in dims)
    for tensor in tiny.fused.graph.initializer:
        assert shapes[tensor.name] == tuple(tensor.dims)
    made = {name for operator in tiny.fused.graph.node for name in operator.output}
    assert made <= shapes.keys()
    assert shapes["images"] == ("batch", 1, 16, 16)
    assert shapes["logits"] == ("batch", 5)
