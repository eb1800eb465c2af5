"""The fast INT8 model: integer kernels for every product, nothing else quantized, scales migrated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny_deployed import Quantized, constants, kernels, of_type, sqnr
from tiny_quantized import Tiny, images, symmetric, write_recipe

from ptq2themoon.deploy.grid import Grid
from ptq2themoon.deploy.scale_migration import layernorm_migrations, scaled_parameters, scaled_weight
from ptq2themoon.graph.editing.onnx_graph import Graph, tensor_shapes
from ptq2themoon.graph.editing.onnx_run import FLOAT_KERNELS, INTEGER_KERNELS

PRODUCTS = ("PPQBiasFusedMatMul", "Gemm", "MatMul", "Conv")
CHANNELS = {"granularity": "per-channel", "observer": "minmax"}


@pytest.fixture(scope="module", params=["vit", "swin", "mobilevit", "deit_distilled", "vit_average_pool"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    return Quantized.make(tmp_path_factory.mktemp(request.param), request.param)


def test_all_products_run_on_product_kernels(family: Quantized, tmp_path: Path) -> None:
    made = family.deployed("fast")
    found = kernels(made.model, tmp_path)
    assert sum(found[kernel] for kernel in INTEGER_KERNELS) == len(of_type(family.model, *PRODUCTS))
    assert not [kernel for kernel in FLOAT_KERNELS if found[kernel]]
    types = {item.operator.name: item.operator.type for item in family.quantized}
    assert {made.placements[name].runs for name, kind in types.items() if kind in PRODUCTS} == {"integer"}


def test_a_convolution_of_patches_is_a_product(family: Quantized, tmp_path: Path) -> None:
    """So its output need not be quantized; MobileViT has other convolutions."""
    found = kernels(family.deployed("fast").model, tmp_path)
    convolutions = len(of_type(family.model, "Conv"))
    assert found["QLinearConv"] == (convolutions if convolutions > 1 else 0)


def test_a_fixed_batch_runs_on_product_kernels_too(tmp_path: Path) -> None:
    fixed = Quantized.make(tmp_path, "vit", dynamic_batch=False)
    found = kernels(fixed.deployed("fast").model, tmp_path)
    assert not [kernel for kernel in FLOAT_KERNELS if found[kernel]]
    assert sqnr(fixed.run(fixed.deployed("fast")), fixed.floating()) > 25


def test_what_is_no_product_stays_in_floating_point(family: Quantized, tmp_path: Path) -> None:
    made = family.deployed("fast")
    found = kernels(made.model, tmp_path)
    quantized_types = ("QLinearAdd", "QLinearMul", "QLinearSoftmax", "QLinearSigmoid", "QLinearLeakyRelu")
    assert not [kind for kind in quantized_types if kind in found]
    items = [item.operator for item in family.quantized]
    floating = {operator.name for operator in items if operator.type not in PRODUCTS}
    assert {made.placements[name].runs for name in floating} == {"float"}


def test_no_further_from_floating_point_than_the_simulation(family: Quantized) -> None:
    reference = family.floating()
    simulated = sqnr(family.simulated(family.images).numpy(), reference)
    assert sqnr(family.run(family.deployed("fast")), reference) > simulated
    assert sqnr(family.run(family.deployed("fast", "tensorrt")), reference) > simulated


def test_a_small_standard_file(family: Quantized) -> None:
    made = family.deployed("fast").model
    onnx.checker.check_model(made, full_check=True)
    assert {opset.domain for opset in made.opset_import} == {""}
    weights = sum(v.size for v in constants(family.model).values() if v.ndim > 1 and v.dtype == np.float32)
    codes = sum(v.size for v in constants(made).values() if v.ndim > 1 and v.dtype == np.int8)
    assert codes > 0.9 * weights


def test_every_operator_is_reported(family: Quantized) -> None:
    report = family.deployed("fast").report(item.operator for item in family.quantized)
    assert [entry["name"] for entry in report["operators"]] == [i.operator.name for i in family.quantized]
    assert {entry["runs"] for entry in report["operators"]} == {"integer", "float"}
    assert all(entry["why"] for entry in report["operators"])
    assert (report["mode"], report["profile"], report["opset"]) == ("fast", "onnxruntime", 20)


# Channel-wise activations -------------------------------------------------------------------------


def test_scales_per_channel_go_into_layernorms_and_multiplications(tiny: Tiny, tmp_path: Path) -> None:
    rule = {"select": {"role": ["qkv", "fc1", "fc2", "proj"], "operand": "input"}, **CHANNELS}
    made = Quantized.of(tiny, write_recipe(tmp_path, rule), (8, 8), images(12))
    deployed = made.deployed("fast")
    migrations = {moved.operator: (moved.kind, moved.into) for moved in deployed.migrations}
    for block in (0, 1):
        assert migrations.pop(tiny.role("qkv", block)) == ("layernorm", tiny.role("norm1", block))
        assert migrations.pop(tiny.role("fc1", block)) == ("layernorm", tiny.role("norm2", block))
        for role in ("proj", "fc2"):
            assert migrations.pop(tiny.role(role, block)) == ("multiplication", None)
    assert not migrations
    assert "scales of the input's channels" in deployed.placements[tiny.role("fc2", 0)].why
    assert len(of_type(deployed.model, "Mul")) == len(of_type(made.model, "Mul")) + 4
    assert sqnr(made.run(deployed), made.floating()) > 25
    found = kernels(deployed.model, tmp_path)
    assert sum(found[kernel] for kernel in INTEGER_KERNELS) == len(of_type(made.model, *PRODUCTS))


def test_scales_migrate_through_windows(tmp_path: Path) -> None:
    """Swin moves tokens between its LayerNorm and the layer; the channels stay last."""
    recipe = write_recipe(tmp_path, {"select": {"role": ["qkv", "fc1"], "operand": "input"}, **CHANNELS})
    made = Quantized.make(tmp_path, "swin", recipe)
    deployed = made.deployed("fast")
    assert {moved.kind for moved in deployed.migrations} == {"layernorm"}
    assert len(deployed.migrations) == 8
    assert sqnr(made.run(deployed), made.floating()) > 25


def layer_after_norm(body: str, **constants: np.ndarray) -> onnx.ModelProto:
    """`n` is a LayerNorm of x [batch, 4, 8] with parameters gamma and beta; the layer's name is `layer`."""
    norm = "n = LayerNormalization <axis = -1> (x, gamma, beta)"
    opset = '<ir_version: 9, opset_import: ["": 20]>'
    model = onnx.parser.parse_model(
        f"{opset} g (float[batch, 4, 8] x) => (float[batch, a, c] y) {{ {norm} {body} }}"
    )
    model.graph.node[0].name = "norm"
    next(node for node in model.graph.node if "MatMul" in node.op_type).name = "layer"
    model.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def test_scale_migration_is_exact() -> None:
    """LayerNorm divided, weights multiplied: the same product within float's rounding."""
    generator = np.random.default_rng(0)
    gamma, beta = generator.standard_normal((2, 8)).astype(np.float32)
    weight, x = (generator.standard_normal(s).astype(np.float32) for s in ((8, 3), (2, 4, 8)))
    grid = Grid(np.geomspace(1e-4, 3, 8).astype(np.float32), 2, -128, 127)
    model = layer_after_norm("y = MatMul(n, w)", gamma=gamma, beta=beta, w=weight)
    graph = Graph(model)
    assert set(layernorm_migrations(graph, tensor_shapes(model), {"layer": grid})) == {"norm"}
    gamma, beta = scaled_parameters(graph, graph.nodes[0], grid)
    migrated = layer_after_norm("y = MatMul(n, w)", gamma=gamma, beta=beta, w=scaled_weight(weight, grid))
    wanted, found = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (model, migrated))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("m = MatMul(n, w) r = Relu(n) y = Add(m, r)", "something else reads it too"),
        ("m = MatMul(n, w) k = MatMul(n, w) y = Add(m, k)", "and a layer without that grid"),
        ("t = Transpose <perm = [0, 2, 1]> (n) y = MatMul(t, u)", "the channels are not the last axis"),
        ("t = Transpose <perm = [0, 2, 1]> (n) y = MatMul(n, t)", "it is both sides of the product"),
        ("r = Relu(n) y = MatMul(r, w)", "something computes in between"),
    ],
)
def test_no_scale_migration_where(body: str, why: str) -> None:
    shapes = {"gamma": 8, "beta": 8, "w": (8, 8), "u": (4, 8)}
    used = {name: np.ones(s, np.float32) for name, s in shapes.items() if s == 8 or f", {name})" in body}
    model = layer_after_norm(body, **used)
    grid = Grid(np.ones(8, np.float32), 2, -128, 127)
    assert not layernorm_migrations(Graph(model), tensor_shapes(model), {"layer": grid}), why


