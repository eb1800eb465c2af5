"""The files of quantization parameters: exact, readable, free of pickle, refused when they are not."""

from __future__ import annotations

import json
import pickle
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper
from safetensors.torch import load_file, save_file
from tiny_quantized import HEADER, Tiny, images, write_recipe
from torch import Tensor

from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.quantize.edits import Edits
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.qparams import QParams, read_qparams, write_qparams
from ptq2themoon.quantize.quantizers import LogSqrt2, Quantizer, Uniform
from ptq2themoon.quantize.simulation import simulated
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.recipes import TensorSpec

POSITIVE = st.floats(2.0**-140, 2.0**100, width=32)
CHANNELS = np.array([0.1, 0.2, 1 / 3], np.float32)
EMPTY = onnx.ModelProto()


def tensor_of(
    quantizer: Quantizer, operand: str = "input", position: int = 0, observer: str = "minmax", **spec: Any
) -> QuantizedTensor:
    """A tensor with that quantizer, and what a file tells of its way of quantizing."""
    granularity = "per-tensor" if quantizer.axis is None else "per-channel"
    percentile = 99.99 if observer == "percentile" else 100.0
    found = TensorSpec(True, quantizer.bits, granularity, observer, percentile, "input", **spec)
    return QuantizedTensor(operand, position, found, quantizer.axis, quantizer)


def per_tensor(scale: float, position: int = 0, operand: str = "input") -> QuantizedTensor:
    quantizer = Uniform(torch.tensor(scale), torch.tensor(0.0), 8, -128, 127, None)
    return tensor_of(quantizer, operand, position, "percentile")


def per_channel(scales: np.ndarray, operand: str = "input", bits: int = 8) -> QuantizedTensor:
    scale, top = torch.from_numpy(scales), 1 << (bits - 1)
    return tensor_of(Uniform(scale, torch.zeros_like(scale), bits, -top, top - 1, 2), operand)


def asymmetric(
    scales: np.ndarray, zero_points: list[float] | float, axis: int | None = None
) -> QuantizedTensor:
    """Unsigned codes of 8 bits."""
    quantizer = Uniform(torch.from_numpy(np.asarray(scales)), torch.tensor(zero_points), 8, 0, 255, axis)
    return tensor_of(quantizer, symmetry="asymmetric", codes="unsigned")


def logarithmic(scale: float) -> QuantizedTensor:
    return tensor_of(LogSqrt2(torch.tensor(scale), 4), kind="log_sqrt2", codes="unsigned")


def example() -> list[QuantizedOperator]:
    norm = Operator("blocks.0.norm1", "LayerNormalization", "norm1", 0)
    return [
        QuantizedOperator(norm, [per_channel(CHANNELS), per_channel(CHANNELS[:2], "output", bits=4)]),
        QuantizedOperator(
            Operator("odd", "Add", None, None), [per_tensor(0.1), per_tensor(1e-8, 1, "weight")]
        ),
        QuantizedOperator(
            Operator("blocks.0.fc2", "PPQBiasFusedMatMul", "fc2", 0),
            [asymmetric(CHANNELS, [0.0, 255.0, 17.0], axis=2)],
        ),
        QuantizedOperator(
            Operator("blocks.0.softmax", "Softmax", "softmax", 0), [asymmetric(np.float32(0.3), 7.0)]
        ),
        QuantizedOperator(Operator("blocks.0.attn_context", "MatMul", "attn_context", 0), [logarithmic(0.7)]),
    ]


def saved(folder: Path, operators: list[QuantizedOperator], **edits: Edits) -> tuple[Path, Path]:
    paths = folder / "qparams.json", folder / "qparams.safetensors"
    write_qparams(QuantizedModel(EMPTY, [], quantized=operators, **edits), HEADER, *paths)
    return paths


def bits_of(operators: list[QuantizedOperator]) -> list[tuple[str, bytes]]:
    """Every array of every quantizer; one zero point for all channels is written once."""
    return [
        (name, array.numpy().tobytes())
        for item in operators
        for tensor in item.tensors
        for name, array in tensor.ready().arrays().items()
    ]


