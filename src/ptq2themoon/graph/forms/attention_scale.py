"""The scale of attention in one form: a Mul of the queries, as timm writes it.

Others divide the scores, or scale queries and keys each by the root (the decomposed fused attention).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph
from ptq2themoon.graph.editing.operator_types import RESHAPING
from ptq2themoon.graph.forms.linear import is_product


def rewrite_scale(graph: Graph) -> None:
    """Gather the scalar factors around each product that a Softmax reads into one Mul of its first operand.

    A model that has this form already stays as it is.
    """
    for softmax in [node for node in graph.nodes if node.op_type == "Softmax"]:
        scores = _scores(graph, softmax)
        if scores is None:
            continue
        query, key = ([*_upstream(graph, name)] for name in scores.input)
        found = [*query, *key, *_downstream(graph, scores)]
        total = float(np.prod([factor for *_, factor in found]))
        if not found or (total != 1 and len(found) == len(query) == 1 and query[0][0].op_type == "Mul"):
            continue
        for node, source, _ in found:
            graph.rename_uses(node.output[0], source)
            graph.replace([node], [])
        if total != 1:  # else a scale that is in the weights
            _scale_query(graph, scores, total)


def _scale_query(graph: Graph, scores: NodeProto, factor: float) -> None:
    scaled = graph.free_tensor(f"{scores.output[0]}/scaled")
    constant = graph.add_constant(f"{scores.output[0]}/scale", np.array(factor, dtype=np.float32))
    scope = scores.name.rpartition("/")[0]
    name = f"{scope}/Mul" if scope else "Mul"
    mul = helper.make_node("Mul", [scores.input[0], constant], [scaled], name)
    scores.input[0] = scaled
    graph.replace([scores], [mul, scores])


def _scores(graph: Graph, softmax: NodeProto) -> NodeProto | None:
    """The product of two activations that the softmax weighs, past masks and biases."""
    node = graph.producer(softmax.input[0])
    while node is not None and node.op_type in RESHAPING | {"Mul", "Div", "Add", "Where"}:
        data = [name for name in node.input if name not in graph.constants]
        node = graph.producer(data[0]) if data else None
    return node if node is not None and is_product(graph, node) else None


Factor = tuple[NodeProto, str, float]


def _factor(graph: Graph, node: NodeProto) -> Factor | None:
    """(node, what it scales, factor) of a multiplication by a scalar constant."""
    operands = graph.split_operands(node) if node.op_type in ("Mul", "Div") else None
    if operands is None or operands[1].size != 1 or operands[1].ndim > 3:
        return None
    value = float(operands[1].reshape(()))
    if node.op_type == "Mul":
        return node, operands[0], value
    return (node, operands[0], 1 / value) if node.input[0] == operands[0] and value else None


def _is_read_once(graph: Graph, tensor: str) -> bool:
    return len(graph.consumers(tensor)) == 1 and tensor not in graph.outputs


def _upstream(graph: Graph, tensor: str) -> Iterator[Factor]:
    node = graph.producer(tensor)
    while node is not None and len(node.output) == 1 and _is_read_once(graph, node.output[0]):
        factor = _factor(graph, node)
        if factor is not None:
            yield factor
        elif node.op_type not in RESHAPING:
            return
        node = graph.producer(factor[1] if factor is not None else node.input[0])


def _downstream(graph: Graph, node: NodeProto) -> Iterator[Factor]:
    while _is_read_once(graph, node.output[0]):
        (node,) = graph.consumers(node.output[0])
        factor = _factor(graph, node)
        if factor is not None:
            yield factor
        elif node.op_type not in RESHAPING:
            return
