"""Ways through a graph, up and down from an operator, and what kinds of operator lie on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute, tensor_shapes
from ptq2themoon.graph.editing.operator_types import DATA_MOVEMENT, LINEAR_TYPES, NORM_TYPES
from ptq2themoon.graph.forms.linear import is_product

# fmt: off
ACTIVATION_TYPES = frozenset({  # of one tensor, value by value
    "Gelu", "Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Clip", "Erf", "Elu", "LeakyRelu",
    "Softplus", "Mish", "Pow", "Mul", "Div",
})
# fmt: on
# Of an image: besides what moves it, and scales or shifts it by a constant.
PREPARING_TYPES = frozenset({"BatchNormalization", "Cast", "Clip", "Pad", "Resize"})
POOLING_TYPES = ("ReduceMean", "GlobalAveragePool")
# Fewer tokens than before, as queries or keys may be.
THINNING_TYPES = frozenset({"AveragePool", "MaxPool", "ReduceMax", "ReduceMean"})
# Besides activations and norms, what computes value by value, or of all channels of a token.
COMPUTING_TYPES = frozenset({
    "Abs", "Add", "Exp", "InstanceNormalization", "Max", "Min", "Neg", "PRelu", "Reciprocal", "ReduceL2",
    "ReduceMean", "ReduceSum", "Sqrt", "Sub", "Sum",
})  # fmt: skip
Test = Callable[[NodeProto], bool]


class Walk:
    """Questions to a graph about an operator's surroundings."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @cached_property
    def shapes(self) -> Shapes:
        """Of every tensor, for one image."""
        return tensor_shapes(self.graph.model, batch=1)

    def data(self, node: NodeProto) -> str:
        """The first input that is an activation; empty where there is none."""
        return next(iter(self.activations(node)), "")

    def activations(self, node: NodeProto) -> list[str]:
        """The inputs that are no constants."""
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
            fresh = [name for name in self.activations(node) if name not in seen]
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

    def is_matrix(self, node: NodeProto) -> bool:
        """A linear layer written as a matrix product, whose second operand is a constant."""
        return node.op_type in LINEAR_TYPES and node.input[1] in self.graph.constants

    def is_linear(self, node: NodeProto) -> bool:
        """A linear layer, also one written as a convolution of one pixel."""
        return self.is_matrix(node) or self.is_pointwise(node)

    def is_pointwise(self, node: NodeProto) -> bool:
        """A convolution that mixes the channels of each pixel alone."""
        weight = self.graph.constants.get(node.input[1]) if node.op_type == "Conv" else None
        alone = weight is not None and all(size == 1 for size in weight.shape[2:])
        return alone and attribute(node, "group", 1) == 1 and set(attribute(node, "strides", [1])) == {1}

    def is_depthwise(self, node: NodeProto) -> bool:
        """A convolution of each channel by itself."""
        weight = self.graph.constants.get(node.input[1]) if node.op_type == "Conv" else None
        return weight is not None and weight.shape[1] == 1 and attribute(node, "group", 1) > 1

    def is_product(self, node: NodeProto) -> bool:
        """A MatMul of two activations."""
        return is_product(self.graph, node)

    def is_scaling(self, node: NodeProto) -> bool:
        """Mul or Div of an activation and a constant."""
        return node.op_type in ("Mul", "Div") and self.graph.split_operands(node) is not None

    def is_bias(self, node: NodeProto) -> bool:
        """Add of an activation and a constant."""
        return node.op_type == "Add" and self.graph.split_operands(node) is not None

    def is_norm(self, node: NodeProto) -> bool:
        """LayerNorm or RMSNorm."""
        return node.op_type in NORM_TYPES

    def shifts(self, node: NodeProto) -> bool:
        """It moves data, or shifts it before a linear layer, as a method may."""
        return self.is_movement(node) or self.is_bias(node)

    def adapts(self, node: NodeProto) -> bool:
        """It moves, scales or shifts a branch before that joins the residual stream."""
        return (
            self.shifts(node) or self.is_scaling(node) or node.op_type in ("BatchNormalization", "ReduceSum")
        )

    def prepares(self, node: NodeProto) -> bool:
        """It may stand before the first layer: it normalises, cuts or resizes the image."""
        shifts = node.op_type in ("Add", "Sub") and self.graph.split_operands(node) is not None
        return self.is_movement(node) or self.is_scaling(node) or shifts or node.op_type in PREPARING_TYPES

    def activates(self, node: NodeProto) -> bool:
        """It may stand between two layers of an MLP: an activation, a gate, a norm, data movement.

        A convolution of each channel by itself too, as some MLPs mix the patches.
        """
        if self.shifts(node) or self.is_norm(node) or self.is_depthwise(node):
            return True
        return node.op_type in ACTIVATION_TYPES or node.op_type == "BatchNormalization"

    def layers_behind(self, tensors: Iterable[str]) -> list[NodeProto]:
        """The linear layers that read these tensors, or what is computed of these alone without a layer.

        So a norm or an activation is passed in whatever words it is written.
        """
        known, found = set(tensors), list[NodeProto]()
        for node in self.graph.nodes:
            read = self.activations(node)
            if not read or not known.issuperset(read):
                continue
            if self.is_linear(node):
                found.append(node)
            elif self.activates(node) or node.op_type in COMPUTING_TYPES:
                known.update(node.output)
        return found

    def is_unit(self, node: NodeProto) -> bool:
        """A division by what sums up the same tensor: its length, or the sum of its values."""
        if node.op_type != "Div" or len(self.activations(node)) != 2:
            return False
        sizes = self.sources(
            node.input[1], lambda n: self.is_movement(n) or n.op_type in ("Clip", "Max", "Add")
        )
        of_data = [
            n.input[0] for n in sizes if n is not None and n.op_type in ("ReduceL2", "ReduceL1", "ReduceSum")
        ]
        return bool(of_data) and of_data == [node.input[0]] * len(sizes)

    def is_rotary(self, node: NodeProto) -> bool:
        """A sum or difference of two tensors, each times a table: a rotary embedding."""
        turns = node.op_type in ("Add", "Sub")
        makers = [self.graph.producer(name) for name in node.input] if turns else []
        return len(makers) == 2 and all(made is not None and self.is_scaling(made) for made in makers)

    def mixes_heads(self, node: NodeProto) -> bool:
        """A linear layer over the heads of attention's scores or weights: talking heads."""
        if not self.is_linear(node):
            return False
        weight, shape = self.graph.constants[node.input[1]], self.shapes.get(node.input[0], ())
        heads = shape[1:2] if node.op_type == "Conv" else shape[-1:]
        return len(shape) == 4 and weight.shape[:2] == (*heads, *heads)
