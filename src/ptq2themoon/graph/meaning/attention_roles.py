"""Attention: the products around a softmax, and the layers and norms before and after them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto

from ptq2themoon.graph.meaning.places import Places
from ptq2themoon.graph.meaning.walk import ACTIVATION_TYPES, THINNING_TYPES, Walk
from ptq2themoon.vocabulary.operators import Role

MEASURING_TYPES = frozenset(
    {"Clip", "Max", "ReduceL2"}
)  # of queries and keys that are divided by their length


@dataclass(frozen=True, eq=False)
class Attention:
    """One softmax with its products.

    Attributes:
        scores: product of queries and keys; None where the keys alone are weighed, over the tokens.
        contexts: product of weights and values; then that with the queries, where there are no scores.
        query, key, value: tensors that the products read.
    """

    softmax: NodeProto
    scores: NodeProto | None
    contexts: list[NodeProto]
    query: str
    key: str
    value: str


def attention_at(walk: Walk, softmax: NodeProto) -> Attention | None:
    """What belongs to a softmax, if it is attention's."""
    context = walk.forward(softmax, lambda node: _weighs(walk, node))
    if context is None or not walk.is_product(context):
        return None
    value = next(
        name for name in context.input if softmax not in walk.sources(name, lambda n: _weighs(walk, n))
    )
    found = [
        node for node in walk.sources(softmax.input[0], lambda n: _scores(walk, n)) if _is_scores(walk, node)
    ]
    if len(found) == 1 and found[0] is not None:
        query, key = found[0].input
        return Attention(softmax, found[0], [context], query, key, value)
    last = walk.forward(context, lambda node: walk.is_movement(node) or walk.is_scaling(node))
    if found or last is None or not walk.is_product(last):
        return None
    query = next(n for n in last.input if context not in walk.sources(n, lambda m: _weighs(walk, m)))
    if not all(projection(walk, tensor) for tensor in (query, softmax.input[0], value)):
        return None
    return Attention(softmax, None, [context, last], query, softmax.input[0], value)


def _is_scores(walk: Walk, node: NodeProto | None) -> bool:
    """A product of queries and keys; learnt queries may be a constant."""
    if node is None or node.op_type != "MatMul":
        return False
    learnt = walk.graph.constants.get(node.input[0])
    return walk.is_product(node) or (learnt is not None and learnt.ndim > 2)


def _scores(walk: Walk, node: NodeProto) -> bool:
    """Between the scores and their softmax: scale, mask, position bias, bounds, talking heads."""
    if walk.is_movement(node) or walk.is_scaling(node) or walk.mixes_heads(node):
        return True
    return node.op_type in ("Add", "Clip", "Max", "Min", "Sub", "Tanh", "Where")


def _weighs(walk: Walk, node: NodeProto) -> bool:
    """Between the softmax and the values: talking heads, another attention added or taken away, its sum
    made one."""
    if walk.shifts(node) or walk.is_scaling(node) or walk.mixes_heads(node):
        return True
    return node.op_type in ("ReduceSum", "Sub") or walk.is_unit(node)


def _projected(walk: Walk, node: NodeProto) -> bool:
    """Between a layer and the product that reads its queries, keys or values."""
    if walk.is_movement(node) or walk.is_scaling(node) or walk.is_norm(node) or walk.is_depthwise(node):
        return True
    if walk.is_unit(node) or walk.is_rotary(node):
        return True
    return node.op_type in THINNING_TYPES | MEASURING_TYPES | {"BatchNormalization", "Neg"}


def projection(walk: Walk, tensor: str) -> NodeProto | None:
    """The one linear layer that makes a tensor of queries, keys or values."""
    if tensor in walk.graph.constants:
        return None
    sources = walk.sources(tensor, lambda node: _projected(walk, node))
    node = sources[0] if len(sources) == 1 else None
    return node if node is not None and walk.is_linear(node) else None


