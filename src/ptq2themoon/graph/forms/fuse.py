"""Fuse LayerNorm, RMSNorm, GELU and MatMul+Add into single operators, whatever the operands' order.

LayerNormalization and Gelu are standard operators of opset 20. MatMul+Add becomes PPQ's
`PPQBiasFusedMatMul`, written as a model-local function (MatMul, then Add) in a domain of our own, so
that ONNX Runtime runs the file as it is and PPQ loads it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import onnx
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, unique_name
from ptq2themoon.graph.editing.operator_types import DOMAIN, FUSED_MATMUL, RMS_NORM
from ptq2themoon.graph.forms.gelu import match_erf, match_tanh
from ptq2themoon.graph.forms.normalise import FUSED_OPSET
from ptq2themoon.graph.forms.norms import match_layer_norm, match_rms_norm
from ptq2themoon.graph.forms.rms_norm import with_function

NOT_PLAIN = re.compile(r"[^\w./:;-]", re.ASCII)  # what could mean something to a table, a page or a figure
KINDS = {"LayerNormalization": "LayerNorm", RMS_NORM: "RMSNorm", FUSED_MATMUL: "MatMul+Add", "Gelu": "GELU"}


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
        for match in (_match_norm, _match_gelu, _match_matmul_add):
            found = match(graph, node)
            if found is not None and _is_closed(graph, *found[1:]):
                kind, consumed, new = found
                graph.replace(consumed, [new])
                fusions.append(Fusion(kind, new.name, tuple(n.name for n in consumed)))
                break
    fused = graph.finish()
    fused.functions.append(_matmul_add_function())
    fused.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return with_function(fused), fusions


def count_fused(fused: onnx.ModelProto) -> dict[str, int]:
    """Number of fused operators of each kind, whether an exporter wrote them whole or a fusion made them.

    RMSNorm is named where there is one.
    """
    found = Counter(KINDS[node.op_type] for node in fused.graph.node if node.op_type in KINDS)
    return {kind: found[kind] for kind in KINDS.values() if found[kind] or kind != "RMSNorm"}


def _is_closed(graph: Graph, consumed: list[NodeProto], new: NodeProto) -> bool:
    """Whether nothing outside reads what lies between the consumed operators."""
    inner = {name for node in consumed for name in node.output} - set(new.output)
    readers = [reader for name in inner for reader in graph.consumers(name)]
    return inner.isdisjoint(graph.outputs) and all(reader in consumed for reader in readers)


def name_operators(graph: Graph) -> None:
    """Give every operator a unique, plain name: recipes, tables, figures and parameters refer to it."""
    taken: set[str] = set()
    used: Counter[str] = Counter()  # else many of one name would be counted through for each
    for node in graph.nodes:
        stem = NOT_PLAIN.sub("_", node.name).lstrip("-") or node.op_type
        name = stem
        while name in taken:
            used[stem] += 1
            name = f"{stem}_{used[stem] + 1}"
        node.name = name
        taken.add(name)


def _matmul_add_function() -> onnx.FunctionProto:
    body = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    opset = [helper.make_opsetid("", FUSED_OPSET)]
    return helper.make_function(DOMAIN, FUSED_MATMUL, ["x", "weight", "bias"], ["y"], body, opset)


Match = tuple[str, list[NodeProto], NodeProto]


def _match_norm(graph: Graph, node: NodeProto) -> Match | None:
    """LayerNorm or RMSNorm; anchored at the operator that divides by the deviation."""
    found = match_layer_norm(graph, node)
    kind = "LayerNorm" if found else "RMSNorm"
    found = found or match_rms_norm(graph, node)
    return (kind, found[0], _named(graph, found[1], node)) if found else None


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