def test_weights_per_input_channel_are_quantized_again(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, {"select": {"role": "proj", "operand": "weight"}, **CHANNELS, "weight_axis": "input"}
    )
    made = Quantized.of(tiny, recipe, (8, 8), images(12))
    deployed = made.deployed("fast")
    assert "quantized again per output channel" in deployed.placements[tiny.role("proj", 0)].why
    assert sqnr(made.run(deployed), made.floating()) > 25


def test_bits_are_those_of_the_recipe(tiny: Tiny, tmp_path: Path) -> None:
    rule = {"select": {"role": "fc2", "operand": "input"}, **CHANNELS}
    made = Quantized.of(tiny, write_recipe(tmp_path, rule), (4, 6), images(12))
    model = made.deployed("fast").model
    codes = [v for v in constants(model).values() if v.dtype == np.int8 and v.ndim > 1]
    assert all(v.min() >= -8 and v.max() <= 7 for v in codes)
    assert len(of_type(model, "Clip")) == len(of_type(model, "QuantizeLinear"))


def test_what_the_recipe_leaves_out_stays_in_floating_point(tiny: Tiny, tmp_path: Path) -> None:
    rules = [
        {"select": {"role": "fc1", "operand": "weight"}, "quantize": False},
        {"select": {"role": "attn_context", "operand": "input"}, **CHANNELS},
        {"select": {"role": "proj"}, "bits": 10},
    ]
    made = Quantized.of(tiny, write_recipe(tmp_path, *rules), (8, 8), images(12))
    placements = made.deployed("fast").placements
    assert placements[tiny.role("fc1", 0)] == ("float", "the recipe leaves an input in floating point")
    assert placements[tiny.role("proj", 1)] == ("float", "more than 8 bits")
    assert "cannot take out" in placements[tiny.role("attn_context", 0)].why
    assert sqnr(made.run(made.deployed("fast")), made.floating()) > 25


