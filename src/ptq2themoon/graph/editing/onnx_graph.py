"""An ONNX graph that can be asked who makes and who reads a tensor, and be rewritten."""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, inliner

from ptq2themoon.graph.editing.held_constants import Constants
from ptq2themoon.graph.editing.one_message import by_outline, copied_without, without_weights
from ptq2themoon.vocabulary.errors import UserError

Proto = TypeVar("Proto", onnx.ModelProto, onnx.GraphProto, onnx.NodeProto)
Shapes = dict[str, tuple[int | str, ...]]  # a dimension is a number, or a name
STANDARD_DOMAINS = ("", "ai.onnx")
MOST_ELEMENTS = 2**28  # of a tensor of one image: 1 GiB in float32
WITH_BODIES = ("If", "Loop", "Scan", "SequenceMap")


class Graph:
    """The main graph of an ONNX model to ask and edit; `model` itself stays as it is.

    Tensors are named by strings, as in ONNX. Of subgraphs (If, Loop) only the tensors that they take
    from outside are seen.

    Raises:
        UserError: a constant whose values are in another file.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = [copied(node) for node in model.graph.node]
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                raise UserError(
                    f"constant {tensor.name!r} lies outside the ONNX file; save it with its weights inside"
                )
        self.constants = Constants(model.graph.initializer)
        self.inputs = [i.name for i in model.graph.input if i.name not in self.constants]
        self.outputs = [o.name for o in model.graph.output]
        self.reindex()

    def reindex(self) -> None:
        """Look again who makes and who reads each tensor, after nodes were changed."""
        self._producer: dict[str, NodeProto] = {}
        self._consumers: dict[str, list[NodeProto]] = defaultdict(list)
        self._known: dict[int, tuple[list[str], list[str]]] = {}  # what each node reads and makes, by its id
        self.register(self.nodes)

    def register(self, nodes: Iterable[NodeProto]) -> None:
        """Note what new nodes read and make, among `nodes` or about to be."""
        for node in nodes:
            reads, makes = self._known[id(node)] = list(node.input), list(node.output)
            for name in reads:
                self._consumers[name].append(node)
            self._producer |= dict.fromkeys(makes, node)

    def _forget(self, nodes: Iterable[NodeProto]) -> None:
        for node in nodes:
            reads, makes = self._known.pop(id(node), ([], []))
            for name in set(reads):
                self._consumers[name] = [other for other in self._consumers[name] if other is not node]
            for name in makes:
                if self._producer.get(name) is node:
                    del self._producer[name]

    def producer(self, tensor: str) -> NodeProto | None:
        """The node that computes `tensor`; None for inputs and constants."""
        return self._producer.get(tensor)

    def consumers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read `tensor` (once for each use)."""
        return self._consumers.get(tensor, [])

    def only_consumer(self, node: NodeProto, op_type: str) -> NodeProto | None:
        """The one node that reads `node`'s output, if it is of `op_type` and nothing else reads it."""
        readers = self.consumers(node.output[0])
        if len(readers) == 1 and readers[0].op_type == op_type and node.output[0] not in self.outputs:
            return readers[0]
        return None

    def split_operands(self, node: NodeProto) -> tuple[str, np.ndarray] | None:
        """(activation, constant) of a two-input node, whichever comes first; None if not one of each."""
        if len(node.input) != 2:
            return None
        first, second = node.input
        if second in self.constants and first not in self.constants:
            return first, self.constants[second]
        if first in self.constants and second not in self.constants:
            return second, self.constants[first]
        return None

    def add_constant(self, name: str, value: np.ndarray) -> str:
        """Register a constant under a name that is free, and return that name."""
        unique = self.free_tensor(name)
        self.constants[unique] = value
        return unique

    def free_tensor(self, name: str, besides: Iterable[str] = ()) -> str:
        """A tensor name like `name` that is not in use, nor among `besides`."""
        others = dict.fromkeys([*self.inputs, *besides])
        used: ChainMap[str, Any] = ChainMap(others, self.constants, self._producer)
        return unique_name(name, used)

    def replace(self, old: Iterable[NodeProto], new: Iterable[NodeProto]) -> None:
        """Put the nodes `new` where the last of `old` stood; nodes that were changed must be among them."""
        old, new = list(old), list(new)
        gone = {id(node) for node in old}
        position = max(i for i, node in enumerate(self.nodes) if id(node) in gone)
        before = [node for node in self.nodes[: position + 1] if id(node) not in gone]
        self.nodes = [*before, *new, *self.nodes[position + 1 :]]
        self._forget(old)
        self.register(new)

    def rename_uses(self, old: str, new: str) -> None:
        """Let every reader of `old` read `new`."""
        changed = {id(node): node for node in self.consumers(old)}
        changed |= {id(node): node for node in self.nodes if node.op_type in WITH_BODIES}
        for node in changed.values():
            self._forget([node])
            read_instead(node, {old: new})
            self.register([node])

    def drop_dead(self) -> None:
        """Remove nodes and constants that no output needs."""
        self.nodes, needed = live_nodes(self.nodes, self.outputs)
        self.constants.keep(needed)
        self.reindex()

    def finish(self) -> onnx.ModelProto:
        """A model with this graph: the original's header, inputs and outputs, and no stale shapes."""
        self.drop_dead()
        model = copied_without(self.model, "node", "initializer", "value_info")
        graph = model.graph
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.constants.tensors())
        inputs = [i for i in graph.input if i.name in self.inputs]
        graph.ClearField("input")
        graph.input.extend(inputs)
        return model


