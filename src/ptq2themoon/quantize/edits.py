"""What a method changed in a fused graph: constants, and operators replaced by others."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, copied
from ptq2themoon.graph.editing.operator_types import BIAS, DOMAIN, FUSED_MATMUL
from ptq2themoon.graph.forms.rms_norm import with_function
from ptq2themoon.vocabulary.errors import UserError


@dataclass
class Edits:
    """Changes to a graph, which itself stays as it is.

    Attributes:
        constants: new values by name, of constants that were there or are new.
        nodes: what stands in the place of an operator, by its name; an empty list removes it.
    """

    constants: dict[str, np.ndarray] = field(default_factory=dict)
    nodes: dict[str, list[NodeProto]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.constants or self.nodes)

    def put(self, operator: str, nodes: list[NodeProto]) -> None:
        """Let `nodes` stand in the place of an operator, which may itself have come by an edit."""
        for replaced, new in self.nodes.items():
            names = [node.name for node in new]
            if operator in names:
                at = names.index(operator)
                self.nodes[replaced] = [*new[:at], *nodes, *new[at + 1 :]]
                return
        self.nodes[operator] = nodes

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The edited model; `model` itself where nothing was edited.

        Raises:
            UserError: an operator that the graph does not have.
        """
        if not self:
            return model
        graph = Graph(model)
        missing = set(self.nodes) - {node.name for node in graph.nodes}
        if missing:
            raise UserError(f"an edit replaces operator {min(missing)!r}, which the graph does not have")
        graph.constants |= self.constants
        graph.nodes = [new for node in graph.nodes for new in self.nodes.get(node.name, [node])]
        return with_function(graph.finish())


def with_parameter(graph: Graph, node: NodeProto, position: int) -> tuple[NodeProto, str]:
    """An operator like `node` whose parameter at `position` is a constant of its own, and that one's name.

    The constant is new where the operator has none there, or shares it with another operator; a MatMul
    that gets a bias becomes one operator with it. `node` itself comes back where nothing must change.
    """
    name = node.input[position] if position < len(node.input) else ""
    if name and len(graph.consumers(name)) == 1:
        return node, name
    new = copied(node)
    if node.op_type == "MatMul" and position == BIAS:
        new = helper.make_node(FUSED_MATMUL, node.input, node.output, name=node.name, domain=DOMAIN)
    name = graph.free_tensor(f"{node.name}/parameter{position}")
    new.input[:] = [*node.input[:position], name, *node.input[position + 1 :]]
    return new, name
