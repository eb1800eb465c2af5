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
    """Bring masks that are added to scores, or subtracted from them, to a Where.

    A bound below all scores goes, and what would give a row zeros that a mask hides whole, where none is.
    """
    for node in list(graph.nodes):
        _without_bound(graph, node)
        _without_guard(graph, node)
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


def _without_bound(graph: Graph, node: NodeProto) -> None:
    """Take away a maximum with the least number that there is."""
    operands = graph.split_operands(node) if node.op_type == "Max" else None
    if operands is not None and (operands[1] <= LOWEST).all() and node.output[0] not in graph.outputs:
        graph.rename_uses(node.output[0], operands[0])
        graph.replace([node], [])


def _without_guard(graph: Graph, node: NodeProto) -> None:
    """Take away the zeros in place of what is no number, as fused attention has them after its softmax.

    Only a row without any score that counts gives no number: none of a mask that is known to hide no row.
    """
    asks = graph.producer(node.input[0]) if node.op_type == "Where" else None
    if asks is None or asks.op_type != "IsNaN" or asks.input[0] != node.input[2]:
        return
    if node.output[0] in graph.outputs:
        return
    softmax = graph.producer(asks.input[0])
    if softmax is not None and softmax.op_type == "Softmax" and not _may_hide_rows(graph, softmax.input[0]):
        graph.rename_uses(node.output[0], softmax.output[0])
        graph.replace([node], [])


def _may_hide_rows(graph: Graph, scores: str) -> bool:
    """Whether masks may hide all of a row: several do, one that is computed, or one that is seen to."""
    waiting, masks = [scores], list[np.ndarray]()
    while waiting:
        node = graph.producer(waiting.pop())
        if node is None or node.op_type not in KEEPING_HIDDEN:
            continue
        if node.op_type == "Where" and node.input[0] not in graph.constants:
            return True
        hides = _hides(graph, node)
        masks += [] if hides is None else [hides]
        waiting += [name for name in node.input if name and name not in graph.constants]
    return len(masks) > 1 or any(mask.all(-1).any() for mask in masks)


def _hides(graph: Graph, node: NodeProto) -> np.ndarray | None:
    """Which scores a constant mask hides; None where the node is none."""
    if node.op_type == "Where":
        chosen = graph.constants[node.input[0]].astype(bool)
        fills = (
            (graph.constants.get(name), hides)
            for name, hides in zip(node.input[1:], (chosen, ~chosen), strict=True)
        )
        return next((hides for fill, hides in fills if fill is not None and (fill <= HIDDEN).any()), None)
    value = _added(graph, node) if node.op_type in ("Add", "Sub") else None
    return value <= HIDDEN if value is not None and (value <= HIDDEN).any() else None


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