def most_constants(held: Iterable[int]) -> int:
    """How many numbers may be computed from constants of so many: each several times, and tables besides."""
    return MOST_ELEMENTS + 4 * sum(held)


def read_instead(node: NodeProto, new: Mapping[str, str]) -> None:
    """Let a node, and its branches and bodies, read other tensors, by the names of those that it reads."""
    for inner in all_nodes([node]):
        for i, name in enumerate(inner.input):
            if name in new:
                inner.input[i] = new[name]
    for graph in subgraphs(node):
        for output in graph.output:
            output.name = new.get(output.name, output.name)


def maker(producer: Callable[[str], NodeProto | None], tensor: str, past: Container[str]) -> NodeProto | None:
    """The node that computes `tensor`, past operators of these types, along their first inputs."""
    node = producer(tensor)
    while node is not None and node.op_type in past:
        node = producer(node.input[0])
    return node


def unique_name(stem: str, taken: Container[str]) -> str:
    """`stem`, or where that is taken `stem_2`, `stem_3`, ..."""
    name, k = stem, 1
    while name in taken:
        k += 1
        name = f"{stem}_{k}"
    return name


def copied(proto: Proto) -> Proto:
    """A model or node that can be changed alone."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    return copy


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the functions that it defines itself written out."""
    return by_outline(model, inliner.inline_local_functions) if model.functions else model


def live_nodes(nodes: Iterable[NodeProto], outputs: Iterable[str]) -> tuple[list[NodeProto], set[str]]:
    """The nodes that the tensors `outputs` need, in their order, and the names of all tensors needed."""
    needed, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(name for inner in all_nodes([node]) for name in inner.input)
            needed.update(output.name for graph in subgraphs(node) for output in graph.output)
    return kept[::-1], needed


def subgraphs(node: NodeProto) -> Iterator[onnx.GraphProto]:
    """The branches and bodies of a node, and theirs."""
    for item in node.attribute:
        for graph in (*([item.g] if item.HasField("g") else []), *item.graphs):
            yield graph
            for inner in graph.node:
                yield from subgraphs(inner)


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes, each followed by those in its branches and bodies."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from graph.node


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or `default`."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def reduced_axes(graph: Graph, node: NodeProto) -> list[int] | None:
    """Of a reduction; None where they are no constants, or all axes are meant."""
    if len(node.input) > 1:
        found = graph.constants.get(node.input[1])
        return None if found is None else [int(axis) for axis in found.reshape(-1)]
    return attribute(node, "axes")


def tensor_shapes(model: onnx.ModelProto, batch: int | None = None) -> Shapes:
    """Shape of every tensor that shape inference can tell; of so many images where `batch` is given."""
    inferred = _inferred(model, batch)
    shapes: Shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        if not value.type.tensor_type.HasField("shape"):
            continue
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims
        )
    return shapes


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """How many images a graph takes; None: any number."""
    constants = {tensor.name for tensor in model.graph.initializer}
    sizes = [v.type.tensor_type.shape.dim for v in model.graph.input if v.name not in constants]
    return sizes[0][0].dim_value or None if sizes and sizes[0] else None


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Type of the elements of every tensor that inference can tell, by TensorProto's numbers."""
    inferred = _inferred(model, None)
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _inferred(model: onnx.ModelProto, batch: int | None) -> onnx.GraphProto:
    light = without_weights(model)
    if batch is not None:
        constants = {tensor.name for tensor in model.graph.initializer}
        for value in (*light.graph.input, *light.graph.output):
            if value.name not in constants and value.type.tensor_type.shape.dim:
                value.type.tensor_type.shape.dim[0].dim_value = batch
        light.graph.ClearField("value_info")
    return onnx.shape_inference.infer_shapes(light, data_prop=True).graph
