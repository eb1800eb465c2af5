"""ONNX files that lie, or are small and stand for very much: refused in one line, before anything runs."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from ptq2themoon.graph.editing.onnx_run import where_not_finite
from ptq2themoon.graph.sources.bounds import refuse_growing
from ptq2themoon.graph.sources.exporting import export
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_source import Source

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
HEAD = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["z"], "head")]
WEIGHT = numpy_helper.from_array(np.ones((256, 5), np.float32), "w")
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]


def model(
    nodes: Sequence[NodeProto] = (),
    constants: dict[str, Any] | None = None,
    functions: Sequence[FunctionProto] = (),
    size: Sequence[int] = (1, 1, 16, 16),
) -> onnx.ModelProto:
    """`z` = a linear layer of the image, then `nodes`; the last one's first output is the model's."""
    nodes = [*HEAD, *nodes]
    arrays = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, size)],
        [helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, [1, 5])], [WEIGHT, *arrays],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=8, functions=functions)


def refusal(folder: Path, content: onnx.ModelProto | bytes) -> str:
    """The one line of an export, within seconds, that writes nothing."""
    path, out = folder / "mine.onnx", folder / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    spec, start = Source(f"onnx:{path}", preprocessing={"mean": [0.5], "std": [0.5]}), time.process_time()
    with pytest.raises(UserError) as error:
        export(spec, "torchscript", 13, out)
    line = str(error.value)
    assert time.process_time() - start < 5
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def summed(nodes: Sequence[NodeProto], constants: dict[str, Any], large: str = "big") -> onnx.ModelProto:
    """A model that adds the sum of what `nodes` make to its logits."""
    end = [
        helper.make_node("ReduceSum", [large], ["sum"], keepdims=0),
        helper.make_node("Add", ["z", "sum"], ["y"]),
    ]
    return model([*nodes, *end], constants)


# Sizes ------------------------------------------------------------------------------------------------


def by_value(*nodes: NodeProto, **constants: Any) -> onnx.ModelProto:
    """A model whose operators `nodes` take `n`, a whole number that is made of the image's values."""
    number = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["whole"], to=INT64),
        helper.make_node("Reshape", ["whole", "one"], ["n"]),
    ]
    return summed([*number, *nodes], {"one": np.array([1]), **constants})


def node(kind: str, *inputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, ["big"], f"the {kind}", **attributes)


SQUEEZED = helper.make_node("Squeeze", ["n"], ["s"])
FLAT = helper.make_node("Reshape", ["x", "all"], ["row"])
TRUE = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
BRANCHES = {
    name: helper.make_graph(
        [helper.make_node("ConstantOfShape", ["n"], [name], f"the {name}")], name, [],
        [helper.make_tensor_value_info(name, FLOAT, None)],
    )
    for name in ("then_branch", "else_branch")
}  # fmt: skip
BY_VALUE = {
    "ConstantOfShape": by_value(node("ConstantOfShape", "n")),
    "Expand": by_value(node("Expand", "most", "n")),
    "Tile": by_value(FLAT, node("Tile", "row", "n"), all=np.array([-1])),
    "OneHot": by_value(node("OneHot", "whole", "n", "v"), v=np.array([0, 1], np.float32)),
    "Range": by_value(SQUEEZED, node("Range", "a", "s", "b"), a=np.int64(0), b=np.int64(1)),
    "NonZero": by_value(node("NonZero", "x")),
    "If": by_value(TRUE, node("If", "yes", **BRANCHES)),
}


@pytest.mark.parametrize("kind", BY_VALUE)
def test_sizes_that_values_of_images_decide(tmp_path: Path, kind: str) -> None:
    line = refusal(tmp_path, BY_VALUE[kind])
    said = "makes as many numbers as the values of the images say; export the model"
    assert re.match(rf"operator 'the \w+' \(\w+\) {said}", line)


