"""A model that may be more than one message of protobuf, in the hands of code that takes a message.

ONNX's checker, converter and inliner are handed a model as bytes, of which there can be 2 GB. Weights make it
larger, and none of these looks into them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import onnx
from onnx import TensorProto, helper

from ptq2themoon.vocabulary import onnx_data

LIGHT = 1024  # elements; no constant that decides a shape has more


def is_large(tensor: TensorProto) -> bool:
    """Whether a constant is a weight, by its size."""
    return prod(tensor.dims) > LIGHT


def fits_one_message(model: onnx.ModelProto) -> bool:
    """Whether the weights leave room for the graph in one message, such as a file."""
    held = model.graph.initializer
    sizes = (prod(t.dims) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in held)
    return sum(sizes) <= onnx_data.MOST_BYTES


def check_model(model: onnx.ModelProto, *, full: bool = False) -> None:
    """ONNX's checker.

    Args:
        full: look at types and shapes too.
    """
    light = model if fits_one_message(model) else without_weights(model)
    onnx.checker.check_model(light, full_check=full)


def by_outline(
    model: onnx.ModelProto, change: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> onnx.ModelProto:
    """What ONNX's own code makes of a model."""
    if fits_one_message(model):
        return change(model)
    made = change(without_weights(model))
    weights = [tensor for tensor in model.graph.initializer if is_large(tensor)]
    stand_ins = {tensor.name for tensor in weights} - {value.name for value in model.graph.input}
    inputs = [value for value in made.graph.input if value.name not in stand_ins]
    made.graph.ClearField("input")
    made.graph.input.extend(inputs)
    made.graph.initializer.extend(weights)
    return made


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its large constants as inputs of their shape."""
    light = copied_without(model, "initializer", "sparse_initializer")
    declared = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if not is_large(tensor):
            light.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(value)
    return light


def copied_without(model: onnx.ModelProto, *fields: str) -> onnx.ModelProto:
    """A copy of a model that lacks fields of its graph: what a copy lets go later keeps its memory."""
    copy = onnx.ModelProto()
    copy.graph.SetInParent()
    for source, target, left_out in ((model, copy, ("graph",)), (model.graph, copy.graph, fields)):
        for field, value in source.ListFields():
            if field.name in left_out:
                continue
            if hasattr(value, "extend"):
                getattr(target, field.name).extend(value)
            elif hasattr(value, "CopyFrom"):
                getattr(target, field.name).CopyFrom(value)
            else:
                setattr(target, field.name, value)
    return copy
