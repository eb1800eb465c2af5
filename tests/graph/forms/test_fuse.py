"""What is fused, what is left alone, and that no output changes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from tiny_models import random_images, run_all, written

from ptq2themoon.graph.editing.onnx_graph import Graph, attribute
from ptq2themoon.graph.editing.operator_types import DOMAIN, FUSED_MATMUL
from ptq2themoon.graph.forms.fuse import Fusion, count_fused, fuse, name_operators
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.vocabulary.operators import Operator

TOLERANCE = 1e-5

NOISE = np.random.default_rng(0)
CONSTANTS = {
    "two": 2, "three": 3, "epsilon": 1e-5, "gamma": 1 + 0.3 * NOISE.standard_normal(8),
    "beta": NOISE.standard_normal(8), "root2": 2**0.5, "inverse": 0.5**0.5, "one": 1, "half": 0.5,
    "kappa": 0.044715, "slope": (2 / np.pi) ** 0.5,
    "weight": NOISE.standard_normal((8, 6)), "bias": NOISE.standard_normal(6),
}  # fmt: skip

LAYER_NORM = {
    "mean": "mean = ReduceMean <axes = [-1]> (x)",
    "sub": "centred = Sub (x, mean)",
    "square": "square = Pow (centred, two)",
    "variance": "variance = ReduceMean <axes = [-1]> (square)",
    "epsilon": "shifted = Add (variance, epsilon)",
    "root": "root = Sqrt (shifted)",
    "div": "standard = Div (centred, root)",
    "gamma": "scaled = Mul (standard, gamma)",
    "beta": "y = Add (scaled, beta)",
}
GELU = {
    "scale": "scaled = Div (x, root2)",
    "erf": "e = Erf (scaled)",
    "one": "shifted = Add (e, one)",
    "product": "product = Mul (x, shifted)",
    "half": "y = Mul (product, half)",
}
TANH = {
    "cube": "cube = Pow (x, three)",
    "small": "small = Mul (cube, kappa)",
    "sum": "inner = Add (x, small)",
    "slope": "sloped = Mul (inner, slope)",
    "erf": "e = Tanh (sloped)",
    **{step: GELU[step] for step in ("one", "product", "half")},
}
CUBE_AS_PRODUCTS = {"cube": "square = Mul (x, x)\ncube = Mul (square, x)"}
FACTORED = {  # as JAX and others write it: x (1 + kappa x x)
    "cube": "square = Mul (x, x)", "small": "small = Mul (square, kappa)",
    "sum": "inside = Add (small, one)\ninner = Mul (x, inside)",
}  # fmt: skip
MATMUL_ADD = {"matmul": "product = MatMul (x, weight)", "add": "y = Add (product, bias)"}
TURNED = "turned = Transpose <perm = [0, 2, 1]> (x)"
HALF_FIRST = {"product": "halved = Mul (x, half)", "half": "y = Mul (halved, shifted)"}


def unfused(
    steps: dict[str, str],
    changes: dict[str, str],
    constants: dict[str, Any] | None = None,
    outputs: tuple[str, ...] = ("y",),
) -> onnx.ModelProto:
    """The steps with some changed or added, unused constants left out."""
    body = "\n".join((steps | changes).values())
    values = (CONSTANTS | (constants or {})).items()
    return written(body, {name: np.float32(value) for name, value in values if name in body}, outputs)


def fused_alike(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Fusion]]:
    """Fuse, having checked that the outputs stay, at batch one and three."""
    fused, fusions = fuse(normalise(model))
    onnx.checker.check_model(fused, full_check=True)
    for batch in (1, 3):
        x = random_images(batch, 4, 8, seed=batch)
        for expected, got in zip(run_all(model, x), run_all(fused, x), strict=True):
            np.testing.assert_allclose(got, expected, atol=TOLERANCE)
    return fused, fusions


@pytest.mark.parametrize(
    ("steps", "kind", "changes"),
    [
        (LAYER_NORM, "LayerNorm", {}),
        (LAYER_NORM, "LayerNorm", {"square": "square = Mul (centred, centred)"}),
        (LAYER_NORM, "LayerNorm", {"epsilon": "shifted = Add (epsilon, variance)"}),
        (LAYER_NORM, "LayerNorm", {"gamma": "scaled = Mul (gamma, standard)"}),
        (LAYER_NORM, "LayerNorm", {"beta": "y = Add (beta, scaled)"}),
        (GELU, "GELU", {}),
        (GELU, "GELU", {"scale": "scaled = Mul (x, inverse)"}),
        (GELU, "GELU", {"scale": "scaled = Mul (inverse, x)"}),
        (GELU, "GELU", {"one": "shifted = Add (one, e)"}),
        (GELU, "GELU", {"product": "product = Mul (shifted, x)"}),
        (GELU, "GELU", {"half": "y = Mul (half, product)"}),
        (GELU, "GELU", HALF_FIRST),
        (GELU, "GELU", {**HALF_FIRST, "product": "halved = Mul (half, x)"}),
        (GELU, "GELU", {**HALF_FIRST, "half": "y = Mul (shifted, halved)"}),
        (GELU, "GELU", {"product": "product = Mul (shifted, half)", "half": "y = Mul (product, x)"}),
        (TANH, "GELU", {}),
        (TANH, "GELU", {"slope": "sloped = Mul (slope, inner)"}),
        (TANH, "GELU", HALF_FIRST),
        (LAYER_NORM, "LayerNorm", {"root": "root = Pow (shifted, half)"}),
        (LAYER_NORM, "LayerNorm", {"mean": "mean = ReduceMean <axes = [2]> (x)"}),
        (MATMUL_ADD, "MatMul+Add", {}),
        (MATMUL_ADD, "MatMul+Add", {"add": "y = Add (bias, product)"}),
    ],
)
def test_fuses_whatever_the_order_of_operands(steps: dict, kind: str, changes: dict) -> None:
    model = unfused(steps, changes)
    fused, fusions = fused_alike(model)
    (operator,) = fused.graph.node
    (fusion,) = fusions
    assert fusion.kind == kind
    assert fusion.operator == operator.name
    assert len(fusion.consumed) == len(set(fusion.consumed)) == len(steps)


@pytest.mark.parametrize("changes", [{}, CUBE_AS_PRODUCTS, FACTORED, HALF_FIRST])
def test_gelu_by_tanh_is_fused_as_such(changes: dict) -> None:
    fused, (fusion,) = fused_alike(unfused(TANH, changes))
    (operator,) = fused.graph.node
    assert attribute(operator, "approximate") == b"tanh"
    assert fusion.operator == operator.name
    assert count_fused(fused) == {"LayerNorm": 0, "MatMul+Add": 0, "GELU": 1}


@pytest.mark.parametrize(
    ("changes", "constants", "outputs"),
    [
        ({}, {"kappa": np.array(0.05)}, ()),
        ({}, {"slope": np.array(0.7)}, ()),
        ({}, {"half": np.array(0.4)}, ()),
        ({"cube": "cube = Pow (x, two)"}, {}, ()),
        ({"cube": "other = Neg (x)\ncube = Pow (other, three)"}, {}, ()),
        ({"sum": "less = Add (x, small)\ninner = Add (less, one)"}, {}, ()),
        ({"product": "other = Neg (x)\nproduct = Mul (other, shifted)"}, {}, ()),
        ({"half": "y = Mul (product, x)"}, {}, ()),
        ({}, {}, ("inner",)),
        ({}, {}, ("product",)),
    ],
)
def test_what_is_almost_a_gelu_by_tanh_stays(changes: dict, constants: dict, outputs: tuple) -> None:
    fused, fusions = fused_alike(unfused(TANH, changes, constants, ("y", *outputs)))
    assert not fusions
    assert "Gelu" not in {node.op_type for node in fused.graph.node}


def test_operators_that_arrive_whole_are_counted() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]> g (float[batch, 4, 8] x) => (float[batch, 4, 8] y)'
        "<float[8] scale = {1, 2, 3, 4, 5, 6, 7, 8}>"
        "{ n = LayerNormalization <axis = 2> (x, scale)   y = Gelu (n) }"
    )
    fused, fusions = fused_alike(model)
    assert not fusions
    assert count_fused(fused) == {"LayerNorm": 1, "MatMul+Add": 0, "GELU": 1}
    norm = fused.graph.node[0]
    assert (attribute(norm, "axis"), len(norm.input)) == (-1, 3)


def plain(name: str) -> dict[str, np.ndarray]:
    """A constant of one element, which broadcasts."""
    return {name: np.array([0.7])}


@pytest.mark.parametrize(
    ("changes", "constants", "outputs"),
    [
        ({"square": "square = Pow (centred, three)"}, {}, ()),
        ({"square": "square = Pow (two, centred)"}, {}, ()),
        ({"square": "square = Pow (x, two)"}, {}, ()),
        ({"square": "square = Mul (centred, x)"}, {}, ()),
        ({"variance": "variance = ReduceMean <axes = [-2]> (square)"}, {}, ()),
        ({"epsilon": "shifted = Add (variance, beta)"}, {}, ()),
        ({"root": "root = Exp (shifted)"}, {}, ()),
        ({"div": "standard = Div (root, centred)"}, {}, ()),
        ({"div": "standard = Mul (centred, root)"}, {}, ()),
        ({}, {}, ("variance",)),
        ({"elsewhere": "z = Neg (mean)"}, {}, ("z",)),
    ],
)
def test_what_is_almost_a_layer_norm_stays(changes: dict, constants: dict, outputs: tuple) -> None:
    fused, fusions = fused_alike(unfused(LAYER_NORM, changes, constants, ("y", *outputs)))
    assert not fusions
    assert "LayerNormalization" not in {node.op_type for node in fused.graph.node}


@pytest.mark.parametrize(
    ("changes", "constants", "outputs"),
    [
        ({"mean": "mean = ReduceMean <axes = [-2]> (x)"}, {}, ()),
        ({"mean": "mean = ReduceMean <axes = [-2, -1]> (x)"}, {}, ()),
        ({"mean": "mean = ReduceMax <axes = [-1]> (x)"}, {}, ()),
        ({"mean": "other = Neg (x)\nmean = ReduceMean <axes = [-1]> (other)"}, {}, ()),
        ({"sub": "centred = Sub (mean, x)"}, {}, ()),
        ({"sub": "centred = Add (x, mean)"}, {}, ()),
        ({"gamma": "scaled = Mul (standard, x)"}, {}, ()),
        ({"gamma": "scaled = Sub (standard, gamma)"}, {}, ()),
        ({"beta": "y = Sub (scaled, beta)"}, {}, ()),
        ({}, plain("gamma"), ()),
        ({}, plain("beta"), ()),
        ({}, {"beta": np.ones((4, 8))}, ()),
        ({}, {"gamma": np.ones((4, 8), dtype=np.float32), "beta": np.ones((4, 8))}, ()),
        ({}, {}, ("standard",)),
        ({}, {}, ("scaled",)),
        ({"elsewhere": "z = Neg (standard)"}, {}, ("z",)),
    ],
)
def test_what_has_a_norm_in_it(changes: dict, constants: dict, outputs: tuple) -> None:
    """A LayerNorm without its scale or shift, or the RMSNorm of what is centred otherwise; the rest stays."""
    fused, (fusion,) = fused_alike(unfused(LAYER_NORM, changes, constants, ("y", *outputs)))
    whole = 9
    assert fusion.kind in ("LayerNorm", "RMSNorm")
    assert len(fusion.consumed) < whole
    assert count_fused(fused)[fusion.kind] == 1


@pytest.mark.parametrize(
    ("changes", "constants", "outputs"),
    [
        ({}, {"root2": np.array(1.5)}, ()),
        ({"scale": "scaled = Mul (x, root2)"}, {}, ()),
        ({"scale": "scaled = Div (root2, x)"}, {}, ()),
        ({"scale": "scaled = Div (x, x)"}, {}, ()),
        ({"erf": "e = Tanh (scaled)"}, {}, ()),
        ({}, {"one": np.array(1.1)}, ()),
        ({"one": "shifted = Sub (e, one)"}, {}, ()),
        ({}, {"half": np.array(0.4)}, ()),
        ({}, {"half": np.full((8,), 0.5)}, ()),
        ({"half": "y = Add (product, half)"}, {}, ()),
        ({"product": "other = Neg (x)\nproduct = Mul (other, shifted)"}, {}, ()),
        ({"product": "product = Mul (shifted, shifted)"}, {}, ()),
        ({**HALF_FIRST, "product": "other = Neg (x)\nhalved = Mul (other, half)"}, {}, ()),
        ({"half": "y = Mul (product, x)"}, {}, ()),
        ({}, {}, ("product",)),
        ({}, {}, ("e",)),
        ({}, {}, ("scaled",)),
        (HALF_FIRST, {}, ("halved",)),
        ({"elsewhere": "z = Neg (scaled)"}, {}, ("z",)),
        ({"elsewhere": "z = Neg (shifted)"}, {}, ("z",)),
    ],
)
def test_what_is_almost_a_gelu_stays(changes: dict, constants: dict, outputs: tuple) -> None:
    fused, fusions = fused_alike(unfused(GELU, changes, constants, ("y", *outputs)))
    assert not fusions
    assert "Gelu" not in {node.op_type for node in fused.graph.node}


@pytest.mark.parametrize(
    ("changes", "constants", "outputs"),
    [
        ({}, plain("bias"), ()),
        ({}, {"bias": np.ones((1, 6))}, ()),
        ({}, {"bias": np.ones((4, 6))}, ()),
        ({}, {"weight": np.ones((1, 8, 8)), "bias": np.ones(8)}, ()),
        ({"matmul": "product = MatMul (weight, x)"}, {"weight": np.ones((8, 4)), "bias": np.ones(8)}, ()),
        ({"matmul": f"{TURNED}\nproduct = MatMul (x, turned)"}, {"bias": np.ones(4)}, ()),
        ({"add": "y = Sub (product, bias)"}, {}, ()),
        ({"add": "y = Add (product, product)"}, {}, ()),
        ({"add": "mean = ReduceMean <axes = [-1]> (x)\ny = Add (product, mean)"}, {}, ()),
        ({}, {}, ("product",)),
        ({"elsewhere": "z = Neg (product)"}, {}, ("z",)),
    ],
)  # fmt: skip
def test_what_is_almost_a_linear_layer_stays(changes: dict, constants: dict, outputs: tuple) -> None:
    fused, fusions = fused_alike(unfused(MATMUL_ADD, changes, constants, ("y", *outputs)))
    assert not fusions
    assert FUSED_MATMUL not in {node.op_type for node in fused.graph.node}


def test_fuses_side_by_side() -> None:
    """Three of a kind, chained: each keeps its place and a name of its own."""
    steps = "\n".join(LAYER_NORM.values())
    made = "|".join(step.split(" = ")[0] for step in LAYER_NORM.values())
    body = [re.sub(rf"\b({made})\b", rf"\g<1>{i}", steps) for i in range(3)]
    body[1:] = [re.sub(r"\bx\b", f"y{i}", steps) for i, steps in enumerate(body[1:])]
    used = {k: np.float32(CONSTANTS[k]) for k in ("two", "epsilon", "gamma", "beta")}
    fused, fusions = fused_alike(written("\n".join(body), used, ["y2"]))
    assert [node.op_type for node in fused.graph.node] == ["LayerNormalization"] * 3
    assert [node.name for node in fused.graph.node] == [fusion.operator for fusion in fusions]
    assert len({node.name for node in fused.graph.node}) == 3


def test_operators_without_a_name_get_one() -> None:
    model = written("a = Neg (x)\nb = Neg (a)\ny = Neg (b)", {})
    for node, name in zip(model.graph.node, ["Neg_2", "", "Neg_2"], strict=True):
        node.name = name
    graph = Graph(model)
    name_operators(graph)
    assert len({node.name for node in graph.nodes} - {""}) == 3
    assert graph.nodes[0].name == "Neg_2"


def test_the_model_given_stays(tiny) -> None:
    before = tiny.normalised.SerializeToString(deterministic=True)
    fuse(tiny.normalised)
    assert tiny.normalised.SerializeToString(deterministic=True) == before


def test_counts_of_deit(deit) -> None:
    fused = Counter(fusion.kind for fusion in deit.fusions)
    assert fused == {"MatMul+Add": 48, "LayerNorm": 25, "GELU": 12}
    consumed = Counter((fusion.kind, len(fusion.consumed)) for fusion in deit.fusions)
    assert consumed == {("MatMul+Add", 2): 48, ("LayerNorm", 9): 25, ("GELU", 5): 12}
    before = Counter(node.op_type for node in deit.normalised.graph.node)
    after = Counter(node.op_type for node in deit.fused.graph.node)
    # Before: an Erf and an Add a GELU, a Sqrt and two Adds a LayerNorm, an Add a linear layer.
    assert (before["Erf"], before["Sqrt"], before["ReduceMean"], before["MatMul"]) == (12, 25, 50, 72)
    assert before["Add"] == 12 + 2 * 25 + 48 + 24 + 1
    # After: two products of attention a block, two residuals, the position embedding.
    assert (after["LayerNormalization"], after["Gelu"], after[FUSED_MATMUL]) == (25, 12, 48)
    assert (after["MatMul"], after["Add"], after["Mul"], after["Softmax"]) == (24, 25, 12, 12)
    assert (after["Conv"], after["Gemm"]) == (1, 1)
    assert not {"Erf", "Sqrt", "Pow", "ReduceMean", "Div", "Sub"} & after.keys()
    assert before.total() - after.total() == 48 * 1 + 25 * 8 + 12 * 4


def test_consumed_operators_are_gone_and_each_consumed_once(deit) -> None:
    consumed = [name for fusion in deit.fusions for name in fusion.consumed]
    assert len(consumed) == len(set(consumed))
    assert set(consumed) <= {node.name for node in deit.normalised.graph.node}
    assert not set(consumed) & {node.name for node in deit.fused.graph.node}


@pytest.mark.parametrize("batch", [1, 3])
def test_logits_of_deit_stay(deit, batch: int) -> None:
    images = random_images(batch, 3, 224, 224)
    (expected,), (got,) = run_all(deit.exported, images), run_all(deit.fused, images)
    assert got.shape == (batch, 1000)
    assert np.abs(expected).max() > 0.5  # not trivially equal
    assert np.abs(got - expected).max() <= TOLERANCE


def test_fused_file_runs_as_written(tiny_file: tuple[Path, list[Operator]], tiny) -> None:
    path, _ = tiny_file
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = random_images(3)
    (got,) = session.run(["logits"], {"images": images})
    np.testing.assert_allclose(got, run_all(tiny.exported, images)[0], atol=TOLERANCE)


def test_fused_file_is_whole(tiny_file: tuple[Path, list[Operator]]) -> None:
    """Nothing outside the file, and every operator standard or defined in it."""
    path, _ = tiny_file
    model = onnx.load(path, load_external_data=False)
    assert list(path.parent.iterdir()) == [path]
    assert all(tensor.data_location != TensorProto.EXTERNAL for tensor in model.graph.initializer)
    (function,) = model.functions
    assert (function.domain, function.name) == (DOMAIN, FUSED_MATMUL)
    assert [node.op_type for node in function.node] == ["MatMul", "Add"]
    assert {(item.domain, item.version) for item in model.opset_import} == {("", 20), (DOMAIN, 1)}
    domains = {node.op_type: node.domain for node in model.graph.node}
    assert domains.pop(FUSED_MATMUL) == DOMAIN
    assert set(domains.values()) == {""}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("/blocks.0/attn/MatMul_1", "/blocks.0/attn/MatMul_1"),
        ("=HYPERLINK(x)", "_HYPERLINK_x_"),
        ("-cmd|' /C calc'!A0", "cmd___/C_calc__A0"),
        ("<script>alert(1)</script>", "_script_alert_1__/script_"),
        ("$x_{$", "_x___"),
        ("a\nb|c", "a_b_c"),
        ("---", "Relu"),
    ],
)
def test_names_of_operators_mean_nothing_to_tables_and_pages(name: str, plain: str) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name)
    value = onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([node, node], "g", [value], []))
    graph = Graph(model)
    name_operators(graph)
    assert [node.name for node in graph.nodes] == [plain, f"{plain}_2"]