@pytest.mark.parametrize("kind", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows_of_any_length(tmp_path: Path, kind: str) -> None:
    """ONNX's shape inference fills the memory with this one."""
    line = refusal(tmp_path, summed([node(kind, "size")], {"size": np.int64(4 * 10**9)}))
    assert line.startswith(f"operator 'the {kind}' ({kind}) is for sound, and of any length; ")


def test_a_branch_that_values_of_images_choose(tmp_path: Path) -> None:
    """Its results may be of any size, of which shape inference says nothing."""
    condition = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "half"], ["b"]),
    ]
    constants = {"half": np.float32(0.5), "n": np.array([50_000, 50_000])}
    line = refusal(tmp_path, summed([*condition, node("If", "b", **BRANCHES)], constants))
    assert line.startswith(
        "operator 'the If' (If) chooses by the values of the images, which does not become"
    )


def test_sizes_that_shapes_decide_are_taken(tmp_path: Path) -> None:
    size = helper.make_node("Shape", ["x"], ["shape"])
    content = summed([size, node("Expand", "half", "shape")], {"half": np.float32(0.5)})
    (tmp_path / "mine.onnx").write_bytes(content.SerializeToString())
    spec = Source(f"onnx:{tmp_path / 'mine.onnx'}", preprocessing={"mean": [0.5], "std": [0.5]})
    export(spec, "torchscript", 13, tmp_path / "model.onnx")


