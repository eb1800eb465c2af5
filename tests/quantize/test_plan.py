"""Which tensors a recipe quantizes, and how: nothing left out, ranges, bits and axes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from tiny_quantized import MOVING, Tiny, write_recipe

from ptq2themoon.graph.meaning.nodes import Node
from ptq2themoon.quantize.plan import plan
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.recipes import Recipe

Place = tuple[str, str, int]


def places(planned: list[QuantizedOperator]) -> dict[Place, QuantizedTensor]:
    """By operator, side and position."""
    return {
        (item.operator.name, "output" if tensor.operand == "output" else "input", tensor.position): tensor
        for item in planned
        for tensor in item.tensors
    }


def settings(tensor: QuantizedTensor) -> tuple[int, int, int, str, int | None, str, float]:
    spec = tensor.spec
    bounds = spec.bits, spec.quant_min, spec.quant_max
    return *bounds, tensor.granularity, tensor.axis, spec.observer, spec.percentile


def float_places(path: Path) -> dict[Place, str]:
    """Every input and output of the operators that compute, and the tensor's name, from the file alone."""
    found = {}
    for node in onnx.load(path).graph.node:
        if node.op_type not in MOVING:
            found |= {(node.name, "input", i): name for i, name in enumerate(node.input)}
            found |= {(node.name, "output", i): name for i, name in enumerate(node.output)}
    return found


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of all tensors, the batch being one."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
    found = {tensor.name: tuple(tensor.dims) for tensor in model.initializer}
    for value in [*model.input, *model.value_info, *model.output]:
        found[value.name] = tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
    return found


@pytest.fixture
def per_channel(tmp_path: Path) -> Recipe:
    return write_recipe(tmp_path, granularity="per-channel", observer="minmax")


# Vanilla ------------------------------------------------------------------------------------------


def test_vanilla_leaves_no_input_parameter_or_output_in_float(tiny: Tiny) -> None:
    planned, wanted = places(tiny.plan("vanilla")), float_places(tiny.path)
    assert planned.keys() == wanted.keys()
    assert len(wanted) == 101  # of 30 operators, counted by hand
    assert sum(tensor.operand in ("weight", "bias") for tensor in planned.values()) == 33


def test_vanilla_has_the_settings_of_the_study(tiny: Tiny) -> None:
    tensors = places(tiny.plan("vanilla")).values()
    assert {settings(tensor) for tensor in tensors} == {
        (8, -128, 127, "per-tensor", None, "percentile", 99.99)
    }
    assert {(t.spec.kind, t.spec.symmetry, t.spec.codes) for t in tensors} == {
        ("uniform", "symmetric", "signed")
    }
    assert all(tensor.quantizer is None and tensor.scale is None for tensor in tensors)


def test_operators_stand_in_graph_order_with_inputs_first(tiny: Tiny) -> None:
    planned = tiny.plan("vanilla")
    assert [item.operator for item in planned] == [o for o in tiny.operators if o.type not in MOVING]
    for item in planned:
        sides = [tensor.operand == "output" for tensor in item.tensors]
        assert sides == sorted(sides)
        assert [t.position for t in item.tensors if t.operand != "output"] == list(range(sides.count(False)))


def test_parameters_are_weights_and_biases(tiny: Tiny) -> None:
    constants = {tensor.name for tensor in onnx.load(tiny.path).graph.initializer}
    names = float_places(tiny.path)
    for place, tensor in places(tiny.plan("vanilla")).items():
        assert (tensor.operand in ("weight", "bias")) == (names[place] in constants), place
        assert (tensor.operand == "bias") == (names[place] in constants and place[2] == 2), place


# Per channel --------------------------------------------------------------------------------------


def test_layernorm_is_per_channel_on_norms_and_residuals_only(tiny: Tiny) -> None:
    inside = ("norm1", "norm2", "residual1", "residual2")
    wanted = {tiny.role(role, block) for role in inside for block in (0, 1)} | {tiny.role("norm")}
    ranks = {place: len(shapes(tiny.path)[name]) for place, name in float_places(tiny.path).items()}
    for place, tensor in places(tiny.plan("layernorm")).items():
        if place[0] in wanted:
            last = ranks[place] - 1
            assert settings(tensor)[3:6] == ("per-channel", last, "minmax"), place
        else:
            assert settings(tensor)[3:] == ("per-tensor", None, "percentile", 99.99), place


def axes(tiny: Tiny, recipe: Recipe, name: str) -> dict[tuple[str, int], int | None]:
    planned = places(tiny.plan(recipe))
    return {(t.operand, t.position): t.axis for (operator, _, _), t in planned.items() if operator == name}