# Exact --------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(POSITIVE, min_size=1, max_size=4), hnp.arrays(np.float32, st.integers(1, 9), elements=POSITIVE)
)
def test_what_is_read_is_what_was_written_to_the_last_bit(scales: list[float], channels: np.ndarray) -> None:
    operator = Operator("fc2", "PPQBiasFusedMatMul", "fc2", 3)
    tensors = [per_tensor(scale, position=i) for i, scale in enumerate(scales)]
    points = [float(i) for i in range(len(channels))]
    kinds = [asymmetric(channels, points, 2), logarithmic(scales[0]), per_channel(channels, "output")]
    written = [QuantizedOperator(operator, [*tensors, *kinds])]
    with tempfile.TemporaryDirectory() as folder:
        read = read_qparams(*saved(Path(folder), written)).quantized
    found = [t.ready() for t in read[0].tensors]
    assert bits_of(read) == bits_of(written)
    assert found == [t.ready() for t in written[0].tensors]
    assert all(t.scale is not None and t.scale.dtype == torch.float32 for t in read[0].tensors)
    assert [q.scale.ndim for q in found] == [0] * len(scales) + [1, 0, 1]


def test_everything_else_that_rebuilds_a_tensor_is_read_too(tmp_path: Path) -> None:
    read = read_qparams(*saved(tmp_path, example()))
    assert read.quantized == example()
    assert read.header == HEADER
    assert not read.rewrite
    assert not read.changes
    pairs = zip(read.quantized, example(), strict=True)
    for found, wanted in ((t, w) for a, b in pairs for t, w in zip(a.tensors, b.tensors, strict=True)):
        assert type(found.ready()) is type(wanted.ready())
        assert found.ready().key == wanted.ready().key
        assert found.granularity == wanted.granularity


def test_two_operators_share_a_scale_in_memory_but_not_in_the_file(tmp_path: Path) -> None:
    operators = example()
    operators[0].tensors[1].quantizer = operators[0].tensors[0].quantizer
    assert bits_of(read_qparams(*saved(tmp_path, operators)).quantized) == bits_of(operators)


def test_the_file_says_all_that_rebuilds_a_quantizer(tmp_path: Path) -> None:
    path, arrays = saved(tmp_path, example())
    content = json.loads(path.read_text())
    nothing: dict[str, Any] = {"constants": {}, "nodes": {}}
    assert next(iter(content)) == "version"
    assert {k: v for k, v in content.items() if k != "operators"} == {
        "version": 2, "recipe": "layernorm", "bits": "w8a8", "protocol": "all-operators", "methods": [],
        "calibration_images": 24, "graph_sha256": "0" * 64, "rounding": "half-even",
        "rewrite": nothing, "changes": nothing,
    }  # fmt: skip
    first, second, third, _, last = content["operators"]
    assert (first["name"], first["type"], first["role"], first["block"]) == example()[0].operator
    assert first["tensors"][1] == {
        "operand": "output", "position": 0, "granularity": "per-channel", "observer": "minmax",
        "percentile": None,
        "quantizer": {
            "kind": "uniform", "bits": 4, "axis": 2, "quant_min": -8, "quant_max": 7,
            "scale": {"array": "blocks.0.norm1.output.0.scale", "shape": [2]}, "zero_point": 0,
        },
    }  # fmt: skip
    assert second["tensors"][0]["quantizer"]["scale"] == float(np.float32(0.1))
    assert second["tensors"][0]["percentile"] == 99.99
    points = {"array": "blocks.0.fc2.input.0.zero_point", "shape": [3]}
    assert third["tensors"][0]["quantizer"]["zero_point"] == points
    assert last["tensors"][0]["quantizer"] == {
        "kind": "log_sqrt2", "bits": 4, "axis": None, "scale": float(np.float32(0.7)),
    }  # fmt: skip
    assert len(path.read_text().splitlines()) > 50  # one line per value: a change shows as one line
    assert arrays.stat().st_size < 1000


