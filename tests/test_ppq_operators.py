"""Operators that we give PPQ, and those of its own that other models bring, held to ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_quantized import write_recipe

from ptq2themoon.graph.editing.onnx_run import run_onnx
from ptq2themoon.graph.meaning.nodes import read_nodes
from ptq2themoon.quantize.calibration import calibrate
from ptq2themoon.quantize.plan import QUANTIZABLE_TYPES, plan
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.operators import Operator

RNG = np.random.default_rng(3)
Case = tuple[str, np.ndarray, list[np.ndarray | None], dict[str, Any]]


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: Any) -> np.ndarray:
    return np.array(values, dtype=np.int64)


TOKENS, IMAGE, DEEP = floats(2, 5, 6), floats(2, 3, 8, 8), floats(2, 8, 4, 4)
HALF, KERNEL = np.float32(0.5), [3, 3]


def resized(mode: str, transformation: str, size: np.ndarray, **more: Any) -> Case:
    attributes = {"mode": mode, "coordinate_transformation_mode": transformation, **more}
    inputs = [None, size, None] if size.dtype == np.float32 else [None, None, size]
    return "Resize", IMAGE, inputs, attributes


TWICE = np.array([1, 1, 2, 2], dtype=np.float32)
ODD = ints(2, 3, 5, 11)
RESIZE = {
    f"{mode} {transformation} {name}": resized(mode, transformation, size)
    for mode in ("nearest", "linear", "cubic")
    for transformation in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    for name, size in (("scales", TWICE), ("sizes", ODD))
}
CASES: dict[str, Case] = {
    "Gelu": ("Gelu", TOKENS, [], {}),
    "Gelu, tanh": ("Gelu", TOKENS, [], {"approximate": "tanh"}),
    "Mod": ("Mod", TOKENS, [HALF], {"fmod": 1}),
    "Split, uneven": ("Split", TOKENS, [], {"axis": 1, "num_outputs": 2}),
    "Split, sizes": ("Split", TOKENS, [ints(1, 4)], {"axis": 1}),
    "Einsum": ("Einsum", TOKENS, [floats(6, 4)], {"equation": "bij,jk->bik"}),
    "Pad": ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 4), np.float32(1)], {}),
    "Pad, axes": ("Pad", IMAGE, [ints(1, 2), None, ints(-1)], {}),
    "Pad, edge": ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 4)], {"mode": "edge"}),
    "Pad, reflect": ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 4)], {"mode": "reflect"}),
    "GatherND": ("GatherND", TOKENS, [ints([0, 1], [1, 4])], {}),
    "GatherND, batch": ("GatherND", TOKENS, [ints([[1], [2]], [[4], [0]])], {"batch_dims": 1}),
    "Gather, from the end": ("Gather", TOKENS, [ints(-1, 0)], {"axis": 1}),
    "Gather, last axis": ("Gather", TOKENS, [ints(2, 0)], {"axis": -1}),
    "Gather, one of an axis from the end": ("Gather", TOKENS, [ints(-2)[0]], {"axis": -2}),
    "Gather, a table": ("Gather", TOKENS, [ints([0, 1], [4, -1])], {"axis": 1}),
    **{
        f"{kind}, {axes}, {keep}": (kind, TOKENS, [ints(*axes)], {"keepdims": keep})
        for kind in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2")
        for axes, keep in (((1,), 0), ((-1,), 1), ((1, 2), 1))
    },
    "AveragePool": ("AveragePool", IMAGE, [], {"kernel_shape": KERNEL, "pads": [1, 1, 1, 1]}),
    "AveragePool, pads count": (
        "AveragePool", IMAGE, [], {"kernel_shape": KERNEL, "pads": [1, 1, 1, 1], "count_include_pad": 1}
    ),
    "GlobalAveragePool": ("GlobalAveragePool", IMAGE, [], {}),
    "MaxPool": ("MaxPool", IMAGE, [], {"kernel_shape": KERNEL, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "BatchNormalization": (
        "BatchNormalization", IMAGE, [floats(3), floats(3), floats(3), np.abs(floats(3)) + HALF], {}
    ),
    "PRelu": ("PRelu", IMAGE, [floats(3, 1, 1)], {}),
    "Conv, depthwise": ("Conv", IMAGE, [floats(3, 1, 3, 3)], {"group": 3, "pads": [1, 1, 1, 1]}),
    "Conv, SAME_UPPER": ("Conv", IMAGE, [floats(4, 3, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "Conv, SAME_LOWER": ("Conv", IMAGE, [floats(4, 3, 4, 4)], {"auto_pad": "SAME_LOWER"}),
    "Conv, VALID": ("Conv", IMAGE, [floats(4, 3, 4, 4)], {"auto_pad": "VALID"}),
    "DepthToSpace": ("DepthToSpace", DEEP, [], {"blocksize": 2}),
    "DepthToSpace, CRD": ("DepthToSpace", DEEP, [], {"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": ("SpaceToDepth", IMAGE, [], {"blocksize": 2}),
    "Clip, upper": ("Clip", TOKENS, [None, HALF], {}),
    "Clip, lower": ("Clip", TOKENS, [np.float32(0)], {}),
    "HardSigmoid": ("HardSigmoid", TOKENS, [], {"alpha": 1 / 6}),
    **{
        kind: (kind, TOKENS, [], {})
        for kind in ("Sigmoid", "HardSwish", "Mish", "Elu", "Softplus", "LeakyRelu", "Exp", "Neg", "Abs",
                     "Round", "Sign", "Ceil", "Floor", "Tanh", "Reciprocal")
    },
    "Max": ("Max", TOKENS, [floats(6)], {}),
    "Min": ("Min", TOKENS, [floats(6)], {}),
    **{kind: (kind, TOKENS, [floats(6)], {}) for kind in ("GreaterOrEqual", "LessOrEqual", "Greater")},
    "IsNaN": ("IsNaN", np.where(TOKENS > 0, np.float32("nan"), TOKENS), [], {}),
    "nearest, floor": resized("nearest", "asymmetric", TWICE, nearest_mode="floor"),
    "nearest, ceil": resized("nearest", "half_pixel", ODD, nearest_mode="ceil"),
    "nearest, prefer ceil": resized("nearest", "asymmetric", ODD, nearest_mode="round_prefer_ceil"),
    "cubic, a": resized("cubic", "half_pixel", ODD, cubic_coeff_a=-0.5),
    **RESIZE,
}  # fmt: skip


def written(case: Case, path: Path) -> onnx.ModelProto:
    """The operator alone; its outputs joined where there are two, whole or truth values made floats."""
    kind, x, constants, attributes = case
    names = ["x", *("" if value is None else f"c{i}" for i, value in enumerate(constants))]
    outputs = ["a", "b"] if kind == "Split" else ["a"]
    last = helper.make_node("Cast", ["a"], ["y"], name="last", to=TensorProto.FLOAT)
    if kind == "Split":
        last = helper.make_node("Concat", ["b", "a"], ["y"], name="last", axis=1)
    nodes = [helper.make_node(kind, names, outputs, name="one", **attributes), last]
    values = [numpy_helper.from_array(v, f"c{i}") for i, v in enumerate(constants) if v is not None]
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        values,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    onnx.save(model, path)
    return model


@pytest.mark.parametrize("name", CASES)
def test_operators_are_onnx_runtime_s(name: str, tmp_path: Path) -> None:
    x = CASES[name][1]
    expected = run_onnx(written(CASES[name], tmp_path / "one.onnx"), x)
    model = SimulatedModel(onnx.load(tmp_path / "one.onnx"), "cpu")
    for _ in range(2):  # the first call must be as good as the second
        np.testing.assert_allclose(model(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("granularity", ["per-tensor", "per-channel"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[0] in QUANTIZABLE_TYPES])
def test_the_quantizable_ones_run_quantized(name: str, granularity: str, tmp_path: Path) -> None:
    """In 16 bits the result is nearly the exact one, so that each tensor has the scale that it needs."""
    case = CASES[name]
    expected = run_onnx(written(case, tmp_path / "one.onnx"), case[1])
    recipe = write_recipe(tmp_path, granularity=granularity, observer="minmax")
    nodes = read_nodes(onnx.load(tmp_path / "one.onnx"))
    planned = plan([Operator("one", case[0])], nodes, recipe, 16, 16)
    model = SimulatedModel(onnx.load(tmp_path / "one.onnx"), "cpu", planned)
    calibrate(model, planned, [torch.from_numpy(case[1])])
    found = model(torch.from_numpy(case[1])).numpy()
    assert np.abs(found - expected).max() < 2e-2 * np.abs(expected).max()


def test_what_ppq_cannot_run_is_refused_at_once(tmp_path: Path) -> None:
    written(("Trilu", TOKENS, [], {}), tmp_path / "one.onnx")
    with pytest.raises(UserError, match=r"one\.onnx: PPQ has no operator Trilu \(first at 'one'\)"):
        SimulatedModel(onnx.load(tmp_path / "one.onnx"), "cpu", source="one.onnx")


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (resized("linear", "half_pixel", ints(2, 3, 4, 4), antialias=1), "antialias is not implemented"),
        (resized("linear", "half_pixel_symmetric", ODD), "'half_pixel_symmetric' is not implemented"),
        (("AveragePool", IMAGE, [], {"kernel_shape": KERNEL, "pads": [0, 0, 1, 1]}), "equal pads"),
    ],
)
def test_forms_that_are_not_implemented_are_named(case: Case, why: str, tmp_path: Path) -> None:
    written(case, tmp_path / "one.onnx")
    model = SimulatedModel(onnx.load(tmp_path / "one.onnx"), "cpu")
    with pytest.raises(UserError, match=rf"operator 'one' \({case[0]}\): .*{why}"):
        model(torch.from_numpy(case[1]))
