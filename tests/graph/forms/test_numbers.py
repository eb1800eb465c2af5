"""Doubles become float32, and Casts that change nothing go."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from tiny_models import random_images, run_all, written

from ptq2themoon.graph.forms.normalise import normalise


def types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_doubles_within_a_graph_of_float32() -> None:
    body = "a = Cast <to = 11> (x)\nb = Mul (a, w)\nc = Neg (b)\ny = Cast <to = 1> (c)"
    model = written(body, {"w": np.array([1 / 3])})
    normalised = normalise(model)
    assert types(normalised) == ["Mul", "Neg"]
    assert [tensor.data_type for tensor in normalised.graph.initializer] == [TensorProto.FLOAT]
    images = random_images(2, 4, 8)
    np.testing.assert_allclose(run_all(normalised, images)[0], run_all(model, images)[0], rtol=1e-6)


def test_an_output_of_doubles_and_numbers_beyond_float32() -> None:
    """A mask of the least double stays finite; infinity stays."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[batch, 4] x) => (double[batch, 4] y)'
        "{ a = Cast <to = 11> (x) y = Max (a, low, least) }"
    )
    bounds = {"low": np.array([np.finfo(np.float64).min]), "least": np.array([-np.inf])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in bounds.items())
    normalised = normalise(model)
    assert normalised.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in normalised.graph.initializer}
    assert values["low"].tolist() == [np.finfo(np.float32).min]
    assert values["least"].tolist() == [-np.inf]


def test_a_cast_to_another_type_stays() -> None:
    body = "a = Cast <to = 7> (x)\ny = Cast <to = 1> (a)"
    assert types(normalise(written(body, {}))) == ["Cast", "Cast"]
