"""Masks of attention in one form: a Where that puts a number in the place of a score that nobody may see.

Others add infinity, or the least number that there is, to these scores. What is added to the rest, such as a
position bias, stays an Add.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes
from ptq2themoon.graph.editing.operator_types import RESHAPING

HIDDEN = -1e4  # a score at or below it has no weight beside any other; Swin's -100 is above
LOWEST = -1e30  # what is added to so low a number changes nothing
# A bias or a scale leaves a hidden score far below all others.
KEEPING_HIDDEN = RESHAPING | {"Add", "Div", "Identity", "Mul", "Sub", "Where"}


def rewrite_masks(graph: Graph, shapes: Shapes) -> None:
    """Bring masks that are added to scores, or subtracted from them, to a Where."""
    for node in [node for node in graph.nodes if node.op_type in ("Add", "Sub")]:
        value = _added(graph, node)
        if value is None or not (value <= HIDDEN).any() or not reaches_softmax(graph, node.output[0]):
            continue
        hidden = value <= HIDDEN
        fill = value[hidden].max()
        rows = hidden.all(-1) if shapes[node.output[0]][-1:] == hidden.shape[-1:] else hidden
        if fill > LOWEST and rows.any():
            continue  # where all is hidden, the scores behind the mask count
        _rewrite(graph, node, hidden, value, fill)


def _added(graph: Graph, node: NodeProto) -> np.ndarray | None:
    operands = graph.split_operands(node)
    if operands is None or not np.issubdtype(operands[1].dtype, np.floating):
        return None
    if node.op_type == "Add":
        return operands[1]
    return -operands[1] if node.input[1] in graph.constants else None


def _rewrite(graph: Graph, node: NodeProto, hidden: np.ndarray, value: np.ndarray, fill: np.ndarray) -> None:
    (scores,) = (name for name in node.input if name not in graph.constants)
    out, stem = node.output[0], node.name or node.output[0]
    seen, new = np.where(hidden, np.zeros((), value.dtype), value), []
    if seen.any():
        shown = graph.free_tensor(f"{out}/seen")
        bias = graph.add_constant(f"{out}/bias", seen)
        new.append(helper.make_node("Add", [scores, bias], [shown], stem))
        scores = shown
    where, number = graph.add_constant(f"{out}/hidden", hidden), graph.add_constant(f"{out}/fill", fill)
    scope = stem.rpartition("/")[0]
    new.append(
        helper.make_node("Where", [where, number, scores], [out], f"{scope}/Where" if scope else "Where")
    )
    graph.replace([node], new)


def reaches_softmax(graph: Graph, tensor: str) -> bool:
    """Whether a Softmax reads the tensor, past what leaves a hidden score hidden."""
    waiting, seen = [tensor], {tensor}
    while waiting:
        for node in graph.consumers(waiting.pop()):
            if node.op_type == "Softmax":
                return True
            if node.op_type in KEEPING_HIDDEN:
                fresh = set(node.output) - seen
                seen |= fresh
                waiting += fresh
    return False


def hidden_tensors(graph: Graph) -> set[str]:
    """Activations that hold hidden scores, up to the Softmax: their range says nothing of the scores."""
    found: set[str] = set()
    for node in graph.nodes:
        fills = [graph.constants[name] for name in node.input[1:] if name in graph.constants]
        masks = node.op_type == "Where" and any((fill <= HIDDEN).any() for fill in fills)
        passes = node.op_type in KEEPING_HIDDEN and found.intersection(node.input)
        if (masks or passes) and reaches_softmax(graph, node.output[0]):
            found.update(node.output)
    return found
