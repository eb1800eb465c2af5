"""Role and block of every operator, found from the graph's structure, never from names.

A block is anchored at its Softmax: the product of two activations before it makes the scores, the
product after it applies them to the values. From there the walk goes through operators that only
move data (Reshape, Transpose, Split, ...) to the linear layers and LayerNorms around.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph, unique_name
from ptq2themoon.graph.editing.operator_types import DATA_MOVEMENT, IMAGE_TYPES
from ptq2themoon.graph.meaning.attention_roles import AttentionRoles, attention_at
from ptq2themoon.graph.meaning.mlp_roles import MLPRoles
from ptq2themoon.graph.meaning.places import Places
from ptq2themoon.graph.meaning.walk import POOLING_TYPES, Test
from ptq2themoon.vocabulary.operators import Operator, Role

IMAGE_RANK = 4  # [images, channels, rows, columns]


def find_roles(model: onnx.ModelProto) -> list[Operator]:
    """The operators in graph order. One that computes but has no known place keeps role None;
    one that only moves data or computes shapes has role `other`."""
    return _Finder(Graph(model)).find()


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.places = graph, Places(graph)
        self.walk = self.places.walk

    def find(self) -> list[Operator]:
        found = [attention_at(self.walk, node) for node in self.graph.nodes if node.op_type == "Softmax"]
        attentions = [attention for attention in found if attention is not None]
        roles, starts = AttentionRoles(self.places), dict[str, tuple[NodeProto, list[int]]]()
        blocks: dict[str, int] = {}  # heads apart, whose contexts one layer reads, are of one block
        for attention in attentions:
            block = blocks.setdefault(roles.end(attention).name, len(blocks))
            start = roles.label(attention, block)
            if start is not None:  # parallel blocks begin at one
                begun = starts.setdefault(start.name, (start, []))[1]
                begun += [block] if block not in begun else []
        for start, begun in starts.values():
            MLPRoles(self.places).label(start, begun)
        self._label_stem()
        self._label_head()
        for block in blocks.values():
            self._label_last_norm(block)
        self._label_others(len(blocks))
        nowhere, known = (None, None), self.places.known
        return [Operator(n.name, n.op_type, *known.get(n.name, nowhere)) for n in self.graph.nodes]

    def _label_others(self, blocks: int) -> None:
        """Operators that only move data: role `other`, and the block in whose midst they stand."""
        names = [node.name for node in self.graph.nodes]
        loose = {n.name for n in self.graph.nodes if n.op_type in DATA_MOVEMENT | {"Shape"}}
        self.places.known |= dict.fromkeys(loose, ("other", None))
        for block in range(blocks):
            members = [i for i, name in enumerate(names) if self.places.block(name) == block]
            for name in names[members[0] : members[-1]]:
                if name in loose:
                    self.places.known[name] = ("other", block)

    def _label_stem(self) -> None:
        """The layer that makes tokens; position embedding and LayerNorm after it.

        It reads the image, past what prepares it, or stands between convolutions and the first block.
        """
        walk = self.walk
        readers = walk.ahead(self.graph.inputs[0], walk.prepares)
        node = readers[0] if len(readers) == 1 else None
        if node is not None and walk.is_norm(node):  # of the pixels of each patch
            node = walk.forward(node, walk.is_movement)
        if node is None or not (self._makes_tokens(node) or walk.is_matrix(node)):
            node = self._after_convolutions()
        if node is None:
            return
        self.places.put(node, "patch_embed")
        steps: list[tuple[Role, Test]] = [("pos_add", walk.is_bias), ("norm", walk.is_norm)]
        for role, fits in (steps[1], *steps):
            embed = walk.forward(node, lambda n: walk.is_movement(n) or walk.is_scaling(n))
            if embed is not None and fits(embed) and embed not in self.places:
                self.places.put(embed, role)
                node = embed

    def _makes_tokens(self, node: NodeProto) -> bool:
        """A convolution whose output becomes tokens at once, unlike the first of a convolutional stem."""
        readers = self.walk.readers(node.output[0])
        if node.op_type != "Conv" or not all(map(self.walk.shifts, readers)):
            return False
        readers = self.walk.ahead(node.output[0], self.walk.shifts)
        # A norm of groups or tokens [images, channels, places] tells nothing: what follows does.
        norms = [reader for reader in readers if reader.op_type in IMAGE_TYPES]
        readers += [n for norm in norms for n in self.walk.ahead(norm.output[0], self.walk.activates)]
        return not any(self._is_of_images(reader) for reader in readers)

    def _is_of_images(self, node: NodeProto) -> bool:
        return node.op_type in IMAGE_TYPES and len(self.walk.shapes.get(node.input[0], ())) == IMAGE_RANK

    def _after_convolutions(self) -> NodeProto | None:
        """The convolution whose output the first block reads, where none of more than a pixel follows."""
        nodes, walk = self.graph.nodes, self.walk
        first = next((i for i, node in enumerate(nodes) if self.places.block(node.name) == 0), None)
        reader = next(filter(None, (self.places.at(role, 0) for role in ("norm1", "qkv", "q", "qk"))), None)
        if first is None or reader is None:
            return None
        later = [n for n in nodes[first:] if n.op_type == "Conv" and not walk.is_depthwise(n)]
        sources = walk.sources(reader.input[0], lambda node: walk.shifts(node) or walk.is_norm(node))
        node = sources[0] if len(sources) == 1 else None
        makes = node is not None and self._makes_tokens(node) and all(map(walk.is_pointwise, later))
        return node if makes else None

    def _label_head(self) -> None:
        """The classifier, or several that are averaged, and the LayerNorm before, across a pool."""
        ends = self.walk.sources(self.graph.outputs[0], self._averages)
        heads = [node for node in ends if node is not None and self._is_free_linear(node)]
        if heads and len(heads) == len(ends):
            for node in heads:
                self.places.put(node, "head")
            tensors = [node.input[0] for node in heads]
        else:
            tensors = [self.graph.outputs[0]]
        before = {id(node): node for t in tensors for node in self.walk.sources(t, self._pools)}
        if all(node is not None and self.walk.is_norm(node) for node in before.values()):
            for last in before.values():
                self.places.put(last, "norm")

    def _is_free_linear(self, node: NodeProto) -> bool:
        return self.walk.is_linear(node) and node not in self.places

    def _averages(self, node: NodeProto) -> bool:
        """It moves data, or is a part of a mean of several tensors outside the blocks."""
        if node in self.places:
            return False
        if node.op_type == "ReduceMean":
            stacked = self.graph.producer(node.input[0])
            return stacked is not None and stacked.op_type == "Concat"
        return self.walk.is_movement(node) or self.walk.is_scaling(node) or node.op_type == "Add"

    def _pools(self, node: NodeProto) -> bool:
        return self._averages(node) or node.op_type in POOLING_TYPES

    def _label_last_norm(self, block: int) -> None:
        """The LayerNorm that alone reads a block's output ends a run of blocks; MobileViT has several.

        In Swin it reads the tokens that are to be merged.
        """
        residual = self.places.at("residual2", block)
        reader = self.walk.forward(residual, self.walk.is_movement) if residual is not None else None
        if reader is not None and self.walk.is_norm(reader):
            self.places.put(reader, "norm")


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
