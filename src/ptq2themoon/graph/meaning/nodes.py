"""Facts of a fused graph's operators that quantization must know."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, tensor_shapes
from ptq2themoon.graph.editing.operator_types import DATA_MOVEMENT, data_inputs, holds_out_in
from ptq2themoon.graph.forms.masks import hidden_tensors
from ptq2themoon.graph.forms.norms import squared
from ptq2themoon.vocabulary.errors import UserError

LENGTH_TYPES = frozenset({"Clip", "Max", "Reciprocal", "Sqrt"})  # last steps of a length, or keep it from 0
SCALING_TYPES = frozenset({"Add", "Div", "Mul"})  # by a number
SUMS = frozenset({"ReduceMean", "ReduceSum"})


@dataclass(frozen=True)
class Node:
    """What a quantizer must know of an operator.

    Attributes:
        parameter_inputs: which inputs are constants.
        input_ranks, output_ranks: dimensions of each tensor.
        transposed_weight: whether a Gemm holds its weight as [out, in].
        is_last: whether the output is the model's, as it is or moved.
        hidden_inputs, hidden_outputs: which tensors no scale serves: scores that a mask hides, and what
            others are divided by.
    """

    type: str
    parameter_inputs: list[bool]
    input_ranks: list[int]
    output_ranks: list[int]
    transposed_weight: bool
    is_last: bool = False
    hidden_inputs: frozenset[int] = frozenset()
    hidden_outputs: frozenset[int] = frozenset()


def read_nodes(model: onnx.ModelProto) -> dict[str, Node]:
    """What a quantizer must know of each operator of a fused model, by name.

    Raises:
        UserError: a tensor whose rank shape inference cannot tell.
    """
    shapes = tensor_shapes(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    graph = Graph(model)
    last, hidden = _makers_of_outputs(model), hidden_tensors(graph) | _divisors(graph)
    return {
        node.name: Node(
            type=node.op_type,
            parameter_inputs=[name in constants for name in node.input],
            input_ranks=[_rank(shapes, node, name) for name in node.input],
            output_ranks=[_rank(shapes, node, name) for name in node.output],
            transposed_weight=holds_out_in(node),
            is_last=node.name in last,
            hidden_inputs=frozenset(i for i, name in enumerate(node.input) if name in hidden),
            hidden_outputs=frozenset(i for i, name in enumerate(node.output) if name in hidden),
        )
        for node in model.graph.node
    }


def _makers_of_outputs(model: onnx.ModelProto) -> set[str]:
    """Operators whose output is the model's, as it is or moved."""
    producers = {name: node for node in model.graph.node for name in node.output}
    waiting, found = [value.name for value in model.graph.output], set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in found:
            continue
        found.add(node.name)
        if node.op_type in DATA_MOVEMENT:
            waiting += data_inputs(node)
    return found


def _divisors(graph: Graph) -> set[str]:
    """Activations that others are divided by, or whose reciprocals they take, back to the squares in them.

    The quotient is only as exact as its divisor: a short one among long ones would become 0 on their grid.
    """
    waiting = [node.input[1] for node in graph.nodes if node.op_type == "Div"]
    waiting += [node.output[0] for node in graph.nodes if node.op_type == "Reciprocal"]
    found: set[str] = set()
    while waiting:
        tensor = waiting.pop()
        node = graph.producer(tensor)
        if tensor in graph.constants or tensor in found:
            continue
        found.add(tensor)
        if node is None:
            continue
        scaled = graph.split_operands(node) if node.op_type in SCALING_TYPES else None
        if node.op_type in DATA_MOVEMENT | LENGTH_TYPES:
            waiting += [name for name in node.input[:1] if name]
        elif scaled is not None and scaled[1].size == 1:
            waiting.append(scaled[0])
        elif node.op_type in SUMS and _squares(graph, graph.producer(node.input[0])):
            found.add(node.input[0])
    return found


def _squares(graph: Graph, node: NodeProto | None) -> bool:
    return node is not None and squared(graph, node) is not None


def _rank(shapes: Shapes, node: NodeProto, tensor: str) -> int:
    if tensor == "":  # an optional input left out
        return 0
    if tensor not in shapes:
        raise UserError(
            f"operator {node.name!r} ({node.op_type}): the shape of tensor {tensor!r} is not known"
        )
    return len(shapes[tensor])