def test_channels_of_activations_are_last_but_of_images_second(tiny: Tiny, per_channel: Recipe) -> None:
    assert axes(tiny, per_channel, "patch_embed") == {
        ("input", 0): 1, ("weight", 1): 1, ("bias", 2): 0, ("output", 0): 1,
    }  # fmt: skip
    assert axes(tiny, per_channel, "pos_add") == {("input", 0): 2, ("weight", 1): 2, ("output", 0): 2}
    assert axes(tiny, per_channel, tiny.role("softmax", 0)) == {("input", 0): 3, ("output", 0): 3}
    assert axes(tiny, per_channel, tiny.role("norm1", 0)) == {
        ("input", 0): 2, ("weight", 1): 0, ("bias", 2): 0, ("output", 0): 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("side", "matmul", "conv", "transposed_gemm"), [("input", 0, 1, 1), ("output", 1, 0, 0)]
)
def test_weight_axis_is_the_side_that_the_recipe_names(
    tiny: Tiny, tmp_path: Path, side: str, matmul: int, conv: int, transposed_gemm: int
) -> None:
    recipe = write_recipe(tmp_path, granularity="per-channel", observer="minmax", weight_axis=side)
    assert axes(tiny, recipe, tiny.role("fc2", 1))["weight", 1] == matmul
    assert axes(tiny, recipe, "patch_embed")["weight", 1] == conv
    assert tiny.nodes["head"].transposed_weight
    assert axes(tiny, recipe, "head")["weight", 1] == transposed_gemm
    gemm = Node("Gemm", [False, True, True], [2, 2, 1], [2], transposed_weight=False)
    (plain,) = plan([Operator("gemm", "Gemm", "head")], {"gemm": gemm}, recipe, 8, 8)
    assert plain.tensors[1].axis == matmul


def test_every_axis_is_one_of_its_tensor_s_own(tiny: Tiny, per_channel: Recipe) -> None:
    names, sizes = float_places(tiny.path), shapes(tiny.path)
    for place, tensor in places(tiny.plan(per_channel)).items():
        rank = len(sizes[names[place]])
        assert (
            (tensor.granularity, tensor.axis) == ("per-tensor", None)
            if not rank
            else tensor.axis in range(rank)
        )


def test_a_scalar_has_no_channels(tiny: Tiny, per_channel: Recipe) -> None:
    scale = places(tiny.plan(per_channel))[tiny.role("attn_scale", 0), "input", 1]
    assert (scale.operand, scale.granularity, scale.axis) == ("weight", "per-tensor", None)


# Bits, and what stays in floating point -----------------------------------------------------------


def test_w4a8_has_weights_of_4_bits_and_biases_of_8(tiny: Tiny) -> None:
    found = {(t.operand, *settings(t)[:3]) for t in places(tiny.plan("vanilla", (4, 8))).values()}
    assert found == {
        ("input", 8, -128, 127), ("weight", 4, -8, 7), ("bias", 8, -128, 127), ("output", 8, -128, 127),
    }  # fmt: skip


def test_w8a6_has_activations_of_6_bits(tiny: Tiny) -> None:
    found = {(t.operand, *settings(t)[1:3]) for t in places(tiny.plan("vanilla", (8, 6))).values()}
    assert found == {
        ("input", -32, 31), ("weight", -128, 127), ("bias", -128, 127), ("output", -32, 31),
    }  # fmt: skip


def test_what_a_recipe_leaves_in_floating_point_is_not_planned(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        {"select": {"role": "softmax"}, "quantize": False},
        {"select": {"operand": ["weight", "bias"]}, "quantize": False},
    )
    planned = tiny.plan(recipe)
    assert not any(item.operator.role == "softmax" for item in planned)
    assert {tensor.operand for item in planned for tensor in item.tensors} == {"input", "output"}


def test_a_recipe_that_quantizes_nothing_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    everything = write_recipe(tmp_path, {"select": {}, "quantize": False})
    with pytest.raises(UserError, match=r"recipe0.yaml: quantizes nothing; "):
        tiny.plan(everything)


def test_a_rule_whose_operators_lack_the_operand_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"select": {"role": "softmax", "operand": "weight"}, "bits": 4})
    message = (
        r"rules\[0\].select.operand: selects nothing: no weight there; these operators have input, output"
    )
    with pytest.raises(UserError, match=message):
        tiny.plan(recipe)


def test_a_recipe_for_a_deeper_model_is_refused(tiny: Tiny) -> None:
    with pytest.raises(
        UserError, match=r"customized\.yaml: .*block: selects no operator with 5; nearest valid: 1"
    ):
        tiny.plan("customized")


def test_a_rule_for_operators_that_compute_nothing_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"select": {"role": "other"}, "bits": 4})
    with pytest.raises(UserError, match="selects no operator with 'other'"):
        tiny.plan(recipe)


def test_the_axes_of_an_average_pool_are_no_weight(tmp_path: Path) -> None:
    pooled = Tiny.make(tmp_path, global_pool="avg", class_token=False)
    (name,) = (o.name for o in pooled.operators if o.type == "ReduceMean")
    found = {
        place: tensor.operand for place, tensor in places(pooled.plan("vanilla")).items() if place[0] == name
    }
    assert found == {(name, "input", 0): "input", (name, "output", 0): "output"}


def test_an_exponent_is_no_weight(tmp_path: Path) -> None:
    square = Node("Pow", [False, True], [3, 0], [3], transposed_weight=False)
    (planned,) = plan([Operator("square", "Pow")], {"square": square}, write_recipe(tmp_path), 8, 8)
    assert [(tensor.operand, tensor.position) for tensor in planned.tensors] == [("input", 0), ("output", 0)]
