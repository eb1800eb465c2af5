"""Ways through a graph, up and down from an operator, and what kinds of operator lie on them."""

from __future__ import annotations

from collections.abc import Callable

from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph
from ptq2themoon.graph.editing.operator_types import DATA_MOVEMENT, LINEAR_TYPES, NORM_TYPES

# fmt: off
ACTIVATION_TYPES = frozenset({  # between two layers of an MLP
    "Gelu", "Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Clip", "Erf", "Elu", "LeakyRelu",
    "Softplus", "Mish", "Pow", "Mul", "Div", *NORM_TYPES,
})
# fmt: on
# Of an image: besides what moves it, and scales or shifts it by a constant.
PREPARING_TYPES = frozenset({"BatchNormalization", "Cast", "Clip", "Pad", "Resize"})
POOLING_TYPES = ("ReduceMean", "GlobalAveragePool")
Test = Callable[[NodeProto], bool]


class Walk:
    """Questions to a graph about an operator's surroundings."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def data(self, node: NodeProto) -> str:
        """The first input that is an activation; empty where there is none."""
        return next(iter(self._activations(node)), "")

    def _activations(self, node: NodeProto) -> list[str]:
        return [name for name in node.input if name and name not in self.graph.constants]

    def readers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read the values of `tensor`, not only its shape."""
        return [node for node in self.graph.consumers(tensor) if node.op_type != "Shape"]

    def back(self, tensor: str, through: Test) -> NodeProto | None:
        """The first node upstream of `tensor` that is not passed `through`, along first activations."""
        node = self.graph.producer(tensor)
        while node is not None and through(node):
            node = self.graph.producer(self.data(node))
        return node

    def sources(self, tensor: str, through: Test) -> list[NodeProto | None]:
        """The first nodes upstream that are not passed `through`, along all activations; None: an input.

        A path that computes the batch alone (Shape) is not followed.
        """

        found: dict[str, NodeProto | None] = {}
        left, seen = [tensor], {tensor}
        while left:
            node = self.graph.producer(left.pop(0))
            if node is None or not through(node):
                found["" if node is None else node.name] = node
                continue
            fresh = [name for name in self._activations(node) if name not in seen]
            seen.update(fresh)
            left.extend(fresh)
        return [node for node in found.values() if node is None or node.op_type != "Shape"]

    def ahead(self, tensor: str, through: Test) -> list[NodeProto]:
        """The first nodes downstream that are not passed `through`, on all ways, each once."""
        found: dict[str, NodeProto] = {}
        seen: set[str] = set()
        left = [tensor]
        while left:
            for node in self.readers(left.pop(0)):
                if not through(node):
                    found[node.name] = node
                elif node.name not in seen:
                    seen.add(node.name)
                    left.extend(node.output)
        return list(found.values())

    def forward(self, node: NodeProto, through: Test) -> NodeProto | None:
        """The one node to which all ways downstream lead; None where they part or end."""
        found = self.ahead(node.output[0], through)
        return found[0] if len(found) == 1 else None

    def is_movement(self, node: NodeProto) -> bool:
        """It is data movement: no arithmetic."""
        return node.op_type in DATA_MOVEMENT

    def is_linear(self, node: NodeProto) -> bool:
        """A linear layer: its second operand is a constant."""
        return node.op_type in LINEAR_TYPES and node.input[1] in self.graph.constants

    def is_product(self, node: NodeProto) -> bool:
        """A MatMul of two activations."""
        return node.op_type == "MatMul" and not any(name in self.graph.constants for name in node.input)

    def is_scaling(self, node: NodeProto) -> bool:
        """Mul or Div of an activation and a constant."""
        return node.op_type in ("Mul", "Div") and self.graph.split_operands(node) is not None

    def is_bias(self, node: NodeProto) -> bool:
        """Add of an activation and a constant."""
        return node.op_type == "Add" and self.graph.split_operands(node) is not None

    def prepares(self, node: NodeProto) -> bool:
        """It may stand before the first layer: it normalises, cuts or resizes the image."""
        shifts = node.op_type in ("Add", "Sub") and self.graph.split_operands(node) is not None
        return self.is_movement(node) or self.is_scaling(node) or shifts or node.op_type in PREPARING_TYPES

    def activates(self, node: NodeProto) -> bool:
        """It may stand between two layers of an MLP: an activation, a gate, a norm, data movement."""
        return self.is_movement(node) or node.op_type in ACTIVATION_TYPES or self.is_bias(node)
