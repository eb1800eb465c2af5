"""Files that ONNX Runtime runs though ONNX's checker refuses them, brought to what the checker asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir
from onnx_ir.passes.common import TopologicalSortPass

from ptq2themoon.graph.editing.onnx_graph import copied
from ptq2themoon.vocabulary.errors import UserError


def repaired(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The operators in topological order, outputs with a shape, and no shapes of what lies between.

    An output without a shape gets one that `state_output` must replace.
    """
    model = copied(model)
    model.graph.ClearField("value_info")  # what is written there may contradict the operators
    for value in model.graph.output:
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        if "topologically sorted" not in str(error):
            raise
        model = _sorted(model, path)
        onnx.checker.check_model(model)
    return model


def _sorted(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    try:
        found = TopologicalSortPass()(onnx_ir.from_proto(model)).model
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: its operators have no order ({reason}); export the model again") from None
    return onnx_ir.to_proto(found)


def state_output(model: onnx.ModelProto, name: str, computed: Sequence[int]) -> None:
    """Write down the shape that was computed where the file says nothing, or something else.

    Args:
        computed: of the output, [images, ...].
    """
    (output,) = (value for value in model.graph.output if value.name == name)
    (image,) = model.graph.input
    batch = image.type.tensor_type.shape.dim[0]
    stated = output.type.tensor_type.shape
    sizes, expected = [dim.dim_value for dim in stated.dim], [batch.dim_value, *computed[1:]]
    if len(sizes) == len(expected) and all(a in (0, b) for a, b in zip(sizes, expected, strict=True)):
        return
    stated.ClearField("dim")
    stated.dim.add().CopyFrom(batch)
    for size in computed[1:]:
        stated.dim.add().dim_value = size
