"""Role and block of every operator, found from the graph's structure, never from names.

A block is anchored at its Softmax: the product of two activations before it makes the scores, the
product after it applies them to the values. From there the walk goes through operators that only
move data (Reshape, Transpose, Split, ...) to the linear layers and LayerNorms around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx
from onnx import NodeProto

from ptq2themoon.graph.editing import Graph, unique_name
from ptq2themoon.graph.fuse import LINEAR_TYPES
from ptq2themoon.graph.operators import Operator, Role

# fmt: off
MOVING_TYPES = frozenset({  # no arithmetic: values pass unchanged
    "Reshape", "Transpose", "Split", "Squeeze", "Unsqueeze", "Slice", "Gather", "Flatten", "Expand", "Concat",
    "Identity",
})
# fmt: on


def find_roles(model: onnx.ModelProto) -> list[Operator]:
    """The operators in graph order. One that computes but has no known place keeps role None;
    one that only moves data or computes shapes has role `other`."""
    return _Finder(Graph(model)).find()


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.places: dict[str, tuple[Role, int | None]] = {}  # role and block, by name

    def find(self) -> list[Operator]:
        found = [self._attention_at(node) for node in self.graph.nodes if node.op_type == "Softmax"]
        attentions = [attention for attention in found if attention is not None]
        for block, attention in enumerate(attentions):
            self._label_attention(*attention, block)
            self._label_mlp(block)
        self._label_stem_and_head()
        self._label_others(len(attentions))
        nowhere = (None, None)
        return [Operator(n.name, n.op_type, *self.places.get(n.name, nowhere)) for n in self.graph.nodes]

    def _label_others(self, blocks: int) -> None:
        """Operators that only move data: role `other`, and the block in whose midst they stand."""
        names = [node.name for node in self.graph.nodes]
        loose = {n.name for n in self.graph.nodes if n.op_type in MOVING_TYPES | {"Shape"}}
        self.places |= dict.fromkeys(loose, ("other", None))
        for block in range(blocks):
            members = [i for i, name in enumerate(names) if self._block(name) == block]
            for name in names[members[0] : members[-1]]:
                if name in loose:
                    self.places[name] = ("other", block)

    def _block(self, name: str) -> int | None:
        return self.places[name][1] if name in self.places else None

    def _set(self, node: NodeProto | None, role: Role, block: int | None = None) -> None:
        if node is not None:
            self.places.setdefault(node.name, (role, block))

    def _with_role(self, role: Role, block: int | None) -> NodeProto | None:
        return next((n for n in self.graph.nodes if self.places.get(n.name) == (role, block)), None)

    def _is_linear(self, node: NodeProto) -> bool:
        return node.op_type in LINEAR_TYPES and node.input[1] in self.graph.constants

    def _is_product(self, node: NodeProto) -> bool:
        """A MatMul of two activations."""
        return node.op_type == "MatMul" and not any(name in self.graph.constants for name in node.input)

    def _is_scaling(self, node: NodeProto) -> bool:
        return node.op_type in ("Mul", "Div") and self.graph.split_operands(node) is not None

    def _back(self, tensor: str, through: Callable[[NodeProto], bool]) -> NodeProto | None:
        """The first node upstream of `tensor` that is not passed `through`, along first activations."""
        node = self.graph.producer(tensor)
        while node is not None and through(node):
            node = self.graph.producer(self._data(node))
        return node

    def _data(self, node: NodeProto) -> str:
        """The first input that is an activation; empty where there is none."""
        return next((name for name in node.input if name not in self.graph.constants), "")

    def _forward(self, node: NodeProto, through: Callable[[NodeProto], bool]) -> NodeProto | None:
        """The first node downstream that is not passed `through`; None where the way forks or ends."""
        readers = self._readers(node.output[0])
        while len(readers) == 1 and through(readers[0]):
            readers = self._readers(readers[0].output[0])
        return readers[0] if len(readers) == 1 else None

    def _readers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read the values of `tensor`, not only its shape."""
        return [node for node in self.graph.consumers(tensor) if node.op_type != "Shape"]

    def _moves(self, node: NodeProto) -> bool:
        return node.op_type in MOVING_TYPES

    def _scores_of(self, softmax: NodeProto) -> NodeProto | None:
        def through(node: NodeProto) -> bool:  # scale, mask, relative position bias
            return self._moves(node) or self._is_scaling(node) or node.op_type in ("Add", "Where")

        scores = self._back(softmax.input[0], through)
        return scores if scores is not None and self._is_product(scores) else None

    def _context_of(self, softmax: NodeProto) -> NodeProto | None:
        context = self._forward(softmax, self._moves)
        return context if context is not None and self._is_product(context) else None

    def _attention_at(self, softmax: NodeProto) -> tuple[NodeProto, NodeProto, NodeProto] | None:
        """(scores, softmax, context), the products around a softmax that belongs to attention."""
        scores, context = self._scores_of(softmax), self._context_of(softmax)
        return (scores, softmax, context) if scores is not None and context is not None else None

    def _label_attention(self, scores: NodeProto, softmax: NodeProto, context: NodeProto, block: int) -> None:
        self._set(softmax, "softmax", block)
        self._set(scores, "attn_scores", block)
        self._set(context, "attn_context", block)
        for node in self._between(scores, softmax):
            self._set(node, "attn_scale", block)
        value = next(name for name in context.input if self._back(name, self._moves) is not softmax)
        self._label_projections((*scores.input, value), block)
        proj = self._forward(context, self._moves)
        if proj is not None and self._is_linear(proj):
            self._set(proj, "proj", block)
            self._label_residual(proj, "residual1", block)

    def _label_projections(self, tensors: Iterable[str], block: int) -> None:
        """Where query, key and value come from, one layer or three, and the LayerNorm before."""
        sources = [self._projection(tensor, block) for tensor in tensors]
        linear = list({node.name: node for node in sources if node is not None}.values())
        if None in sources or len(linear) == 2:
            return
        roles: tuple[Role, ...] = ("qkv",) if len(linear) == 1 else ("q", "k", "v")
        for node, role in zip(linear, roles, strict=True):
            self._set(node, role, block)
        norm = self._back(linear[0].input[0], self._moves)
        if norm is not None and norm.op_type == "LayerNormalization":
            self._set(norm, "norm1", block)

    def _between(self, scores: NodeProto, softmax: NodeProto) -> Iterator[NodeProto]:
        """Scaling operators after the scores."""
        node = self.graph.producer(softmax.input[0])
        while node is not None and node is not scores:
            if self._is_scaling(node):
                yield node
            node = self.graph.producer(self._data(node))

    def _projection(self, tensor: str, block: int) -> NodeProto | None:
        """The linear layer that makes query, key or value; scaling on the way gets its role.

        Some models normalise queries and keys after the layer.
        """
        node = self._back(tensor, self._moves)
        while node is not None and (self._is_scaling(node) or node.op_type == "LayerNormalization"):
            if self._is_scaling(node):
                self._set(node, "attn_scale", block)
            node = self._back(self._data(node), self._moves)
        return node if node is not None and self._is_linear(node) else None

    def _label_residual(self, linear: NodeProto, role: Role, block: int) -> None:
        """The Add that joins a branch to the residual stream, past LayerScale or a bias on the way."""

        def through(node: NodeProto) -> bool:
            is_bias = node.op_type == "Add" and self.graph.split_operands(node) is not None
            return self._moves(node) or self._is_scaling(node) or is_bias

        add = self._forward(linear, through)
        if add is not None and add.op_type == "Add":
            self._set(add, role, block)

    def _label_mlp(self, block: int) -> None:
        residual = self._with_role("residual1", block)
        if residual is None:
            return
        norms = [n for n in self.graph.consumers(residual.output[0]) if n.op_type == "LayerNormalization"]
        fc1 = self._forward(norms[0], self._moves) if len(norms) == 1 else None
        if fc1 is None or not self._is_linear(fc1):
            return
        self._set(norms[0], "norm2", block)
        self._set(fc1, "fc1", block)
        activation = self._forward(fc1, self._moves)
        if activation is None or activation.op_type != "Gelu":
            return
        self._set(activation, "gelu", block)
        fc2 = self._forward(activation, self._moves)
        if fc2 is not None and self._is_linear(fc2):
            self._set(fc2, "fc2", block)
            self._label_residual(fc2, "residual2", block)

    def _label_stem_and_head(self) -> None:
        readers = self._readers(self.graph.inputs[0])
        node = readers[0] if len(readers) == 1 else None
        if node is not None and self._moves(node):
            node = self._forward(node, self._moves)
        if node is not None and (node.op_type == "Conv" or self._is_linear(node)):
            self._set(node, "patch_embed")
            embed = self._forward(node, self._moves)
            if embed is not None and embed.op_type == "Add" and self.graph.split_operands(embed):
                self._set(embed, "pos_add")
        last = self._back(self.graph.outputs[0], self._moves)
        if last is not None and self._is_linear(last):
            self._set(last, "head")
            last = self._back(last.input[0], lambda n: self._moves(n) or n.op_type == "ReduceMean")
        if last is not None and last.op_type == "LayerNormalization":
            self._set(last, "norm")


def rename_operators(
    model: onnx.ModelProto, operators: Iterable[Operator]
) -> tuple[list[Operator], dict[str, str]]:
    """Name each operator by its place (`blocks.5.fc2`, `norm`), so that one table serves every exporter.

    Renames the nodes of `model`; one without a role keeps its name.
    Returns the operators with their new names, and the new name of each old one.
    """
    operators = list(operators)
    taken = {operator.name for operator in operators if operator.role is None}
    renamed = {}
    for node, operator in zip(model.graph.node, operators, strict=True):
        if operator.role is None:
            continue
        role = operator.type.lower() if operator.role == "other" else operator.role
        stem = role if operator.block is None else f"blocks.{operator.block}.{role}"
        name = unique_name(stem, taken)
        taken.add(name)
        renamed[operator.name] = node.name = name
    return [o._replace(name=renamed.get(o.name, o.name)) for o in operators], renamed
