"""Fuse LayerNorm, GELU and MatMul+Add into single operators, whatever the operands' order.

LayerNormalization and Gelu are standard operators of opset 20. MatMul+Add becomes PPQ's
`PPQBiasFusedMatMul`, written as a model-local function (MatMul, then Add) in a domain of our own, so
that ONNX Runtime runs the file as it is and PPQ loads it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, attribute, unique_name
from ptq2themoon.graph.editing.operator_types import DOMAIN, FUSED_MATMUL
from ptq2themoon.graph.forms.gelu import is_value, match_erf, match_tanh, scalar_operand
from ptq2themoon.graph.forms.normalise import FUSED_OPSET

KINDS = {"LayerNormalization": "LayerNorm", FUSED_MATMUL: "MatMul+Add", "Gelu": "GELU"}


@dataclass(frozen=True)
class Fusion:
    """One fusion: what it made, and the operators that it consumed."""

    kind: str
    operator: str
    consumed: tuple[str, ...]


def fuse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Fusion]]:
    """Fuse a normalised model; returns the fused model and what each fusion consumed, in graph order."""
    graph = Graph(model)
    name_operators(graph)
    fusions: list[Fusion] = []
    for node in list(graph.nodes):
        for match in (_match_layer_norm, _match_gelu, _match_matmul_add):
            found = match(graph, node)
            if found is not None and _is_closed(graph, *found[1:]):
                kind, consumed, new = found
                graph.replace(consumed, [new])
                fusions.append(Fusion(kind, new.name, tuple(n.name for n in consumed)))
                break
    fused = graph.finish()
    fused.functions.append(_matmul_add_function())
    fused.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return fused, fusions


def count_fused(fused: onnx.ModelProto) -> dict[str, int]:
    """Number of fused operators of each kind, whether an exporter wrote them whole or a fusion made them."""
    found = Counter(KINDS[node.op_type] for node in fused.graph.node if node.op_type in KINDS)
    return {kind: found[kind] for kind in KINDS.values()}


def _is_closed(graph: Graph, consumed: list[NodeProto], new: NodeProto) -> bool:
    """Whether nothing outside reads what lies between the consumed operators."""
    inner = {name for node in consumed for name in node.output} - set(new.output)
    readers = [reader for name in inner for reader in graph.consumers(name)]
    return inner.isdisjoint(graph.outputs) and all(reader in consumed for reader in readers)


def name_operators(graph: Graph) -> None:
    """Give every operator a unique name: recipes, tables and quantization parameters refer to it."""
    taken: set[str] = set()
    for node in graph.nodes:
        node.name = unique_name(node.name or node.op_type, taken)
        taken.add(node.name)


def _matmul_add_function() -> onnx.FunctionProto:
    body = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    opset = [helper.make_opsetid("", FUSED_OPSET)]
    return helper.make_function(DOMAIN, FUSED_MATMUL, ["x", "weight", "bias"], ["y"], body, opset)


Match = tuple[str, list[NodeProto], NodeProto]


def _mean_over_channels(graph: Graph, tensor: str) -> NodeProto | None:
    """The ReduceMean over the last axis that makes `tensor`."""
    node = graph.producer(tensor)
    if node is None or node.op_type != "ReduceMean":
        return None
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1 and node.input[1] in graph.constants:
        axes = graph.constants[node.input[1]].tolist()
    return node if list(axes or []) == [-1] and attribute(node, "keepdims", 1) == 1 else None


def _square_of(graph: Graph, node: NodeProto | None) -> str | None:
    """The tensor that `node` squares, as Pow(x, 2) or Mul(x, x)."""
    if node is None:
        return None
    if node.op_type == "Pow" and is_value(scalar_operand(graph, node, "Pow"), 2.0):
        return node.input[0]
    if node.op_type == "Mul" and node.input[0] == node.input[1]:
        return node.input[0]
    return None


def _match_layer_norm(graph: Graph, div: NodeProto) -> Match | None:
    """ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add; anchored at the Div."""
    standardised = _match_standardisation(graph, div)
    if standardised is None:
        return None
    x, epsilon, consumed = standardised
    parameters, last = [], div
    for op_type in ("Mul", "Add"):  # the affine part: gamma, then beta
        following = graph.only_consumer(last, op_type)
        operands = graph.split_operands(following) if following is not None else None
        if following is None or operands is None:
            return None
        parameters.append(following.input[0] if following.input[0] in graph.constants else following.input[1])
        consumed.append(following)
        last = following
    shapes = {graph.constants[name].shape for name in parameters}
    if len(shapes) != 1 or len(shapes.pop()) != 1:
        return None
    new = helper.make_node(
        "LayerNormalization", [x, *parameters], list(last.output), axis=-1, epsilon=epsilon
    )
    return "LayerNorm", consumed, _named(graph, new, div)


def _match_standardisation(graph: Graph, div: NodeProto) -> tuple[str, float, list[NodeProto]] | None:
    """(x, epsilon, operators) where `div` ends (x - mean) / sqrt(variance + epsilon)."""
    if div.op_type != "Div":
        return None
    sub, sqrt = graph.producer(div.input[0]), graph.producer(div.input[1])
    if sub is None or sub.op_type != "Sub" or sqrt is None:
        return None
    if sqrt.op_type != "Sqrt" and not is_value(scalar_operand(graph, sqrt, "Pow"), 0.5):
        return None
    mean, add_epsilon = _mean_over_channels(graph, sub.input[1]), graph.producer(sqrt.input[0])
    epsilon = scalar_operand(graph, add_epsilon, "Add")
    variance = _mean_over_channels(graph, epsilon[0]) if epsilon else None
    if mean is None or add_epsilon is None or epsilon is None or variance is None:
        return None
    square = graph.producer(variance.input[0])
    if square is None or mean.input[0] != sub.input[0] or _square_of(graph, square) != sub.output[0]:
        return None
    return sub.input[0], epsilon[1], [mean, sub, square, variance, add_epsilon, sqrt, div]


def _match_gelu(graph: Graph, node: NodeProto) -> Match | None:
    """The error function's form or tanh's; anchored at the Erf or Tanh."""
    found = match_erf(graph, node) or match_tanh(graph, node)
    return ("GELU", found[0], _named(graph, found[1], node)) if found else None


def _match_matmul_add(graph: Graph, matmul: NodeProto) -> Match | None:
    """MatMul with a constant [in, out] weight, then Add of a constant [out] bias, in either order."""
    if matmul.op_type != "MatMul":
        return None
    weight = graph.constants.get(matmul.input[1])
    add = graph.only_consumer(matmul, "Add")
    if weight is None or weight.ndim != 2 or add is None:
        return None
    operands = graph.split_operands(add)
    if operands is None or operands[1].shape != (weight.shape[1],):
        return None
    bias = add.input[0] if add.input[0] in graph.constants else add.input[1]
    inputs = [matmul.input[0], matmul.input[1], bias]
    new = helper.make_node(FUSED_MATMUL, inputs, list(add.output), domain=DOMAIN)
    return "MatMul+Add", [matmul, add], _named(graph, new, matmul)


def _named(graph: Graph, node: NodeProto, anchor: NodeProto) -> NodeProto:
    """The exporter's scope plus the operator type, made unique."""
    scope = anchor.name.rpartition("/")[0]
    stem = f"{scope}/{node.op_type}" if scope else node.op_type
    node.name = unique_name(stem, {n.name for n in graph.nodes})
    return node