def test_nothing_in_the_files_is_a_pickle(tmp_path: Path) -> None:
    path, arrays = saved(tmp_path, example()[:2])
    assert path.read_text().startswith("{")
    raw = arrays.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    assert len(raw) == 8 + length + 4 * 5  # five scales and nothing else


def test_only_per_tensor_scales_need_no_arrays_yet_have_the_file(tmp_path: Path) -> None:
    path, arrays = saved(tmp_path, example()[1:2])
    assert arrays.is_file()
    assert read_qparams(path, arrays).quantized == example()[1:2]


def test_a_scale_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        saved(tmp_path, [QuantizedOperator(example()[1].operator, [per_tensor(float("nan"))])])


def test_scales_are_compared_neither_by_value_nor_by_accident() -> None:
    """Equality of plans: what is quantized how. Tensors would make `==` raise."""
    assert per_tensor(0.1) == per_tensor(0.2)
    assert per_channel(CHANNELS) != per_channel(CHANNELS, bits=4)


# Edits --------------------------------------------------------------------------------------------


def edited(tiny: Tiny) -> QuantizedModel:
    """norm2 of block 0 twice as large and fc1 half as large, an Add turned round, and fc2's bias doubled."""
    recipe = write_recipe(
        tiny.path.parent,
        {"select": {"role": "gelu"}, "symmetry": "asymmetric", "codes": "unsigned"},
        {
            "select": {"role": "fc1", "operand": "input"},
            **{"granularity": "per-channel", "observer": "minmax", "symmetry": "asymmetric"},
        },
        {"select": {"role": "softmax", "operand": "output"}, "kind": "log_sqrt2"},
        observer="minmax",
    )
    _, planned = tiny.calibrated(recipe)
    model = QuantizedModel(read_graph(tiny.path), tiny.operators, quantized=planned)
    graph, nodes = model.graph(), {node.name: node for node in model.reference.graph.node}
    norm, fc1, fc2 = (nodes[tiny.role(role, 0)] for role in ("norm2", "fc1", "fc2"))
    doubled = {(norm.name, i): 2 * graph.constants[norm.input[i]] for i in (1, 2)}
    halved = {(fc1.name, 1): graph.constants[fc1.input[1]] / 2}
    model.set_parameters(doubled | halved, equal=True)
    add = nodes[tiny.role("residual1", 1)]
    turned = helper.make_node("Add", list(add.input)[::-1], add.output, name=add.name)
    model.replace_operators({add.name: [turned]}, {}, equal=True)
    model.set_parameters({(fc2.name, 2): 2 * graph.constants[fc2.input[2]]}, equal=False)
    return model


def again(model: QuantizedModel, folder: Path) -> QuantizedModel:
    paths = folder / "qparams.json", folder / "qparams.safetensors"
    write_qparams(model, HEADER, *paths)
    return read_qparams(*paths).model(model.reference)


def test_edits_and_quantizers_of_every_kind_give_the_same_logits_to_the_bit(
    tiny: Tiny, tmp_path: Path
) -> None:
    model = edited(tiny)
    read = again(model, tmp_path)
    assert read.edited == model.edited
    assert read.rewritten == model.rewritten
    assert read.rewritten != read.reference
    assert read.edited != read.rewritten
    assert [item.operator for item in read.quantized] == [item.operator for item in model.quantized]
    assert {tensor.ready().kind for _, tensor in read.slots()} == {"uniform", "log_sqrt2"}
    assert any(bool(t.ready().arrays().get("zero_point", torch.zeros(())).any()) for _, t in read.slots())
    assert torch.equal(simulated(read, "cpu")(images(5)), simulated(model, "cpu")(images(5)))
    assert read.operators == model.operators