def test_a_bias_that_no_integer_holds(tiny: Tiny) -> None:
    """A head that was never trained: its weights have next to no scale."""
    made = Quantized.of(tiny, "vanilla", (8, 8), images(12))
    head = next(item for item in made.quantized if item.operator.role == "head")
    weight = next(tensor for tensor in head.tensors if tensor.operand == "weight")
    weight.quantizer = symmetric(weight, torch.tensor(1e-12))
    bias = made.model.graph.node[-1].input[2]
    assert sqnr(made.run(made.deployed("fast")), np.tile(constants(made.model)[bias], (3, 1))) > 60


# TensorRT -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["faithful", "fast"])
@pytest.mark.parametrize("recipe", ["vanilla", "customized"])
def test_tensorrt_s_rules(tmp_path: Path, mode: str, recipe: str) -> None:
    """int8, zero points 0, activations with one scale, weights with one per output channel."""
    made = Quantized.of(Tiny.make(tmp_path, depth=7), recipe, (8, 8), images(12))
    model = made.deployed(mode, "tensorrt").model  # type: ignore[arg-type]
    values = constants(model)
    for node in of_type(model, "QuantizeLinear"):
        assert values[node.input[1]].ndim == 0
        assert values[node.input[2]].dtype == np.int8
        assert values[node.input[2]] == 0
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in of_type(model, "DequantizeLinear"):
        assert values[node.input[2]].dtype == np.int8
        assert not values[node.input[2]].any()
        if node.input[0] not in values:
            assert producers[node.input[0]].op_type == "QuantizeLinear"
            assert node.input[1:] == producers[node.input[0]].input[1:]
    axes = {"MatMul": 1, "Conv": 0}
    weights = [
        (axes[node.op_type], producers[node.input[1]])
        for node in of_type(model, *axes)
        if node.input[1] in producers and producers[node.input[1]].op_type == "DequantizeLinear"
    ]
    weights = [(axis, dq) for axis, dq in weights if dq.input[0] in values]
    assert len(weights) >= 28
    for axis, dq in weights:
        assert values[dq.input[1]].shape == (values[dq.input[0]].shape[axis],)
        assert onnx.helper.get_node_attr_value(dq, "axis") == axis
    assert sqnr(made.run(model, optimise=False), made.floating()) > 25


def test_convolutions_that_stay_in_floating_point(tmp_path: Path) -> None:
    rule = {"select": {"role": "patch_embed", "operand": "input"}, **CHANNELS}
    made = Quantized.make(tmp_path, "vit", write_recipe(tmp_path, rule))
    assert "cannot take out" in made.deployed("fast").placements["patch_embed"].why
    rule = {"select": {"operand": "output"}, "quantize": False}
    made = Quantized.make(tmp_path, "mobilevit", write_recipe(tmp_path, rule))
    deployed = made.deployed("fast")
    placements = {deployed.placements[i.operator.name] for i in made.quantized if i.operator.type == "Conv"}
    assert placements == {("float", "a convolution needs an output with one scale to run in integers")}
    assert sqnr(made.run(deployed), made.floating()) > 30


@pytest.mark.parametrize(
    ("axis", "why"), [("output", "for each output channel"), ("input", "quantized again")]
)
def test_weights_of_a_convolution_per_channel(tmp_path: Path, axis: str, why: str) -> None:
    rule = {"select": {"operand": "weight"}, **CHANNELS, "weight_axis": axis}
    made = Quantized.make(tmp_path, "mobilevit", write_recipe(tmp_path, rule))
    deployed = made.deployed("fast")
    placements = [deployed.placements[i.operator.name] for i in made.quantized if i.operator.type == "Conv"]
    assert all(why in place.why for place in placements)
    assert sqnr(made.run(deployed), made.floating()) > 30