# Lies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"raw_data": bytes(5520)}, "constant 'w' of shape [256, 5] holds 5520 bytes, not 5120"),
        ({"raw_data": b"1234"}, "constant 'w' of shape [256, 5] holds 4 bytes, not 5120"),
        ({"dims": [2**40, 5]}, "constant 'w' of shape [1099511627776, 5] holds 5120 bytes, not 2199"),
        ({"dims": [-256, 5]}, "constant 'w' has shape [-256, 5]"),
        ({"data_type": 99}, "constant 'w' is of type 99, which is none of ONNX"),
        ({"data_type": 0}, "constant 'w' is of type 0, which is none of ONNX"),
        ({"data_type": TensorProto.DOUBLE}, "constant 'w' of shape [256, 5] holds 5120 bytes, not 10240"),
        (
            {"raw_data": None, "float_data": [1.0] * 7},
            "constant 'w' of shape [256, 5] holds 7 values, not 1280",
        ),
    ],
)
def test_constants_that_hold_other_than_their_shape(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    found = model()
    tensor = found.graph.initializer[0]
    for field, value in change.items():
        tensor.ClearField(field)
        if isinstance(value, list):
            getattr(tensor, field).extend(value)
        elif value is not None:
            setattr(tensor, field, value)
    assert refusal(tmp_path, found).startswith(said)


@pytest.mark.parametrize(("old", "new"), [(b"head", b"he\xff\xfe"), (b"MatMul", b"Ma\xff\xfeul")])
def test_bytes_that_are_no_text(tmp_path: Path, old: bytes, new: bytes) -> None:
    content = model().SerializeToString().replace(old, new)
    assert refusal(tmp_path, content) == "not a valid ONNX model (names that are no UTF-8 text)"


@pytest.mark.parametrize("size", [(10**6, 10**6), (2**62, 16), (0, 16), (-16, 16), (8193, 16)])
def test_images_of_absurd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    line = refusal(tmp_path, model(size=(1, 1, *size)))
    assert line.startswith("input 'x' has shape [1, 1, ")
    assert line.endswith(("1 to 8192 on a side can be read", "give `preprocessing: {input_size: [C, H, W]}`"))


def test_no_output(tmp_path: Path) -> None:
    found = model()
    found.graph.ClearField("output")
    assert refusal(tmp_path, found) == "not a valid ONNX model (it has no outputs)"


@pytest.mark.parametrize("content", [b"\0" * 1000, b"\x3a\xff\xff\xff\xff\x0f" * 99, b"\x08" + b"\xff" * 99])
def test_bytes_that_are_no_model(tmp_path: Path, content: bytes) -> None:
    assert refusal(tmp_path, content).startswith("not a valid ONNX model (")


# What stands for very much ------------------------------------------------------------------------------

FILL = helper.make_node("ConstantOfShape", ["s"], ["big"], "fill")


@pytest.mark.parametrize(
    ("nodes", "constants", "said"),
    [
        ([FILL], {"s": [10**9]}, "'fill' (ConstantOfShape) makes 1000000000 numbers"),
        (
            [helper.make_node("Mul", ["a", "a"], ["s"]), FILL], {"a": [30_000]},
            "'fill' (ConstantOfShape) makes 900000000 numbers",
        ),
        (
            [helper.make_node("Range", ["a", "b", "c"], ["big"], "range")],
            {"a": np.float32(0), "b": np.float32(1e12), "c": np.float32(1)}, "'range' (Range) makes 99999",
        ),
        (
            [helper.make_node("Expand", ["z", "s"], ["big"], "wide")], {"s": [10**5, 10**4, 1, 5]},
            "'wide' (Expand) makes 5000000000 numbers",
        ),
        (
            [helper.make_node("Tile", ["z", "s"], ["big"], "tiles")], {"s": [10**5, 10**4]},
            "'tiles' (Tile) makes 5000000000 numbers",
        ),
        (
            [helper.make_node("Resize", ["x", "", "s"], ["big"], "zoom", mode="nearest")],
            {"s": np.array([1, 1, 1e5, 1e5], np.float32)}, "'zoom' (Resize) makes 2560000000000 numbers",
        ),
        (
            [helper.make_node("Concat", [f"k{i}"] * 2, [f"k{i + 1}"], f"d{i}", axis=0) for i in range(60)],
            {"k0": np.ones(4, np.float32)}, "(Concat) joins constants to more than 5000000 numbers",
        ),
        (
            [helper.make_node("Expand", [f"k{i}", "s"], [f"k{i + 1}"], f"e{i}") for i in range(9)],
            {"k0": np.ones((1, 1), np.float32), "s": [2**13, 2**13]},
            "(Expand) and those before it make of constants",
        ),
    ],
)  # fmt: skip
def test_operators_that_fill_the_memory(
    tmp_path: Path, nodes: list[NodeProto], constants: dict[str, Any], said: str
) -> None:
    line = refusal(tmp_path, summed(nodes, constants, nodes[-1].output[0]))
    assert line.startswith("operator '")
    assert said in line


def test_what_is_joined_of_activations_does_not_count() -> None:
    """As rotary embeddings do in every block, with a table of constants."""
    nodes = []
    for i in range(60):
        nodes.append(helper.make_node("Mul", [f"k{i}" if i else "z", "table"], [f"m{i}"]))
        nodes.append(helper.make_node("Concat", [f"m{i}", f"m{i}"], [f"k{i + 1}"], axis=0))
    refuse_growing(model(nodes, {"table": np.ones(5, np.float32)}), Path("mine.onnx"))


def loop(kind: str) -> NodeProto:
    infos = [("i", INT64, []), ("go", TensorProto.BOOL, []), ("v", FLOAT, [1, 5])]
    inputs = [helper.make_tensor_value_info(*info) for info in infos]
    outputs = [helper.make_tensor_value_info(f"{n}2", *rest) for n, *rest in infos[1:]]
    nodes = [helper.make_node("Identity", [name], [f"{name}2"]) for name in ("go", "v")]
    return helper.make_node(
        kind, ["n", "t", "z"], ["y"], "again", body=helper.make_graph(nodes, "b", inputs, outputs)
    )


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
def test_repetition(tmp_path: Path, kind: str) -> None:
    line = refusal(tmp_path, model([loop(kind)], {"n": 2**62, "t": True}))
    assert line.startswith(f"operator 'again' ({kind}) repeats others, which does not become a fixed graph")


def calls(depth: int, last: str) -> list[FunctionProto]:
    """Functions that each call the next one twice."""
    found = []
    for i in range(depth):
        name, domain = (f"F{i + 1}", "local") if i + 1 < depth else (last, "local" if last == "F0" else "")
        body = [helper.make_node(name, [a], [b], domain=domain) for a, b in (("a", "m"), ("m", "b"))]
        found.append(helper.make_function("local", f"F{i}", ["a"], ["b"], body, OPSETS))
    return found


@pytest.mark.parametrize(
    ("depth", "last", "said"),
    [
        (16, "Relu", "has more than 30000 operators, functions written out"),
        (60, "Relu", "function 'F21' calls itself, or 20 others call each other"),
        (1, "F0", "function 'F0' calls itself"),
        (3, "F0", "function 'F0' calls itself"),
    ],
)
def test_functions_that_double(tmp_path: Path, depth: int, last: str, said: str) -> None:
    found = model([helper.make_node("F0", ["z"], ["y"], domain="local")], functions=calls(depth, last))
    assert refusal(tmp_path, found).startswith(said)


def nested(depth: int) -> GraphProto:
    out = [helper.make_tensor_value_info(f"o{depth}", FLOAT, [1, 5])]
    plain = helper.make_node("Identity", ["z"], [f"o{depth}"])
    if not depth:
        return helper.make_graph([plain], "last", [], out)
    branches = {"then_branch": nested(depth - 1), "else_branch": helper.make_graph([plain], "e", [], out)}
    return helper.make_graph([helper.make_node("If", ["t"], [f"o{depth}"], **branches)], f"g{depth}", [], out)


def test_branches_within_branches(tmp_path: Path) -> None:
    node = helper.make_node("If", ["t"], ["y"], then_branch=nested(22), else_branch=nested(0))
    assert refusal(tmp_path, model([node], {"t": True})).startswith("branches lie more than 20 deep")


@pytest.mark.parametrize("inputs", [("z", "q"), ("z", "p")])
def test_circles(tmp_path: Path, inputs: tuple[str, str]) -> None:
    nodes = [helper.make_node("Add", inputs, ["p"]), helper.make_node("Relu", ["p"], ["q"])]
    assert "its operators have no order" in refusal(tmp_path, model(nodes))


# Numbers that are none -----------------------------------------------------------------------------------


def test_a_constant_that_is_no_number_is_named_with_its_operator(tmp_path: Path) -> None:
    array = np.ones((256, 5), np.float32)
    array[3, 2] = np.nan
    found = model()
    found.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    assert (
        refusal(tmp_path, found)
        == "constant 'w' of operator 'head' (MatMul) holds values that are not finite"
    )


def test_the_operator_that_makes_no_number_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sub", ["z", "z"], ["zero"], "sub"),
        helper.make_node("Div", ["zero", "zero"], ["nan"], "zero/zero"),
        helper.make_node("Add", ["nan", "z"], ["y"], "after"),
    ]
    assert refusal(tmp_path, model(nodes)) == (
        "gives values that are not finite on random images at operator 'zero/zero' (Div)"
    )