def test_the_reference_is_not_touched_and_a_rewrite_keeps_its_output(tiny: Tiny, tmp_path: Path) -> None:
    model = edited(tiny)
    assert model.reference == read_graph(tiny.path)
    floating = [
        simulated(QuantizedModel(graph, tiny.operators), "cpu")(images(5))
        for graph in (model.reference, model.rewritten, model.edited)
    ]
    torch.testing.assert_close(floating[1], floating[0], rtol=0, atol=1e-5)
    assert not torch.allclose(floating[2], floating[0], rtol=0, atol=1e-3)


def test_an_edit_of_an_operator_that_is_not_there_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    add = helper.make_node("Add", ["a", "b"], ["c"], name="gone")
    paths = saved(tmp_path, example(), rewrite=Edits(nodes={"gone": [add]}))
    with pytest.raises(UserError, match=r"^an edit replaces operator 'gone', which the graph does not have$"):
        read_qparams(*paths).model(read_graph(tiny.path))


def test_constants_of_edits_are_float32_and_may_be_new(tmp_path: Path) -> None:
    constants = {"a/b": np.float32([[0.1, 2], [3, -0.0]]), "c": np.array(1e-30, np.float32)}
    node = helper.make_node("LayerNormalization", ["x", "a/b"], ["y"], name="norm", axis=-1, epsilon=1e-6)
    read = read_qparams(*saved(tmp_path, example(), changes=Edits(constants, {"norm": [node], "old": []})))
    assert {name: v.tobytes() for name, v in read.changes.constants.items()} == {
        name: v.tobytes() for name, v in constants.items()
    }
    assert {name: v.shape for name, v in read.changes.constants.items()} == {"a/b": (2, 2), "c": ()}
    assert read.changes.nodes == {"norm": [node], "old": []}


# Refused ------------------------------------------------------------------------------------------


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code ran from a file of parameters",))


@pytest.mark.parametrize("which", [0, 1])
def test_a_pickle_in_place_of_either_file_is_refused_unread(tmp_path: Path, which: int) -> None:
    paths = saved(tmp_path, example())
    paths[which].write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match=r"qparams\.json: not quantization parameters of ptq2themoon"):
        read_qparams(*paths)


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_or_cut_file_is_refused(tmp_path: Path, which: int) -> None:
    paths = saved(tmp_path, example())
    paths[which].write_bytes(paths[which].read_bytes()[:-9])
    with pytest.raises(UserError, match="calibrate again"):
        read_qparams(*paths)
    paths[which].unlink()
    with pytest.raises(UserError, match="calibrate again"):
        read_qparams(*paths)


Change = Callable[[Any], Any]


def at(*keys: Any, to: Any = ...) -> Change:
    """Set the value at a place of the file; without one, remove it."""

    def change(content: Any) -> Any:
        place = content
        for key in keys[:-1]:
            place = place[key]
        if to is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = to
        return content

    return change


def quantizer_at(operator: int, key: str, to: Any = ...) -> Change:
    return at("operators", operator, "tensors", 0, "quantizer", key, to=to)


