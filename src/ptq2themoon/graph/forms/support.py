"""Which operators can be brought to a form that ONNX Runtime and PPQ run, and where one that can't stands."""

from __future__ import annotations

import onnx
from onnx import NodeProto, helper, numpy_helper, version_converter

from ptq2themoon.graph.editing.one_message import by_outline, check_model
from ptq2themoon.graph.editing.onnx_graph import STANDARD_DOMAINS, Graph, all_nodes, copied, subgraphs
from ptq2themoon.ppq_operators import runs
from ptq2themoon.vocabulary.errors import UserError

CONTROL_FLOW = ("If", "Loop", "Scan")
MICROSOFT = "com.microsoft"


def check_domains(model: onnx.ModelProto) -> None:
    """Refuse operators of other domains than ONNX's own.

    Raises:
        UserError: the first such operator, and where it stands.
    """
    for node in model.graph.node:
        if node.domain in STANDARD_DOMAINS:
            continue
        advice = "export the model without operators of that domain"
        if node.domain == MICROSOFT:
            advice = "it was fused for ONNX Runtime; give the file from before that optimisation"
        raise UserError(f"{place(Graph(model), node)}: is of domain {node.domain!r}, not of ONNX; {advice}")


def check_types(model: onnx.ModelProto) -> None:
    """Refuse operators that PPQ cannot execute.

    Raises:
        UserError: the first such operator, and where it stands.
    """
    for node in model.graph.node:
        if node.op_type in CONTROL_FLOW:
            raise UserError(
                f"{place(Graph(model), node)}: control flow does not become a fixed graph; "
                "export the model for a fixed image size and without branches"
            )
        if not runs(node.op_type):
            raise UserError(
                f"{place(Graph(model), node)}: PPQ cannot execute this operator; "
                "write the model with another one, or export for a fixed image size"
            )


def branch_taken(graph: Graph, node: NodeProto) -> list[NodeProto]:
    """The nodes of the branch that an If of constant condition takes; its constants join the graph's.

    A branch's names are its own: another branch, or the graph, may have the same ones.
    """
    taken = "then_branch" if graph.constants[node.input[0]].all() else "else_branch"
    (branch,) = (copied(item.g) for item in node.attribute if item.name == taken)
    stem = node.name or node.op_type
    own = [tensor.name for tensor in branch.initializer]
    own += [name for inner in branch.node for name in inner.output if name]
    new: dict[str, str] = {}
    for name in own:
        new[name] = graph.free_tensor(name, new.values())
    for inner in all_nodes(branch.node):
        inner.input[:] = [new.get(name, name) for name in inner.input]
        inner.output[:] = [new.get(name, name) for name in inner.output]
    for within in [graph for inner in branch.node for graph in subgraphs(inner)]:
        for value in within.output:
            value.name = new.get(value.name, value.name)
    graph.constants |= {new[tensor.name]: numpy_helper.to_array(tensor) for tensor in branch.initializer}
    given = [new.get(value.name, value.name) for value in branch.output]
    outputs = zip(given, node.output, strict=True)
    ends = [helper.make_node("Identity", [inner], [outer], f"{stem}/out") for inner, outer in outputs]
    return [*branch.node, *ends]


def place(graph: Graph, node: NodeProto) -> str:
    """`operator 'x' (Type), past Softmax 2 of 12, after 'y' (Type)`: what is known of where a node stands."""
    text = f"operator {(node.name or node.output[0])!r} ({node.op_type})"
    upstream, left = {id(node): node}, [node]
    while left:
        current = left.pop()
        producers = [graph.producer(name) for name in current.input]
        new = [n for n in producers if n is not None and id(n) not in upstream]
        upstream |= {id(n): n for n in new}
        left += new
    passed = sum(n.op_type == "Softmax" and n is not node for n in upstream.values())
    softmaxes = sum(n.op_type == "Softmax" for n in graph.nodes)
    if softmaxes:
        text += f", past Softmax {passed} of {softmaxes}" if passed else ", before the first Softmax"
    before = next((p for p in map(graph.producer, node.input) if p is not None), None)
    if before is not None:
        text += f", after {(before.name or before.output[0])!r} ({before.op_type})"
    return text


def opset_of(model: onnx.ModelProto) -> int:
    """Of ONNX's own domain; 0 where the file does not say."""
    return next((item.version for item in model.opset_import if item.domain in STANDARD_DOMAINS), 0)


def to_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model at that opset of ONNX's own domain.

    Raises:
        UserError: an operator that has no equal there.
    """
    found = opset_of(model)
    if found == opset:
        return model
    try:
        converted = by_outline(model, lambda light: version_converter.convert_version(light, opset))
        check_model(converted)
    except Exception as error:  # the converter's errors have no type of their own
        reason = " ".join(str(error).split())
        raise UserError(
            f"the model of opset {found} has no equal at opset {opset} ({reason}); "
            "export it at opset 17, or another from 13 to 20"
        ) from None
    used = {node.domain for node in all_nodes(model.graph.node)} - {*STANDARD_DOMAINS}
    others = [item for item in model.opset_import if item.domain in used]
    kept = [helper.make_opsetid("", opset), *others]
    converted.ClearField("opset_import")
    converted.opset_import.extend(kept)
    return converted
