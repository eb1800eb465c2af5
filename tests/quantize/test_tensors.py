"""The file of quantization parameters: exact, readable, free of pickle, refused when it is another thing."""

from __future__ import annotations

import json
import pickle
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptq2themoon.errors import UserError
from ptq2themoon.graph.operators import Operator
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor, load, save

POSITIVE = st.floats(2.0**-140, 2.0**100, width=32)


def per_tensor(scale: float | None, **changes: Any) -> QuantizedTensor:
    values = {
        "operand": "input", "position": 0, "bits": 8, "quant_min": -128, "quant_max": 127,
        "granularity": "per-tensor", "axis": None, "observer": "percentile", "percentile": 99.99,
    }  # fmt: skip
    return QuantizedTensor(**(values | changes), scale=None if scale is None else torch.tensor(scale))


def per_channel(scales: np.ndarray, **changes: Any) -> QuantizedTensor:
    settings = {"granularity": "per-channel", "axis": 2, "observer": "minmax", "percentile": None}
    tensor = per_tensor(None, **settings, **changes)
    tensor.scale = torch.from_numpy(scales)
    return tensor


def example() -> list[QuantizedOperator]:
    norm = Operator("blocks.0.norm1", "LayerNormalization", "norm1", 0)
    loose = Operator("odd", "Add", None, None)
    scales = np.array([0.1, 0.2, 1 / 3], np.float32)
    return [
        QuantizedOperator(norm, [per_channel(scales), per_channel(scales[:2], operand="output", bits=4)]),
        QuantizedOperator(loose, [per_tensor(0.1), per_tensor(1e-8, operand="weight", position=1)]),
    ]


def saved(folder: Path, operators: list[QuantizedOperator]) -> tuple[Path, Path]:
    paths = folder / "qparams.json", folder / "qparams.safetensors"
    save(operators, {"recipe": "layernorm", "bits": "w8a8"}, *paths)
    return paths


def bits_of(operators: list[QuantizedOperator]) -> list[bytes]:
    return [t.scale.numpy().tobytes() for item in operators for t in item.tensors if t.scale is not None]


@settings(max_examples=30)
@given(
    st.lists(POSITIVE, min_size=1, max_size=4), hnp.arrays(np.float32, st.integers(1, 9), elements=POSITIVE)
)
def test_what_is_read_is_what_was_written_to_the_last_bit(scales: list[float], channels: np.ndarray) -> None:
    operator = Operator("fc2", "PPQBiasFusedMatMul", "fc2", 3)
    tensors = [per_tensor(scale, position=i) for i, scale in enumerate(scales)]
    written = [QuantizedOperator(operator, [*tensors, per_channel(channels, operand="output")])]
    with tempfile.TemporaryDirectory() as folder:
        read = load(*saved(Path(folder), written))
    assert read == written
    assert bits_of(read) == bits_of(written)
    assert all(t.scale is not None and t.scale.dtype == torch.float32 for t in read[0].tensors)
    assert [t.scale.ndim for t in read[0].tensors if t.scale is not None] == [0] * len(scales) + [1]


def test_two_operators_share_a_scale_in_memory_but_not_in_the_file(tmp_path: Path) -> None:
    operators = example()
    operators[0].tensors[1].scale = operators[0].tensors[0].scale
    assert bits_of(load(*saved(tmp_path, operators))) == bits_of(operators)


def test_the_file_says_all_that_rebuilds_a_quantizer(tmp_path: Path) -> None:
    path, arrays = saved(tmp_path, example())
    content = json.loads(path.read_text())
    assert {k: v for k, v in content.items() if k != "operators"} == {
        "recipe": "layernorm", "bits": "w8a8", "scheme": "linear", "symmetric": True, "rounding": "half-even",
    }  # fmt: skip
    first, second = content["operators"]
    assert (first["name"], first["type"], first["role"], first["block"]) == example()[0].operator
    assert first["tensors"][1] == {
        "operand": "output", "position": 0, "bits": 4, "quant_min": -128, "quant_max": 127,
        "granularity": "per-channel", "axis": 2, "observer": "minmax", "percentile": None,
        "scale": {"array": "blocks.0.norm1.output.0", "shape": [2]}, "zero_point": 0,
    }  # fmt: skip
    assert second["tensors"][0]["scale"] == float(np.float32(0.1))
    assert {t["zero_point"] for item in content["operators"] for t in item["tensors"]} == {0}
    assert len(path.read_text().splitlines()) > 50  # one line a value: a change shows as one line
    assert arrays.stat().st_size < 1000


def test_nothing_in_the_files_is_a_pickle(tmp_path: Path) -> None:
    path, arrays = saved(tmp_path, example())
    assert path.read_text().startswith("{")
    raw = arrays.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    assert len(raw) == 8 + length + 4 * 5  # five scales and nothing else


def test_only_per_tensor_scales_need_no_arrays_yet_have_the_file(tmp_path: Path) -> None:
    path, arrays = saved(tmp_path, example()[1:])
    assert arrays.is_file()
    assert load(path, arrays) == example()[1:]


def test_a_scale_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        saved(tmp_path, [QuantizedOperator(example()[1].operator, [per_tensor(float("nan"))])])


def test_scales_are_compared_neither_by_value_nor_by_accident() -> None:
    """Equality of plans: what is quantized how. Tensors would make `==` raise."""
    assert per_tensor(0.1) == per_tensor(0.2)
    assert per_tensor(0.1) != per_tensor(0.1, bits=4)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code ran from a file of parameters",))


@pytest.mark.parametrize("which", [0, 1])
def test_a_pickle_in_place_of_either_file_is_refused_unread(tmp_path: Path, which: int) -> None:
    paths = saved(tmp_path, example())
    paths[which].write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match=r"qparams\.json: not quantization parameters of ptq2themoon"):
        load(*paths)


def change(content: dict[str, Any], how: str) -> Any:
    tensor = content["operators"][0]["tensors"][0]
    match how:
        case "a list":
            return [content]
        case "no operators":
            del content["operators"]
        case "an unknown key":
            tensor["scheme"] = "log"
        case "a missing key":
            del tensor["bits"]
        case "no scale":
            del tensor["scale"]
        case "an array that is not there":
            tensor["scale"]["array"] = "gone"
    return content


@pytest.mark.parametrize(
    "how",
    ["a list", "no operators", "an unknown key", "a missing key", "no scale", "an array that is not there"],
)
def test_another_form_is_refused_with_the_file(tmp_path: Path, how: str) -> None:
    path, arrays = saved(tmp_path, example())
    path.write_text(json.dumps(change(json.loads(path.read_text()), how)))
    with pytest.raises(UserError, match=r"qparams\.json: not quantization .*; calibrate again"):
        load(path, arrays)


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_or_cut_file_is_refused(tmp_path: Path, which: int) -> None:
    paths = saved(tmp_path, example())
    paths[which].write_bytes(paths[which].read_bytes()[:-9])
    with pytest.raises(UserError, match="calibrate again"):
        load(*paths)
    paths[which].unlink()
    with pytest.raises(UserError, match="calibrate again"):
        load(*paths)
