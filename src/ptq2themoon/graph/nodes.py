"""Facts of a fused graph's operators that quantization must know."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import NodeProto

from ptq2themoon.errors import UserError
from ptq2themoon.graph.editing import Shapes, tensor_shapes


@dataclass(frozen=True)
class Node:
    """What a quantizer must know of an operator: rank of each tensor, and which inputs are parameters."""

    type: str
    parameter_inputs: list[bool]
    input_ranks: list[int]
    output_ranks: list[int]
    transposed_weight: bool


def read_nodes(model: onnx.ModelProto) -> dict[str, Node]:
    """What a quantizer must know of each operator of a fused model, by name.

    Raises:
        UserError: a tensor whose rank shape inference cannot tell.
    """
    shapes = tensor_shapes(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name: Node(
            type=node.op_type,
            parameter_inputs=[name in constants for name in node.input],
            input_ranks=[_rank(shapes, node, name) for name in node.input],
            output_ranks=[_rank(shapes, node, name) for name in node.output],
            transposed_weight=any(a.name == "transB" and a.i for a in node.attribute),
        )
        for node in model.graph.node
    }


def _rank(shapes: Shapes, node: NodeProto, tensor: str) -> int:
    if tensor == "":  # an optional input left out
        return 0
    if tensor not in shapes:
        raise UserError(
            f"operator {node.name!r} ({node.op_type}): the shape of tensor {tensor!r} is not known"
        )
    return len(shapes[tensor])
