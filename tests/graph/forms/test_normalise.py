"""Shape arithmetic folded away, a free batch dimension, the same outputs."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_models import random_images, run_all, tiny_module, to_onnx, written

from ptq2themoon.graph.editing.onnx_graph import Graph
from ptq2themoon.graph.forms.normalise import fold_constants, normalise
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError

TOLERANCE = 1e-5


def types(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def batch_of(model: onnx.ModelProto) -> list[str | int]:
    values = [*model.graph.input, *model.graph.output]
    dims = [value.type.tensor_type.shape.dim[0] for value in values]
    return [dim.dim_param or dim.dim_value for dim in dims]


def assert_alike(expected: onnx.ModelProto, got: onnx.ModelProto, *shape: int, at_once: bool = True) -> None:
    """Equal outputs at batch 1, 2 and 5, and every row what it is alone."""
    onnx.checker.check_model(got, full_check=True)
    for batch in (1, 2, 5):
        x = random_images(batch, *shape, seed=batch)
        outputs = run_all(got, x)
        rows = [
            np.concatenate(rows) for rows in zip(*(run_all(expected, row[None]) for row in x), strict=True)
        ]
        for row, output in zip(rows, outputs, strict=True):
            np.testing.assert_allclose(output, row, atol=TOLERANCE)
        if at_once:
            np.testing.assert_allclose(outputs[0], run_all(expected, x)[0], atol=TOLERANCE)


def test_shape_chains_of_an_export_are_folded(tiny) -> None:
    before, after = types(tiny.exported), types(tiny.normalised)
    assert before["Shape"] > 1
    assert before["Constant"] > 10
    # What is left reads the batch size, for the class token.
    assert (after["Shape"], after["Gather"], after["Expand"]) == (1, 2, 1)  # the other Gather: the token
    gone = {"Constant", "ConstantOfShape", "Cast", "Equal", "Where", "Unsqueeze", "Identity", "Range"}
    assert not gone & after.keys()
    arithmetic = ("MatMul", "Softmax", "Erf", "Sqrt", "ReduceMean", "Conv", "Gemm")
    assert [after[name] for name in arithmetic] == [before[name] for name in arithmetic]
    assert before["Mul"] - after["Mul"] > 0  # shapes were multiplied


def test_header(tiny) -> None:
    assert [(item.domain, item.version) for item in tiny.normalised.opset_import] == [("", 20)]
    assert tiny.normalised.ir_version >= 9
    assert batch_of(tiny.normalised) == ["batch", "batch"]
    assert [dim.dim_value for dim in tiny.normalised.graph.input[0].type.tensor_type.shape.dim[1:]] == [
        1,
        16,
        16,
    ]


def test_batch_is_free(tiny) -> None:
    assert_alike(tiny.exported, tiny.normalised)


@pytest.mark.parametrize(
    "overrides",
    [
        {"reg_tokens": 2},
        {"class_token": False, "global_pool": "avg"},
        {"no_embed_class": True, "reg_tokens": 3},
        {"num_classes": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_batch_is_free_however_the_model_was_exported(overrides: dict, dynamic_batch: bool) -> None:
    exported = to_onnx(tiny_module(**overrides), dynamic_batch=dynamic_batch)
    normalised = normalise(exported)
    assert batch_of(normalised) == ["batch", "batch"]
    assert_alike(exported, normalised, at_once=dynamic_batch)


def test_a_fixed_batch_of_one_is_freed() -> None:
    exported = to_onnx(tiny_module(), dynamic_batch=False)
    assert batch_of(exported) == [1, 1]
    normalised = normalise(exported)
    assert batch_of(normalised) == ["batch", "batch"]
    assert_alike(exported, normalised, at_once=False)


@pytest.mark.parametrize("opset", [14, 17])
def test_other_opsets_give_the_same_function(tiny, opset: int) -> None:
    normalised = normalise(to_onnx(tiny_module(), opset=opset))
    assert normalised.opset_import[0].version == 20
    assert_alike(tiny.exported, normalised)


def test_constants_as_nodes_become_initializers(tiny) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny.exported)
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer
    ]
    nodes += model.graph.node
    for field in ("initializer", "node"):
        model.graph.ClearField(field)
    model.graph.node.extend(nodes)
    normalised = normalise(model)
    assert types(normalised) == types(tiny.normalised)
    assert_alike(tiny.exported, normalised)


def test_twice_is_once(tiny) -> None:
    again = normalise(tiny.normalised)
    assert types(again) == types(tiny.normalised)
    assert [node.name for node in again.graph.node] == [node.name for node in tiny.normalised.graph.node]
    assert len(again.graph.initializer) == len(tiny.normalised.graph.initializer)
    assert_alike(tiny.normalised, again)


def test_the_model_given_stays(tiny) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny.exported)
    for opset_of in (model, normalise(model)):  # also where no conversion makes a copy
        before = opset_of.SerializeToString(deterministic=True)
        normalise(opset_of)
        assert opset_of.SerializeToString(deterministic=True) == before


def test_a_constant_may_be_concatenated_twice() -> None:
    token = {"token": random_images(1, 2, 8)}
    body = "a = Concat <axis = 1> (token, x)\nb = Neg (a)\ny = Concat <axis = 1> (b, token, token)"
    normalised = normalise(written(body, token))
    assert types(normalised)["Expand"] == 3
    assert_alike(written(body, token), normalised, 4, 8, at_once=False)


def test_activations_expanded_within_a_row() -> None:
    """As Swin v2 divides by a norm: the shape that is asked for has the exported number of rows."""
    body = "n = ReduceSum <keepdims = 1> (x, last)\ns = Shape (x)\ne = Expand (n, s)\ny = Sub (x, e)"
    model = written(body, {"last": np.array([-1])})
    normalised = normalise(model)
    assert types(normalised) == {"ReduceSum": 1, "Expand": 1, "Sub": 1}
    assert_alike(model, normalised, 4, 8)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (12, 3), (6, 8), (5, 41)])
def test_sizes_to_resize_to_do_not_fix_the_batch(height: int, width: int) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[1, 4, 6, 8] x) => (float[1, 4, h, w] y)'
        '{ y = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (x, , , sizes) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 4, height, width]), "sizes"))
    normalised = normalise(model)
    assert run_all(normalised, random_images(2, 4, 6, 8))[0].shape == (2, 4, height, width)
    assert_alike(model, normalised, 4, 6, 8, at_once=False)


def test_a_constant_joined_to_shapes_or_along_the_batch_is_not_expanded() -> None:
    body = "a = Concat <axis = 0> (row, x)\ny = Neg (a)"
    assert types(normalise(written(body, {"row": random_images(1, 4, 8)}))) == {"Concat": 1, "Neg": 1}


def test_identities_and_dead_ends_go() -> None:
    body = "a = Identity (x)\nb = Neg (a)\ndead = Exp (b)\nc = Identity (b)\ny = Identity (c)"
    normalised = normalise(written(body, {}))
    assert types(normalised) == {"Neg": 1}
    assert_alike(written(body, {}), normalised, 4, 8)


def test_what_is_known_only_after_folding_is_folded_too() -> None:
    """The shape of `b` needs the value of a chain that itself starts with a shape."""
    body = """
        s = Shape (x)   tail = Slice (s, one, three)   lead = ReduceProd <keepdims = 1> (tail)
        to = Concat <axis = 0> (minus, lead)   a = Reshape (x, to)
        t = Shape (a)   last = Gather (t, one)   f = Cast <to = 1> (last)   b = Div (a, f)
        y = Reshape (b, back)
    """
    constants = {"one": [1], "three": [3], "minus": [-1], "back": [-1, 4, 8]}
    model = written(body, {name: np.array(value, dtype=np.int64) for name, value in constants.items()})
    normalised = normalise(model)
    assert types(normalised) == {"Reshape": 2, "Div": 1}
    assert_alike(model, normalised, 4, 8)


def test_random_and_custom_operators_are_not_folded() -> None:
    """Their value is not in the file."""
    model = written("noise = RandomNormal <shape = [4, 8]> ()\ny = Add (x, noise)", {})
    assert types(fold_constants(model))["RandomNormal"] == 1
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20, "other": 1]> g (float[1, 8] x) => (float[1, 8] y)'
        "<float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}> { v = other.Mystery (w) y = Add (x, v) }"
    )
    assert types(fold_constants(model)) == {"Mystery": 1, "Add": 1}


def test_several_inputs_are_refused() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[1, 8] image, float[1, 8] mask) => (float[1, 8] y)'
        "{ y = Mul (image, mask) }"
    )
    with pytest.raises(UserError, match=r"2 inputs \['image', 'mask'\]; one image input"):
        normalise(model)


def test_initializers_listed_as_inputs_are_no_inputs() -> None:
    """As exporters of before IR version 4 write them."""
    model = written("y = Mul (x, w)", {"w": random_images(4, 8)})
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 8]))
    normalised = normalise(model)
    assert [value.name for value in normalised.graph.input] == ["x"]
    assert list(numpy_helper.to_array(normalised.graph.initializer[0]).shape) == [4, 8]
    assert_alike(model, normalised, 4, 8)


def test_a_free_image_size_is_refused() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[batch, 4, width] x) => (float[batch, n] y)'
        "<int64[2] to = {0, -1}> { y = Reshape (x, to) }"
    )
    model.graph.node[0].name = "flatten"
    with pytest.raises(UserError, match=r"operator 'flatten' \(Reshape\).*fix the input size"):
        normalise(model)


@pytest.mark.parametrize(
    ("axes", "keepdims", "found"),
    [
        ([2, 3], 1, "GlobalAveragePool"),
        ([-1, -2], 1, "GlobalAveragePool"),
        ([2, 3], 0, "ReduceMean"),
        ([1, 2], 1, "ReduceMean"),
        ([3], 1, "ReduceMean"),
    ],
)
def test_the_mean_over_an_image_has_one_form(axes: list[int], keepdims: int, found: str) -> None:
    out = "a, b" if not keepdims else "a, b, c, d"
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 20]> g (float[batch, 4, 6, 8] x) => (float[{out}] y)'
        f"<int64[{len(axes)}] axes = {{{', '.join(map(str, axes))}}}>"
        f"{{ y = ReduceMean <keepdims = {keepdims}> (x, axes) }}"
    )
    normalised = normalise(model)
    assert types(normalised) == {found: 1}
    assert_alike(model, normalised, 4, 6, 8)


def test_folding_takes_time_by_the_number_of_operators() -> None:
    """Thousands of copies and of operators on constants, each of which once cost a walk along all."""
    copies = [helper.make_node("Identity", [f"i{k}" if k else "x"], [f"i{k + 1}"]) for k in range(4000)]
    sums = [helper.make_node("Add", [f"s{k}" if k else "one", "one"], [f"s{k + 1}"]) for k in range(2000)]
    end = helper.make_node("Add", ["i4000", "s2000"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    one = numpy_helper.from_array(np.float32(1), "one")
    graph = helper.make_graph([*copies, *sums, end], "g", values[:1], values[1:], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    start = time.process_time()
    folded = fold_constants(model)
    assert time.process_time() - start < 5
    assert [(node.op_type, list(node.input)) for node in folded.graph.node] == [("Add", ["x", "s2000"])]
    assert float(Graph(folded).constants["s2000"]) == 2001


@pytest.mark.parametrize(
    ("fill", "widths", "kept"),
    [
        (-np.inf, [0, 0, 1, 0, 0, 0, 1, 1], False),
        (np.finfo(np.float32).min, [0, 0, 0, 1, 0, 0, 0, 2], False),
        (0.0, [0, 0, 1, 0, 0, 0, 1, 1], True),
        (-np.inf, [0, 0, 3, 0, 0, 0, 0, 0], True),
    ],
    ids=["infinity", "least number", "zero", "wider than the kernel"],
)
def test_a_pool_pads_by_itself(fill: float, widths: list[int], kept: bool) -> None:
    """As hybrids of ResNet and ViT are exported; a calibration would meet the infinity before the pool."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[batch, 2, 6, 6] x) => (float[batch, 2, h, w] y) {'
        "p = Pad (x, widths, fill) y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (p) }"
    )
    constants = {"widths": np.array(widths), "fill": np.array(fill, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())
    x = random_images(3, 2, 6, 6)
    normalised = normalise(model)
    assert [node.op_type for node in normalised.graph.node] == ["Pad", "MaxPool"][not kept :]
    (expected,) = run_all(model, x)
    np.testing.assert_array_equal(run_all(normalised, x)[0], expected)
    if not kept:
        simulated = SimulatedModel(normalised, "cpu")(torch.from_numpy(x)).numpy()
        np.testing.assert_array_equal(simulated, expected)
