"""Role and block of every operator, found from the graph's structure, never from names.

A block is anchored at its Softmax: the product of two activations before it makes the scores, the
product after it applies them to the values. From there the walk goes through operators that only
move data (Reshape, Transpose, Split, ...) to the linear layers and LayerNorms around.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph, unique_name
from ptq2themoon.graph.editing.operator_types import DATA_MOVEMENT, NORM_TYPES
from ptq2themoon.graph.meaning.walk import POOLING_TYPES, Walk
from ptq2themoon.vocabulary.operators import Operator, Role


def find_roles(model: onnx.ModelProto) -> list[Operator]:
    """The operators in graph order. One that computes but has no known place keeps role None;
    one that only moves data or computes shapes has role `other`."""
    return _Finder(Graph(model)).find()


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.walk = Walk(graph)
        self.places: dict[str, tuple[Role, int | None]] = {}  # role and block, by name

    def find(self) -> list[Operator]:
        found = [self._attention_at(node) for node in self.graph.nodes if node.op_type == "Softmax"]
        attentions = [attention for attention in found if attention is not None]
        for block, attention in enumerate(attentions):
            self._label_attention(*attention, block)
            self._label_mlp(block)
        self._label_stem()
        self._label_head()
        for block in range(len(attentions)):
            self._label_last_norm(block)
        self._label_others(len(attentions))
        nowhere = (None, None)
        return [Operator(n.name, n.op_type, *self.places.get(n.name, nowhere)) for n in self.graph.nodes]

    def _label_others(self, blocks: int) -> None:
        """Operators that only move data: role `other`, and the block in whose midst they stand."""
        names = [node.name for node in self.graph.nodes]
        loose = {n.name for n in self.graph.nodes if n.op_type in DATA_MOVEMENT | {"Shape"}}
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

    def _scores_of(self, softmax: NodeProto) -> NodeProto | None:
        walk = self.walk

        def through(node: NodeProto) -> bool:  # scale, mask, relative position bias
            return walk.is_movement(node) or walk.is_scaling(node) or node.op_type in ("Add", "Where")

        scores = walk.back(softmax.input[0], through)
        return scores if scores is not None and walk.is_product(scores) else None

    def _context_of(self, softmax: NodeProto) -> NodeProto | None:
        context = self.walk.forward(softmax, self.walk.is_movement)
        return context if context is not None and self.walk.is_product(context) else None

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
        is_movement = self.walk.is_movement
        value = next(name for name in context.input if self.walk.back(name, is_movement) is not softmax)
        self._label_projections((*scores.input, value), block)
        proj = self.walk.forward(context, self._shifts)
        if proj is not None and self.walk.is_linear(proj):
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
        norm = self.walk.back(linear[0].input[0], self._shifts)
        if norm is not None and norm.op_type in NORM_TYPES:
            self._set(norm, "norm1", block)

    def _shifts(self, node: NodeProto) -> bool:
        """It moves data, or shifts it before a linear layer, as a method may."""
        return self.walk.is_movement(node) or self.walk.is_bias(node)

    def _between(self, scores: NodeProto, softmax: NodeProto) -> Iterator[NodeProto]:
        """Scaling operators after the scores."""
        node = self.graph.producer(softmax.input[0])
        while node is not None and node is not scores:
            if self.walk.is_scaling(node):
                yield node
            node = self.graph.producer(self.walk.data(node))

    def _projection(self, tensor: str, block: int) -> NodeProto | None:
        """The linear layer that makes query, key or value; scaling on the way gets its role.

        Some models normalise queries and keys after the layer.
        """
        walk = self.walk
        node = walk.back(tensor, walk.is_movement)
        while node is not None and (walk.is_scaling(node) or node.op_type in NORM_TYPES):
            if walk.is_scaling(node):
                self._set(node, "attn_scale", block)
            node = walk.back(walk.data(node), walk.is_movement)
        return node if node is not None and walk.is_linear(node) else None

    def _label_residual(self, linear: NodeProto, role: Role, block: int) -> None:
        """The Add that joins a branch to the residual stream, past LayerScale or a bias on the way."""
        walk = self.walk
        add = walk.forward(linear, lambda n: walk.is_movement(n) or walk.is_scaling(n) or walk.is_bias(n))
        if add is not None and add.op_type == "Add":
            self._set(add, role, block)

    def _label_mlp(self, block: int) -> None:
        """norm2, fc1 (of a gated MLP perhaps two layers), gelu if it is one, fc2 and residual2."""
        residual, walk = self._with_role("residual1", block), self.walk
        if residual is None:
            return
        stream = walk.ahead(residual.output[0], walk.is_movement)
        norms = [node for node in stream if node.op_type in NORM_TYPES]
        first = walk.ahead(norms[0].output[0], self._shifts) if len(norms) == 1 else []
        second = {node.name: node for fc1 in first for node in walk.ahead(fc1.output[0], walk.activates)}
        fc2 = next(iter(second.values())) if len(second) == 1 else None
        fc2 = fc2 if fc2 is not None and walk.is_linear(fc2) else None
        if not all(map(walk.is_linear, first)) or len(first) not in ((1, 2) if fc2 is not None else (1,)):
            return
        self._set(norms[0], "norm2", block)
        for fc1 in first:
            self._set(fc1, "fc1", block)
            for node in walk.ahead(fc1.output[0], walk.is_movement):
                if node.op_type == "Gelu":
                    self._set(node, "gelu", block)
        if fc2 is not None:
            self._set(fc2, "fc2", block)
            self._label_residual(fc2, "residual2", block)

    def _label_stem(self) -> None:
        """The layer that reads the image, past what prepares it, and makes tokens; position embedding and
        LayerNorm after it."""
        walk = self.walk
        readers = walk.ahead(self.graph.inputs[0], walk.prepares)
        node = readers[0] if len(readers) == 1 else None
        if node is None or not (self._makes_tokens(node) or walk.is_linear(node)):
            return
        self._set(node, "patch_embed")
        embed = walk.forward(node, walk.is_movement)
        if embed is not None and walk.is_bias(embed):
            self._set(embed, "pos_add")
            embed = walk.forward(embed, walk.is_movement)
        if embed is not None and embed.op_type in NORM_TYPES:
            self._set(embed, "norm")

    def _makes_tokens(self, node: NodeProto) -> bool:
        """A convolution whose output becomes tokens at once, unlike the first of a convolutional stem."""
        return node.op_type == "Conv" and all(map(self.walk.is_movement, self.walk.readers(node.output[0])))

    def _label_head(self) -> None:
        """The classifier, or several that are averaged, and the LayerNorm before, across a pool."""
        ends = self.walk.sources(self.graph.outputs[0], self._averages)
        heads = [node for node in ends if node is not None and self._is_free_linear(node)]
        if heads and len(heads) == len(ends):
            for node in heads:
                self._set(node, "head")
            tensors = [node.input[0] for node in heads]
        else:
            tensors = [self.graph.outputs[0]]
        before = {id(node): node for t in tensors for node in self.walk.sources(t, self._pools)}
        last = next(iter(before.values())) if len(before) == 1 else None
        if last is not None and last.op_type in NORM_TYPES:
            self._set(last, "norm")

    def _is_free_linear(self, node: NodeProto) -> bool:
        return self.walk.is_linear(node) and node.name not in self.places

    def _averages(self, node: NodeProto) -> bool:
        """It moves data, or is a part of a mean of several tensors outside the blocks."""
        if node.name in self.places:
            return False
        return self.walk.is_movement(node) or self.walk.is_scaling(node) or node.op_type == "Add"

    def _pools(self, node: NodeProto) -> bool:
        return self._averages(node) or node.op_type in POOLING_TYPES

    def _label_last_norm(self, block: int) -> None:
        """The LayerNorm that alone reads a block's output ends a run of blocks; MobileViT has several.

        In Swin it reads the tokens that are to be merged.
        """
        residual = self._with_role("residual2", block)
        reader = self.walk.forward(residual, self.walk.is_movement) if residual is not None else None
        if reader is not None and reader.op_type in NORM_TYPES:
            self._set(reader, "norm")


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
