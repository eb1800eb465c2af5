"""Operators that cannot be brought to the one form are refused by type, name and place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tiny_models import random_images, run_all, tiny_module, to_onnx, written

from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError


def test_operators_fused_for_onnx_runtime_are_refused() -> None:
    model = to_onnx(tiny_module())
    softmax = [i for i, node in enumerate(model.graph.node) if node.op_type == "Softmax"]
    node = model.graph.node[softmax[1]]
    node.op_type, node.domain, node.name = "FusedSoftmax", "com.microsoft", "attention_1"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    message = (
        r"^operator 'attention_1' \(FusedSoftmax\), past Softmax 1 of 1, after '.*MatMul.*' \(MatMul\): "
        r"is of domain 'com.microsoft'.*before that optimisation$"
    )
    with pytest.raises(UserError, match=message):
        normalise(model)


def test_an_unknown_domain_is_refused() -> None:
    model = written("a = Neg (x)\ny = Neg (a)", {})
    model.graph.node[1].domain, model.graph.node[1].name = "house", "mine"
    model.opset_import.append(helper.make_opsetid("house", 1))
    with pytest.raises(UserError, match=r"operator 'mine' \(Neg\), after '.*' \(Neg\): is of domain 'house'"):
        normalise(model)


def test_what_ppq_cannot_execute_is_refused() -> None:
    model = written("a = Neg (x)\ny = Asinh (a)", {})
    model.graph.node[1].name = "soft"
    with pytest.raises(UserError, match=r"operator 'soft' \(Asinh\), after '.*' \(Neg\): PPQ cannot"):
        normalise(model)


@pytest.mark.parametrize("kind", ["Round", "Sign", "ReduceMin"])
def test_what_the_project_itself_computes_is_taken(kind: str) -> None:
    """PPQ alone cannot."""
    model = written(f"a = {kind} (x)\ny = Add (a, x)", {})
    assert [node.op_type for node in normalise(model).graph.node] == [kind, "Add"]


def test_control_flow_is_refused() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[batch, 4, 8] x) => (float[batch, 4, 8] y) {'
        "total = ReduceSum <keepdims = 0> (x)   is = Cast <to = 9> (total)"
        "y = If (is) <then_branch = t () => (float[batch, 4, 8] a) { a = Neg (x) },"
        "else_branch = e () => (float[batch, 4, 8] b) { b = Exp (x) }> }"
    )
    model.graph.node[-1].name = "choice"
    with pytest.raises(UserError, match=r"operator 'choice' \(If\), after '.*' \(Cast\): control flow"):
        normalise(model)


@pytest.mark.parametrize(("condition", "taken"), [(1, "Neg"), (0, "Exp")])
def test_a_branch_that_is_known_is_taken(condition: int, taken: str) -> None:
    """As the TorchScript exporter writes squeeze; what only the branch reads is kept."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[batch, 4, 8] x) => (float[batch, 4, 8] y) {'
        f"is = Constant <value = bool {{{condition}}}> ()   early = Identity (x)   more = Abs (early)"
        "z = If (is) <then_branch = t () => (float[batch, 4, 8] a) { a = Neg (more) },"
        "else_branch = e () => (float[batch, 4, 8] b) { b = Exp (more) }>   y = Sqrt (z) }"
    )
    normalised = normalise(model)
    assert [node.op_type for node in normalised.graph.node] == ["Abs", taken, "Sqrt"]
    onnx.checker.check_model(normalised, full_check=True)
    x = random_images(3, 4, 8)
    np.testing.assert_array_equal(run_all(normalised, x)[0], run_all(model, x)[0])


def test_an_opset_without_an_equal_is_refused() -> None:
    model = written("y = Neg (x)", {})
    model.opset_import[0].version = 999
    with pytest.raises(UserError, match=r"opset 999 .* export it at opset 17"):
        normalise(model)


@pytest.mark.parametrize("opset", [21, 23])
def test_later_opsets_come_down(opset: int) -> None:
    model = onnx.version_converter.convert_version(to_onnx(tiny_module()), opset)
    counts = [len(fuse(normalise(m))[1]) for m in (model, to_onnx(tiny_module()))]
    assert counts[0] == counts[1]


def test_functions_of_the_file_are_written_out() -> None:
    """As torch's exporters write modules."""
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17, "mine": 1]> '
        "g (float[batch, 4, 8] x) => (float[batch, 4, 8] y) { a = mine.twice (x)   y = Neg (a) }"
        '<domain: "mine", opset_import: ["": 17]> twice (u) => (v) { v = Add (u, u) }'
    )
    normalised = normalise(model)
    assert [node.op_type for node in normalised.graph.node] == ["Add", "Neg"]
    assert [item.domain for item in normalised.opset_import] == [""]


def test_ppq_has_the_gelu_of_torch(tmp_path: Path) -> None:
    x = torch.linspace(-6, 6, 64).reshape(1, 8, 8)
    for approximate in ("none", "tanh"):
        model = onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["": 20]> g (float[batch, 8, 8] x) => (float[batch, 8, 8] y)'
            f'{{ y = Gelu <approximate = "{approximate}"> (x) }}'
        )
        model.graph.node[0].name = "gelu"
        onnx.save(model, tmp_path / "gelu.onnx")
        got = SimulatedModel(onnx.load(tmp_path / "gelu.onnx"), "cpu")(x)
        assert torch.equal(got, torch.nn.functional.gelu(x, approximate=approximate))


def test_branches_whose_names_are_the_same() -> None:
    """A branch is a scope of its own; a branch within it too."""

    def conditional(source: str, out: str, within: bool) -> NodeProto:
        if within:
            nodes, constants = [conditional(source, "result", False)], []
        else:
            nodes, constants = [helper.make_node("Mul", [source, "factor"], ["result"])], [factor]
        branch = helper.make_graph(nodes, "branch", [], [result], constants)
        return helper.make_node("If", ["always"], [out], f"to_{out}", then_branch=branch, else_branch=branch)

    factor = numpy_helper.from_array(np.float32(3), "factor")
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, None)
    model = written("y = Identity (x)", {"always": np.array(True)})
    model.graph.ClearField("node")
    model.graph.node.extend([
        conditional("x", "first", False), conditional("first", "second", True),
        conditional("second", "y", False),
    ])  # fmt: skip
    images = random_images(2, 4, 8)
    (found,) = run_all(normalise(model), images)
    np.testing.assert_allclose(found, 27 * images, rtol=1e-6)
