"""The MLP of a block: its norm, its layers, its GELU, and what joins it to the residual stream."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import NodeProto

from ptq2themoon.graph.meaning.attention_roles import join_of
from ptq2themoon.graph.meaning.places import Places

QUICK = 1.702  # x * sigmoid(1.702 x) stands for GELU
CONVOLUTIONS = 3  # between attention and MLP, at most


@dataclass(frozen=True, eq=False)
class _MLP:
    norm: NodeProto | None
    first: list[NodeProto]
    second: NodeProto | None
    join: NodeProto | None


class MLPRoles:
    """Gives the operators of MLPs their places."""

    def __init__(self, places: Places) -> None:
        self.places, self.walk = places, places.walk

    def label(self, start: NodeProto, blocks: list[int]) -> None:
        """The MLP that reads the stream after `start`; as many as there are parallel blocks.

        Args:
            start: joins the attention of all these blocks to the stream.
        """
        stream = self._past_convolutions(start.output[0])
        found = self._candidates(stream) or self._beside(start, blocks)
        if len(found) != len(blocks):
            return
        put = self.places.put
        for mlp, block in zip(found, blocks, strict=True):
            put(mlp.norm, "norm2", block)
            for fc1 in mlp.first:
                put(fc1, "fc1", block)
                for node in self._gelu(fc1):
                    put(node, "gelu", block)
            put(mlp.second, "fc2", block)
            put(mlp.join, "residual2", block)

    def _candidates(self, stream: str) -> list[_MLP]:
        readers = [n for n in self.walk.ahead(stream, self.walk.is_movement) if n not in self.places]
        norms = [node for node in readers if self.walk.is_norm(node)]
        if norms:
            found = [self._mlp(self.walk.ahead(n.output[0], self.walk.shifts), n, stream) for n in norms]
        else:
            layers = [node for node in self.walk.layers_behind([stream]) if node not in self.places]
            found = [self._mlp(layers, None, stream)]
        return [mlp for mlp in found if mlp is not None]

    def _beside(self, start: NodeProto, blocks: list[int]) -> list[_MLP]:
        """An MLP that reads attention's own norm."""
        norm = self.places.at("norm1", blocks[0])
        if norm is None or len(blocks) > 1:
            return []
        readers = self.walk.ahead(norm.output[0], self.walk.shifts)
        layers = [node for node in readers if self.walk.is_linear(node) and node not in self.places]
        found = self._mlp(layers, None, start.output[0])
        return [found] if found is not None else []

    def _mlp(self, readers: list[NodeProto], norm: NodeProto | None, stream: str) -> _MLP | None:
        """One that begins with the layers among these, perhaps two of a gated MLP.

        Where the stream goes on behind the norm, the Add that joins them is among these too.
        """
        walk = self.walk
        first = [node for node in readers if node.op_type != "Add"]
        if not first or not all(walk.is_linear(node) and node not in self.places for node in first):
            return None
        second = {node.name: node for fc1 in first for node in walk.ahead(fc1.output[0], walk.activates)}
        if len(second) != 1 or not all(map(walk.is_linear, second.values())):
            second = {node.name: node for node in walk.layers_behind(fc1.output[0] for fc1 in first)}
        if not second:
            return None  # the classifier
        fc2 = next(iter(second.values())) if len(second) == 1 else None
        fc2 = fc2 if fc2 is not None and walk.is_linear(fc2) and fc2 not in self.places else None
        join, after = join_of(walk, fc2) if fc2 is not None else (None, None)
        if any(node is not join for node in readers if node.op_type == "Add"):
            return None
        if norm is None and (join is None or not self._continues(join, stream)):
            return None  # without a norm before it only its place in the stream tells an MLP
        if len(first) > (2 if fc2 is not None else 1):
            return None
        return _MLP(norm or after, first, fc2, join)

    def _continues(self, join: NodeProto, stream: str) -> bool:
        """Whether the Add takes up the stream itself."""
        producer = self.walk.graph.producer(stream)

        def moves(node: NodeProto) -> bool:
            return node is not producer and (self.walk.is_movement(node) or self.walk.is_scaling(node))

        return any(producer in self.walk.sources(name, moves) for name in join.input)

    def _gelu(self, fc1: NodeProto) -> list[NodeProto]:
        """GELU after a layer, or the three operators of its approximation by a sigmoid."""
        walk = self.walk
        readers = walk.ahead(
            fc1.output[0],
            lambda n: walk.is_movement(n) or walk.is_depthwise(n) or n.op_type == "BatchNormalization",
        )
        gelus = [node for node in readers if node.op_type == "Gelu"]
        gates = [n for n in readers if n.op_type == "Mul" and any(g.output[0] in n.input for g in gelus)]
        if len(gelus) == 1 and len(gelus) + len(gates) == len(readers):  # the rest is what a gate lets pass
            return gelus
        slopes = [n for n in readers if walk.is_scaling(n) and self._is_slope(n)]
        if len(slopes) != 1 or len(readers) != 2:
            return []
        (product,) = (node for node in readers if node is not slopes[0])
        sigmoid = walk.graph.only_consumer(slopes[0], "Sigmoid")
        quick = sigmoid is not None and product.op_type == "Mul" and sigmoid.output[0] in product.input
        return [slopes[0], sigmoid, product] if quick and sigmoid is not None else []

    def _is_slope(self, node: NodeProto) -> bool:
        operands = self.walk.graph.split_operands(node)
        if operands is None or operands[1].size != 1 or node.op_type != "Mul":
            return False
        return math.isclose(float(operands[1].reshape(())), QUICK, rel_tol=1e-3)

    def _past_convolutions(self, stream: str) -> str:
        """The stream after what convolves each channel, added to the stream or in its place."""
        walk = self.walk
        for _ in range(CONVOLUTIONS):
            readers = walk.ahead(stream, walk.is_movement)
            joins = [node for node in readers if node.op_type == "Add"]
            heads = [node for node in readers if node.op_type != "Add"]
            if len(heads) != 1 or len(joins) > 1:
                return stream
            if not joins and walk.is_depthwise(heads[0]):
                stream = heads[0].output[0]
            elif joins and self._convolves_to(heads[0]) == joins:
                stream = joins[0].output[0]
            else:
                return stream
        return stream

    def _convolves_to(self, head: NodeProto) -> list[NodeProto]:
        """Where a branch ends that has convolutions of each channel and no layer; empty for others."""
        passed: list[NodeProto] = []

        def through(node: NodeProto) -> bool:
            passed.append(node)
            return self.walk.activates(node) or self.walk.adapts(node)

        if not through(head):
            return []
        ends = self.walk.ahead(head.output[0], through)
        return ends if any(map(self.walk.is_depthwise, passed)) else []
