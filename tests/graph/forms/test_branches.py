"""What lies in the branches of an If is found as if it lay in the graph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tiny_models import random_images, run_all, tiny_module, to_onnx

from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.roles import find_roles, rename_operators

# What an If asks: a constant; the height of images; whether there are any.
ASKED = {"constant": None, "height": (2, "Equal", 16), "images": (0, "Greater", 0)}
IMAGES = random_images(3)


@pytest.fixture(scope="module")
def plain() -> onnx.ModelProto:
    return to_onnx(tiny_module(), opset=17)


def places(model: onnx.ModelProto) -> Counter[tuple[str, str | None, int | None]]:
    operators, _ = rename_operators(model, find_roles(model))
    return Counter((o.type, o.role, o.block) for o in operators)


def in_branches(model: onnx.ModelProto, asked: str, size: int) -> onnx.ModelProto:
    """The model with `size` operators in each If; all branches have the same names, and the others double."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    nodes = [node for node in found.graph.node if node.op_type != "Constant"]
    constants = [node for node in found.graph.node if node.op_type == "Constant"]
    groups = [nodes[start : start + size] for start in range(0, len(nodes), size)]
    read = [{name for node in group for name in node.input} for group in groups]
    ends = {value.name for value in found.graph.output}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)
    }
    choices = []
    for i, group in enumerate(groups):
        later = ends.union(*read[i + 1 :])
        outputs = {name: types[name] for node in group for name in node.output if name in later}
        branches = {"then_branch": branch(group, outputs, double=False)}
        branches["else_branch"] = branch(group, outputs, double=True)
        choices.append(helper.make_node("If", ["asked"], list(outputs), f"choice_{i}", **branches))
    asking = condition(found, asked)
    found.graph.ClearField("node")
    found.graph.node.extend([*constants, *asking, *choices])
    onnx.checker.check_model(found)
    return found


def branch(group: list[NodeProto], outputs: dict[str, int], *, double: bool) -> onnx.GraphProto:
    own = [name for node in group for name in node.output]
    names = {name: f"t{i}" for i, name in enumerate(own)}
    ends = []
    for i, (name, kind) in enumerate(outputs.items()):
        other = ("Not", 1) if kind == TensorProto.BOOL else ("Add", 2)
        operator, count = other if double else ("Identity", 1)
        ends.append(helper.make_node(operator, [names[name]] * count, [f"end{i}"], f"end{i}"))
    copies = []
    for i, node in enumerate(group):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"operator{i}"
        copy.input[:] = [names.get(name, name) for name in node.input]
        copy.output[:] = [names[name] for name in node.output]
        copies.append(copy)
    results = [
        helper.make_tensor_value_info(f"end{i}", kind, None) for i, kind in enumerate(outputs.values())
    ]
    return helper.make_graph([*copies, *ends], "branch", [], results)


def condition(model: onnx.ModelProto, asked: str) -> list[NodeProto]:
    """Operators that make the tensor `asked`, or none where it is a constant."""
    question = ASKED[asked]
    if question is None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "asked"))
        return []
    axis, compare, value = question
    for name, number in (("asked.axis", axis), ("asked.value", value)):
        model.graph.initializer.append(numpy_helper.from_array(np.int64(number), name))
    return [
        helper.make_node("Shape", ["images"], ["asked.shape"]),
        helper.make_node("Gather", ["asked.shape", "asked.axis"], ["asked.size"]),
        helper.make_node(compare, ["asked.size", "asked.value"], ["asked"]),
    ]


@pytest.mark.parametrize(("asked", "size"), [("constant", 1), ("height", 5), ("images", 40)])
def test_layers_in_branches_have_their_roles(plain: onnx.ModelProto, asked: str, size: int) -> None:
    """LayerNorms, GELUs and attention, whole or across two branches."""
    model = in_branches(plain, asked, size)
    np.testing.assert_allclose(run_all(model, IMAGES)[0], run_all(plain, IMAGES)[0], atol=1e-5)
    (fused, fusions), (expected, others) = (fuse(normalise(each)) for each in (model, plain))
    assert places(fused) == places(expected)
    assert len(fusions) == len(others)
    assert len({node.name for node in fused.graph.node}) == len(fused.graph.node)
    np.testing.assert_allclose(run_all(fused, IMAGES)[0], run_all(plain, IMAGES)[0], atol=1e-5)
