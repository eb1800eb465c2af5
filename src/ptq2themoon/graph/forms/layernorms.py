"""LayerNorms whose channels may be scaled or shifted, since linear layers alone read them.

What a LayerNorm's gamma and beta take on, the weights and biases of its readers undo. So scales of
channels can migrate from activations into weights at no cost; where they may is decided here once, for
methods that rewrite a model and for the INT8 models that runtimes execute.
"""

from __future__ import annotations

from collections.abc import Container

from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute, reduced_axes
from ptq2themoon.graph.editing.operator_types import KEEPING_LAST_AXIS, data_inputs

# These too leave a factor of a channel what it is: the classifier reads one token, or the mean of all.
KEEPING_FACTORS = KEEPING_LAST_AXIS | {"Gather", "ReduceMean"}


def scalable_norms(graph: Graph) -> list[NodeProto]:
    """LayerNorms over the last axis with constant parameters, in graph order."""
    return [
        node
        for node in graph.nodes
        if node.op_type == "LayerNormalization"
        and attribute(node, "axis", -1) == -1
        and all(name in graph.constants for name in node.input[1:])
    ]


def readers_of(
    graph: Graph, shapes: Shapes, norm: NodeProto, past: Container[str] = KEEPING_LAST_AXIS
) -> list[NodeProto] | None:
    """What reads the LayerNorm's output as its first input, past operators that keep its last axis.

    None where something else does.

    Args:
        past: types of these operators.
    """
    carried, readers = {norm.output[0]}, []
    for node in graph.nodes:
        read = [name for name in node.input if name in carried]
        if not read or node.op_type == "Shape":
            continue
        if node.op_type in past and _keeps_channels(graph, shapes, node, carried):
            carried.update(node.output)
        elif read == [node.input[0]]:
            readers.append(node)
        else:
            return None
    return None if carried.intersection(graph.outputs) else readers


def _keeps_channels(graph: Graph, shapes: Shapes, node: NodeProto, carried: set[str]) -> bool:
    """Whether the node only moves data of the LayerNorm, and the channels stay on the last axis."""
    before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
    if not carried.issuperset(data_inputs(node)) or not before or not after or before[-1] != after[-1]:
        return False
    last = len(before) - 1
    if node.op_type == "Transpose":
        return attribute(node, "perm", [])[-1:] == [last]
    if node.op_type in ("Concat", "Gather"):
        return attribute(node, "axis", 0) not in (-1, last)
    if node.op_type == "ReduceMean":
        axes = reduced_axes(graph, node)
        return axes is not None and not {-1, last}.intersection(axes)
    if node.op_type == "Slice" and len(node.input) > 4:
        steps = graph.constants.get(node.input[4])
        return steps is not None and bool((steps > 0).all())
    if node.op_type == "Pad" and len(node.input) > 2 and node.input[2]:
        fill = graph.constants.get(node.input[2])
        return fill is not None and not fill.any()  # another value than 0 would have to be scaled too
    return isinstance(before[-1], int)


def is_padded(graph: Graph, norm: NodeProto, readers: list[NodeProto]) -> bool:
    """Whether zeros are put beside the LayerNorm's values before its readers: then no shift may pass."""
    waiting = [reader.input[0] for reader in readers]
    while waiting:
        node = graph.producer(waiting.pop())
        if node is None or node.name == norm.name:
            continue
        if node.op_type == "Pad" and _adds_something(graph, node):
            return True
        waiting += data_inputs(node)
    return False


def _adds_something(graph: Graph, pad: NodeProto) -> bool:
    """Swin has a Pad of no width wherever its windows divide the image."""
    widths = graph.constants.get(pad.input[1])
    return widths is None or bool(widths.any())
