"""Queries, keys and values quantized once: fewer operators, and the same numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny_deployed import Quantized, kernels, sqnr
from tiny_quantized import Tiny, images, write_recipe

from ptq2themoon.deploy import fast
from ptq2themoon.deploy.deploy_report import Deployed
from ptq2themoon.deploy.grid import Grid
from ptq2themoon.deploy.joint_codes import joint_codes
from ptq2themoon.deploy.kinds import Forms
from ptq2themoon.graph.editing.onnx_graph import Graph

ONCE = "its output quantized once"


def apart(made: Quantized, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    """Deployed with a quantization for each product's input."""
    with monkeypatch.context() as patch:
        patch.setattr(fast, "joint_codes", lambda *_: {})
        patch.setattr(fast, "cut_heads", lambda *_: None)
        return made.deployed("fast")


def joint_layers(deployed: Deployed) -> set[str]:
    return {name for name, place in deployed.placements.items() if ONCE in place.why}


@pytest.mark.parametrize("recipe", ["vanilla", "ship"])
@pytest.mark.parametrize("family", ["vit", "swin", "dinov2", "mobilevit"])
def test_fewer_operators_and_the_same_outputs(
    family: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Quantized.make(tmp_path, family, recipe)
    before, after = apart(made, monkeypatch), made.deployed("fast")
    qkv = {item.operator.name for item in made.quantized if item.operator.role == "qkv"}
    assert joint_layers(after) == qkv
    counts = [kernels(deployed.model, tmp_path) for deployed in (before, after)]
    saved = Counter(counts[0])
    saved.subtract(counts[1])
    assert saved["QuantizeLinear"] == 2 * len(qkv)
    assert saved["Mul"] == len(qkv)
    assert not [kind for kind in ("MatMul", "DequantizeLinear", "MatMulIntegerToFloat") if saved[kind]]
    plain = [made.run(deployed, optimise=False) for deployed in (before, after)]
    assert sqnr(plain[1], plain[0]) > 60  # codes at rounding ties
    errors = [sqnr(made.run(deployed), made.floating()) for deployed in (before, after)]
    assert errors[1] > errors[0] - 1


def test_weights_keep_their_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Quantized.make(tmp_path, "vit", "ship")

    def codes(deployed: Deployed) -> dict[str, np.ndarray]:
        held = deployed.model.graph.initializer
        return {t.name: numpy_helper.to_array(t) for t in held if t.name.endswith("/weight/codes")}

    before, after = codes(apart(made, monkeypatch)), codes(made.deployed("fast"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"role": "attn_scores", "operand": "input", "position": 0}, "queries have other bits"),
        ({"role": "attn_context", "operand": "input", "position": 1}, "values have other bits"),
    ],
)
def test_each_by_itself_where(tiny: Tiny, tmp_path: Path, rule: dict[str, Any], why: str) -> None:
    recipe = write_recipe(tmp_path, {"select": rule, "bits": 6})
    made = Quantized.of(tiny, recipe, (8, 8), images(12))
    assert not joint_layers(made.deployed("fast")), why
    assert sqnr(made.run(made.deployed("fast")), made.floating()) > 15


def test_tensorrt_keeps_a_quantization_for_each_product(tmp_path: Path) -> None:
    assert not joint_layers(Quantized.make(tmp_path, "vit").deployed("fast", "tensorrt"))


def test_the_factor_of_queries_is_reported_where_it_is(tmp_path: Path) -> None:
    made = Quantized.make(tmp_path, "vit")
    multiplied = [item.operator.name for item in made.quantized if item.operator.type == "Mul"]
    placements = made.deployed("fast").placements
    assert multiplied
    assert {placements[name].why for name in multiplied} == {
        "its factor is in the scales of the layer before"
    }


# Graphs of one attention --------------------------------------------------------------------------

