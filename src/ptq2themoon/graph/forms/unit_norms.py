"""RMSNorm as x / length(x), times the root of the number of channels and a gain, in the form of others."""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes
from ptq2themoon.graph.forms.norms import mean_of, reduced_axis

KEEPING_FROM_ZERO = ("Clip", "Expand", "Max")  # between a length and what is divided by it
LEAST = 1e-24  # added to the mean of squares, as nothing else keeps it from 0


def rewrite_unit_norms(graph: Graph, shapes: Shapes) -> None:
    """Each one that has a gain for each channel; other unit vectors, as cosine attention's, stay."""
    for node in [node for node in graph.nodes if node.op_type == "Div"]:
        width = _width(graph, node, shapes)
        consumed, gain = _gain(graph, node, width or 0)
        if width and gain.shape == (width,):
            _rewrite(graph, consumed, (gain / math.sqrt(width)).astype(np.float32))


def _width(graph: Graph, node: NodeProto, shapes: Shapes) -> int | None:
    """Channels of a tensor that is divided by its length over the channels."""
    x, length = node.input
    maker = graph.producer(length)
    while maker is not None and maker.op_type in KEEPING_FROM_ZERO:
        maker = graph.producer(maker.input[0])
    width = (shapes.get(x) or ("?",))[-1]
    if maker is None or reduced_axis(graph, maker.output[0], "ReduceL2", x, shapes) != -1:
        return None
    return width if isinstance(width, int) and width > 1 else None


def _gain(graph: Graph, node: NodeProto, width: int) -> tuple[list[NodeProto], np.ndarray]:
    """(the node and the multiplications by constants that follow, what they make together)."""
    consumed, gain = [node], np.ones(1, np.float32)
    while (reader := graph.only_consumer(consumed[-1], "Mul")) is not None:
        operands = graph.split_operands(reader)
        if operands is None or (operands[1].size != 1 and operands[1].shape != (width,)):
            break
        gain = gain * operands[1].reshape(-1)
        consumed.append(reader)
    return consumed, gain


def _rewrite(graph: Graph, consumed: list[NodeProto], gamma: np.ndarray) -> None:
    x, out, stem = consumed[0].input[0], consumed[-1].output[0], consumed[0].name or consumed[0].output[0]
    square, mean, total, root, unit = (
        graph.free_tensor(f"{out}/{part}") for part in ("square", "mean", "sum", "root", "unit")
    )
    parts = {"two": np.array(2, np.float32), "least": np.array(LEAST, np.float32), "gamma": gamma}
    two, least, scale = (graph.add_constant(f"{out}/{part}", value) for part, value in parts.items())
    graph.replace(consumed, [
        helper.make_node("Pow", [x, two], [square], f"{stem}/Pow"),
        mean_of(graph, square, mean, f"{stem}/ReduceMean"),
        helper.make_node("Add", [mean, least], [total], f"{stem}/Add"),
        helper.make_node("Sqrt", [total], [root], f"{stem}/Sqrt"),
        helper.make_node("Div", [x, root], [unit], f"{stem}/Div"),
        helper.make_node("Mul", [unit, scale], [out], f"{stem}/Mul"),
    ])  # fmt: skip