WHOLE = r"zero_point must be a whole number in 0 to 255"
CHANNELWISE, TENSORWISE, POINTS, POINT, LOG = range(5)
# fmt: off
REFUSED: dict[str, tuple[Change, str]] = {
    "a list": (lambda content: [content], r"version None, not 2"),
    "no version": (at("version"), r"version None, not 2"),
    "version 1": (at("version", to=1), r"version 1, not 2"),
    "version 3": (at("version", to=3), r"version 3, not 2"),
    "version as text": (at("version", to="2"), r"version '2', not 2"),
    "no operators": (at("operators"), r"operators: missing"),
    "unknown key of the file": (at("scheme", to="linear"), r"scheme: unknown key"),
    "unknown key of edits": (at("changes", "bias", to={}), r"changes\.bias: unknown key"),
    "unknown key of an operator": (at("operators", 0, "scheme", to="log"), r"\[0\]\.scheme: unknown"),
    "unknown key of a tensor": (
        at("operators", 0, "tensors", 0, "scheme", to="log"), r"tensors\[0\]\.scheme: unknown key"),
    "no granularity": (at("operators", 0, "tensors", 0, "granularity"), r"granularity: missing"),
    "other rounding": (at("rounding", to="half-up"), r"rounding: .*half-up"),
    "other protocol": (at("protocol", to="some"), r"protocol: .*some"),
    "negative position": (at("operators", 0, "tensors", 0, "position", to=-1), r"position: -1 is too small"),
    "unknown operand": (at("operators", 0, "tensors", 0, "operand", to="key"), r"operand: unknown value"),
    "unknown kind": (quantizer_at(TENSORWISE, "kind", "unifrm"), r"kind 'unifrm'; did you mean 'uniform'"),
    "log": (quantizer_at(TENSORWISE, "kind", "log"), r"unknown kind 'log'; did you mean 'log2'"),
    "a uniform one made logarithmic": (quantizer_at(TENSORWISE, "kind", "log_sqrt2"), r"kind log_sqrt2 has "),
    "a logarithmic one made uniform": (quantizer_at(LOG, "kind", "uniform"), r"no 'zero_point'"),
    "asymmetric": (quantizer_at(TENSORWISE, "symmetry", "asymmetric"), r"kind uniform has .*symmetry"),
    "unknown key of log_sqrt2": (quantizer_at(LOG, "quant_min", 0), r"kind log_sqrt2 has .*quant_min"),
    "axis of log_sqrt2": (quantizer_at(LOG, "axis", 1), r"one scale, but axis 1"),
    "no kind": (quantizer_at(TENSORWISE, "kind"), r"no 'kind'"),
    "no bits": (quantizer_at(TENSORWISE, "bits"), r"no 'bits'"),
    "no axis": (quantizer_at(TENSORWISE, "axis"), r"no 'axis'"),
    "no quant_min": (quantizer_at(TENSORWISE, "quant_min"), r"quant_max, quant_min, not quant_max"),
    "no scale": (quantizer_at(TENSORWISE, "scale"), r"no 'scale'"),
    "no zero point": (quantizer_at(TENSORWISE, "zero_point"), r"no 'zero_point'"),
    "zero point too large": (quantizer_at(POINT, "zero_point", 256), WHOLE),
    "zero point too small": (quantizer_at(POINT, "zero_point", -1), WHOLE),
    "zero point between": (quantizer_at(POINT, "zero_point", 7.5), WHOLE),
    "zero point NaN": (quantizer_at(POINT, "zero_point", float("nan")), WHOLE),
    "zero point text": (quantizer_at(POINT, "zero_point", "7"), r"'7' is no number"),
    "zero point true": (quantizer_at(POINT, "zero_point", True), r"True is no number"),
    "bits that contradict": (quantizer_at(TENSORWISE, "bits", 4), r"-128 and quant_max 127 are not those of"),
    "range that contradicts": (quantizer_at(TENSORWISE, "quant_max", 255), r"-128 and quant_max 255 are not"),
    "one bit": (quantizer_at(TENSORWISE, "bits", 1), r"bits 1: must be 2 to 16"),
    "bits as text": (quantizer_at(TENSORWISE, "bits", "8"), r"bits '8': must be 2 to 16"),
    "scale NaN": (quantizer_at(TENSORWISE, "scale", float("nan")), r"scale must be finite and above 0"),
    "scale infinite": (quantizer_at(TENSORWISE, "scale", float("inf")), r"scale must be finite and above 0"),
    "scale 0": (quantizer_at(TENSORWISE, "scale", 0), r"scale must be finite and above 0"),
    "scale below 0": (quantizer_at(LOG, "scale", -0.5), r"scale must be finite and above 0"),
    "scale that is none": (quantizer_at(TENSORWISE, "scale", None), r"None is no number"),
    "array missing": (
        quantizer_at(CHANNELWISE, "scale", {"array": "gone", "shape": [3]}), r"array 'gone' is not in the"),
    "array of another shape": (
        quantizer_at(CHANNELWISE, "scale", {"array": "blocks.0.norm1.input.0.scale", "shape": [2]}),
        r"array 'blocks\.0\.norm1\.input\.0\.scale' is \[3\], not \[2\]"),
    "array without shape": (
        quantizer_at(CHANNELWISE, "scale", {"array": "blocks.0.norm1.input.0.scale"}), r"shape: missing"),
    "unknown key of an array": (
        quantizer_at(CHANNELWISE, "scale", {"array": "gone", "shape": [3], "dtype": "F32"}), r"dtype: unkn"),
    "zero points of other channels": (
        quantizer_at(POINTS, "zero_point", {"array": "blocks.0.norm1.output.0.scale", "shape": [2]}),
        r"scale and zero_point differ in shape"),
    "axis without array": (quantizer_at(CHANNELWISE, "scale", 0.5), r"one scale, but axis 2"),
    "array without axis": (quantizer_at(CHANNELWISE, "axis", None), r"several values of .*, but axis None"),
    "axis below 0": (quantizer_at(CHANNELWISE, "axis", -1), r"axis -1: must be a number from 0 or null"),
    "axis true": (quantizer_at(CHANNELWISE, "axis", True), r"axis True: must be a number from 0 or null"),
    "granularity that contradicts": (
        at("operators", 1, "tensors", 0, "granularity", to="per-channel"), r"per-channel with axis None"),
    "a constant that is missing": (
        at("changes", "constants", "bias", to={"array": "gone", "shape": []}), r"array 'gone' is not in"),
    "a node that is none": (at("rewrite", "nodes", "odd", to=[{"optype": "Add"}]), r'no field named "op'),
}
# fmt: on