CUT = "r = Reshape(y, heads) a, b, c = Split <axis = 2> (r, sizes) q = Transpose <perm = [0, 2, 1, 3]> (a)"
KEYS = "k = Transpose <perm = [0, 2, 3, 1]> (b) v = Transpose <perm = [0, 2, 1, 3]> (c)"
SCORES = "f = Mul(q, scale) s = MatMul(f, k) p = Softmax(s) o = MatMul(p, v)"
BACK = "t = Transpose <perm = [0, 2, 1, 3]> (o) u = Reshape(t, flat)"
ATTENTION = f"y = MatMul(x, w) {CUT} {KEYS} {SCORES} {BACK} z = MatMul(u, w2)"
CONSTANTS: dict[str, np.ndarray] = {
    "w": np.random.default_rng(0).standard_normal((8, 24)).astype(np.float32),
    "w2": np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32),
    "heads": np.array([0, 5, 6, 4]),
    "sizes": np.array([2, 2, 2]),
    "flat": np.array([0, 5, 8]),
    "scale": np.array(0.5, np.float32),
}
PRODUCTS = {"y": "layer", "s": "scores", "o": "context", "z": "next"}


def attention(body: str, outputs: str = "float[batch, 5, 8] z", **others: np.ndarray) -> Graph:
    head = '<ir_version: 9, opset_import: ["": 20]> g (float[batch, 5, 8] x)'
    model = onnx.parser.parse_model(f"{head} => ({outputs}) {{ {body} }}")
    for number, node in enumerate(model.graph.node):
        node.name = PRODUCTS.get(node.output[0], f"{node.op_type}_{number}")
    used = {name for node in model.graph.node for name in node.input}
    constants = {**CONSTANTS, **others}
    held = [numpy_helper.from_array(v, name) for name, v in constants.items() if name in used]
    model.graph.initializer.extend(held)
    onnx.checker.check_model(model, full_check=True)
    return Graph(model)


def grid(scale: float, axis: int | None = None, low: int = -128, high: int = 127) -> Grid:
    value = np.array(scale, np.float32) if axis is None else np.full(24, scale, np.float32)
    return Grid(value, axis, low, high)


def forms() -> dict[str, Forms]:
    return {
        "layer": {("input", 0): grid(0.03), ("weight", 1): grid(0.02, 1)},
        "scores": {("input", 0): grid(0.01), ("input", 1): grid(0.04)},
        "context": {("input", 0): grid(1 / 127), ("input", 1): grid(0.08)},
        "next": {("input", 0): grid(0.05), ("weight", 1): grid(0.02)},
    }


def test_scales_and_factors() -> None:
    """Queries in steps of 0.01, halved on their way, keys of 0.04: the common scale is 0.02."""
    found = joint_codes(attention(ATTENTION), forms())
    assert set(found) == {"layer"}
    joint = found["layer"]
    assert float(joint.grid.scale) == pytest.approx(0.02)
    np.testing.assert_allclose(joint.factors, np.repeat([0.5 * 2, 0.5, 0.25], 8), rtol=1e-6)
    assert joint.scalings == {"Mul_6"}
    assert float(joint.read["next", 0].scale) == pytest.approx(0.05 / 4)
    assert float(joint.undone["next"]) == pytest.approx(4)
    assert {name for name, _ in joint.read} == {"scores", "context", "next"}


def test_the_rewritten_attention_is_the_same_function() -> None:
    """In floating point: factors into the weights, the scale of queries gone, the next layer undoing."""
    graph = attention(ATTENTION)
    joint = joint_codes(graph, forms())["layer"]
    rewritten = attention(ATTENTION.replace("f = Mul(q, scale)", "f = Identity(q)"))
    for name, factor in (("w", joint.factors), ("w2", joint.undone["next"])):
        rewritten.constants[name] = CONSTANTS[name] * factor
    x = np.random.default_rng(2).standard_normal((3, 5, 8)).astype(np.float32)
    wanted, found = (ReferenceEvaluator(g.finish()).run(None, {"x": x})[0] for g in (graph, rewritten))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def changed(name: str, key: tuple[str, int], new: Grid) -> Callable[[dict[str, Forms]], None]:
    return lambda held: held[name].update({key: new})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "outputs", "why"),
    [
        (f"{ATTENTION} e = Relu(v)", "float[batch, 5, 8] z, float[batch, 2, 5, 4] e", "something else reads"),
        (ATTENTION, "float[batch, 5, 8] z, float[batch, 5, 24] y", "it is an output"),
        (ATTENTION.replace("Mul(q, scale)", "Relu(q)"), "float[batch, 5, 8] z", "something computes between"),
        (ATTENTION.replace("z = MatMul(u, w2)", "z = Relu(u)"), "float[batch, 5, 8] z", "nothing undoes it"),
        (f"{ATTENTION} e = Relu(u)", "float[batch, 5, 8] z, float[batch, 5, 8] e", "the next is not alone"),
        (ATTENTION.replace("MatMul(p, v)", "MatMul(p, q)"), "float[batch, 5, 8] z", "queries are values too"),
    ],
)
def test_none_where(body: str, outputs: str, why: str) -> None:
    assert not joint_codes(attention(body, outputs), forms()), why