def test_an_infinity_that_is_meant_is_not_blamed() -> None:
    """A mask's: the first NaN counts, and only without one the first infinity."""
    nodes = [
        helper.make_node("Add", ["z", "mask"], ["masked"], "mask"),
        helper.make_node("Softmax", ["masked"], ["p"], "softmax"),
        helper.make_node("Log", ["negative"], ["nan"], "log"),
        helper.make_node("Add", ["p", "nan"], ["y"], "after"),
    ]
    found = model(nodes, {"mask": np.float32([0, 0, -np.inf, 0, 0]), "negative": np.float32([-1])})
    images = np.ones((2, 1, 16, 16), np.float32)
    assert where_not_finite(found, images) == " at operator 'log' (Log)"


def test_an_infinite_weight_is_named_by_what_reads_it(tmp_path: Path) -> None:
    found = model()
    array = np.full((256, 5), np.inf, np.float32)
    found.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.abs(array), "w"))
    line = refusal(tmp_path, found)
    assert line == "gives values that are not finite on random images at operator 'head' (MatMul)"


def test_an_unknown_opset_is_a_short_line(tmp_path: Path) -> None:
    found = model()
    found.opset_import[0].version = 10**9
    line = refusal(tmp_path, found)
    assert "opset" in line.lower()
    assert len(line) < 700