class AttentionRoles:
    """Gives the operators of attention their places."""

    def __init__(self, places: Places) -> None:
        self.places, self.walk = places, places.walk

    def label(self, attention: Attention, block: int) -> NodeProto | None:
        """Returns where the MLP's stream begins: what joins attention to the stream, or else its layer."""
        put = self.places.put
        put(attention.softmax, "softmax", block)
        put(attention.scores, "attn_scores", block)
        for context in attention.contexts:
            put(context, "attn_context", block)
        for node in self._scales(attention):
            put(node, "attn_scale", block)
        layers = self._layers(attention)
        for role, node in _named(layers, attention.query in self.walk.graph.constants):
            put(node, role, block)
        norms = [
            self.walk.back(n.input[0], self.walk.shifts) for n in layers if n is not None and n in self.places
        ]
        norm = next((node for node in norms if node is not None and self.walk.is_norm(node)), None)
        proj = self._proj(attention.contexts[-1], layers)
        if proj is None:
            put(norm, "norm1", block)
            return None
        put(proj, "proj", block)
        join, after = join_of(self.walk, proj)
        put(norm or after, "norm1", block)
        put(join, "residual1", block)
        return join or proj

    def end(self, attention: Attention) -> NodeProto:
        """The layer that reads the context, or else the product that makes it."""
        context = attention.contexts[-1]
        return self._proj(context, self._layers(attention)) or context

    def _layers(self, attention: Attention) -> list[NodeProto | None]:
        """Those that make queries, keys and values."""
        return [projection(self.walk, name) for name in (attention.query, attention.key, attention.value)]

    def _scales(self, attention: Attention) -> Iterator[NodeProto]:
        """Scaling of queries and keys before the scores, and of the scores."""
        walk = self.walk
        found: list[NodeProto] = []

        def before(node: NodeProto) -> bool:
            passed = _projected(walk, node)
            found.extend([node] if passed else [])
            return passed

        def after(node: NodeProto) -> bool:
            passed = _scores(walk, node)
            found.extend([node] if passed else [])
            return passed

        for tensor in (attention.query, attention.key):
            walk.sources(tensor, before)
        if attention.scores is not None:
            walk.sources(attention.softmax.input[0], after)
        for node in found:
            operands = walk.graph.split_operands(node) if walk.is_scaling(node) else None
            if operands is not None and operands[1].shape[-1:] in (
                (),
                (1,),
            ):  # a table of rotary embedding is none
                yield node

    def _proj(self, context: NodeProto, layers: list[NodeProto | None]) -> NodeProto | None:
        """The layer that reads the context, past a norm or an activation, and past what is added to it of
        attention's own values or queries."""
        walk = self.walk

        def joins_own(node: NodeProto) -> bool:
            if node.op_type != "Add":
                return False
            sources = walk.sources(node.input[0], through) + walk.sources(node.input[1], through)
            others = [source for source in sources if source is not context]
            return bool(others) and all(source is not None and source in layers for source in others)

        def through(node: NodeProto) -> bool:
            plain = (
                walk.is_movement(node) or walk.is_bias(node) or walk.is_norm(node) or walk.is_depthwise(node)
            )
            return plain or node.op_type in ACTIVATION_TYPES | THINNING_TYPES

        for passes in (walk.shifts, lambda node: through(node) or joins_own(node)):
            proj = walk.forward(context, passes)
            if proj is not None and walk.is_linear(proj):
                return proj
        return None


def _named(layers: list[NodeProto | None], learnt_query: bool) -> list[tuple[Role, NodeProto]]:
    """Roles of the layers that make queries, keys and values; none where one of these has no layer."""
    query, key, value = layers
    if key is None or value is None:
        return []
    if query is None:
        if key is value:
            return [("kv", key)]
        return [("k", key), ("v", value)] if learnt_query else []
    if key is value:
        return [("qkv", key)] if query is key else [("q", query), ("kv", key)]
    if query is key:
        return [("qk", query), ("v", value)]
    return [] if query is value else [("q", query), ("k", key), ("v", value)]


def join_of(walk: Walk, layer: NodeProto) -> tuple[NodeProto | None, NodeProto | None]:
    """(the Add that joins a branch to the residual stream, the norm between, where there is one).

    Past LayerScale, a bias, and the sum of parallel branches. A stream may begin with a constant, as that of
    a class token does.
    """
    end, norm = walk.forward(layer, walk.adapts), None
    if end is not None and walk.is_norm(end):
        norm, end = end, walk.forward(end, walk.adapts)
    if end is None and norm is None:
        end = walk.forward(layer, lambda node: walk.adapts(node) and not walk.is_bias(node))
    return (end, norm) if end is not None and end.op_type == "Add" else (None, None)