def test_a_factor_that_would_add_a_dimension_stays() -> None:
    """It makes tokens [batch, 5, 8] an array of four dimensions."""
    cut = "a, b, c = Split <axis = 2, num_outputs = 3> (y)"
    body = f"y = MatMul(x, w) {cut} k = Transpose <perm = [0, 2, 1]> (b) f = Mul(a, scale)"
    body += " s = MatMul(f, k) p = Softmax(s) o = MatMul(p, c) u = Reshape(o, flat) z = MatMul(u, w2)"
    assert joint_codes(attention(body), forms())
    assert not joint_codes(attention(body, scale=np.full((1, 1, 1, 1), 0.5, np.float32)), forms())


def test_a_layer_undoes_one_factor() -> None:
    """Two layers whose values meet in one product: the first takes a common scale, the second does not."""
    second = ATTENTION.split(" o = ")[0]
    for name in ("y", "r", "a", "b", "c", "q", "k", "v", "f", "s", "p"):
        second = re.sub(rf"\b{name}\b", f"{name}2", second)
    first = ATTENTION.split(" o = ")[0]
    values = (
        "vt = Transpose <perm = [0, 1, 3, 2]> (v) o = MatMul(vt, v2) u = Reshape(o, flat) z = MatMul(u, w3)"
    )
    ends = "e = Add(p, p2)"
    square = {"flat": np.array([0, 4, 8]), "w3": CONSTANTS["w2"]}
    outputs = "float[batch, 4, 8] z, float[batch, 2, 5, 5] e"
    graph = attention(f"{first} {second} {values} {ends}", outputs, **square)
    held = forms()
    by_output = {node.output[0]: node.name for node in graph.nodes}
    names = {"layer": by_output["y2"], "scores": by_output["s2"]}
    held |= {names[role]: {**held[role]} for role in names}
    held["context"] = {("input", 0): grid(0.08), ("input", 1): grid(0.06)}
    assert set(joint_codes(graph, held)) == {"layer"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (changed("scores", ("input", 0), grid(0.01, 1)), "a scale for each head"),
        (changed("context", ("input", 1), grid(0.1, None, 0, 255)), "a zero point"),
        (changed("scores", ("input", 1), grid(0.1, None, -8, 7)), "fewer bits"),
        (lambda held: held.pop("scores"), "a product in floating point"),
        (lambda held: held.pop("layer"), "the layer in floating point"),
    ],
)
def test_none_with(change: Callable[[dict[str, Forms]], object], why: str) -> None:
    held = forms()
    change(held)
    assert not joint_codes(attention(ATTENTION), held), why


def test_keys_and_values_of_another_layer_than_the_queries() -> None:
    """Keys keep their scale, since nothing else could undo it; values take it on."""
    cut = "r = Reshape(y, heads) b, c = Split <axis = 2, num_outputs = 2> (r)"
    query = "y2 = MatMul(x, w2) r2 = Reshape(y2, other) q = Transpose <perm = [0, 2, 1, 3]> (r2)"
    body = f"y = MatMul(x, w) {cut} {KEYS} {query} {SCORES} {BACK} z = MatMul(u, w2)"
    others = {"w": CONSTANTS["w"][:, :16], "heads": np.array([0, 5, 4, 4]), "other": np.array([0, 5, 2, 4])}
    (joint,) = joint_codes(attention(body, **others), forms()).values()
    assert float(joint.grid.scale) == pytest.approx(0.04)
    np.testing.assert_allclose(joint.factors, np.repeat([1, 0.5], 8), rtol=1e-6)
    assert not joint.scalings
