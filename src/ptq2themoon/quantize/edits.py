"""What a method changed in a fused graph: constants, and operators replaced by others."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, helper

from ptq2themoon.errors import UserError
from ptq2themoon.graph.editing import Graph
from ptq2themoon.graph.fuse import DOMAIN, FUSED_MATMUL


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
        graph._index()
        return graph.finish()


def with_bias(graph: Graph, node: NodeProto) -> tuple[NodeProto, str, np.ndarray] | None:
    """A linear operator with a bias of zeros, the bias's name and its value; None if it has a bias already.

    Args:
        node: MatMul, Gemm or Conv with constant weights.
    """
    if len(node.input) > 2 and node.input[2]:
        return None
    weight = graph.constants[node.input[1]]
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    channels = weight.shape[0] if node.op_type == "Conv" or turned else weight.shape[-1]
    name = graph.free_tensor(f"{node.name}/bias")
    new = NodeProto()
    new.CopyFrom(node)
    if node.op_type == "MatMul":
        new = helper.make_node(FUSED_MATMUL, node.input, node.output, name=node.name, domain=DOMAIN)
    new.input[:] = [*node.input[:2], name]
    return new, name, np.zeros(channels, np.float32)