@pytest.mark.parametrize("how", REFUSED)
def test_what_is_not_known_is_refused_in_one_line(tmp_path: Path, how: str) -> None:
    change, message = REFUSED[how]
    path, arrays = saved(tmp_path, example())
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message) as error:
        read_qparams(path, arrays)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert text.endswith("; calibrate again")
    assert "\n" not in text


@pytest.mark.parametrize("value", [[0.1, float("nan"), 0.2], [0.1, 0.0, 0.2], [0.1, -0.1, 0.2]])
def test_scales_in_the_arrays_are_checked_too(tmp_path: Path, value: list[float]) -> None:
    path, arrays = saved(tmp_path, example())
    save_file({**load_file(arrays), "blocks.0.norm1.input.0.scale": torch.tensor(value)}, arrays)
    said = r"qparams\.json: operators\[0\] \('blocks\.0\.norm1'\), input 0: scale must be finite and"
    with pytest.raises(UserError, match=said):
        read_qparams(path, arrays)


def test_a_file_of_format_1_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """As it was written before there were zero points: it could not say that it had none."""
    tensor = {
        "operand": "input", "position": 0, "bits": 8, "quant_min": -128, "quant_max": 127,
        "granularity": "per-tensor", "axis": None, "observer": "percentile", "percentile": 99.99,
        "scale": 0.1, "zero_point": 0,
    }  # fmt: skip
    operator = {"name": "odd", "type": "Add", "role": None, "block": None, "tensors": [tensor]}
    header = {"recipe": "vanilla", "bits": "w8a8", "calibration_images": 256, "graph_sha256": "0" * 64}
    fixed = {"scheme": "linear", "symmetric": True, "rounding": "half-even"}
    path, arrays = saved(tmp_path, example())
    path.write_text(json.dumps({**header, **fixed, "operators": [operator]}))
    with pytest.raises(UserError) as error:
        read_qparams(path, arrays)
    assert str(error.value) == (
        f"{path}: not quantization parameters of ptq2themoon (version None, not 2); calibrate again"
    )


def test_every_tensor_of_the_example_is_read(tmp_path: Path) -> None:
    """So that each case above changes the one thing that it names."""
    found: QParams = read_qparams(*saved(tmp_path, example()))
    values: list[Tensor] = [t.scale for item in found.quantized for t in item.tensors if t.scale is not None]
    assert len(values) == 7
