"""BatchNormalization of constants folded into the layer before it, or into the layers after it."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute
from ptq2themoon.graph.editing.operator_types import BIAS, has_bias, holds_out_in

LAYERS = ("Conv", "Gemm", "MatMul")
LAYER_RANK = 2  # of what layers read that are no convolutions: any number of dimensions counts as that


def fold_batch_norms(graph: Graph, shapes: Shapes) -> None:
    """Fold each into its layer, where that is the same; others stay.

    Before it a layer that nothing else reads; after it layers alone, and none that pads with zeros.
    """
    for node in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        if any(name not in graph.constants for name in node.input[1:]) or any(node.output[1:]):
            continue
        gamma, beta, mean, variance = (graph.constants[name].astype(np.float64) for name in node.input[1:5])
        factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        shift = beta - mean * factor
        rank = len(shapes.get(node.input[0], ()))
        if node.output[0] not in graph.outputs and (
            _into_before(graph, node, factor, shift, rank)
            or _into_after(graph, node.output[0], factor, shift, rank)
            or _into_after(graph, _channels_last(graph, node), factor, shift, LAYER_RANK)
        ):
            graph.rename_uses(node.output[0], node.input[0])
            graph.replace([node], [])


def normalised(node: NodeProto, values: list[np.ndarray]) -> np.ndarray:
    """What a BatchNormalization of constants gives, as of the weights of a convolution.

    Args:
        values: of its inputs.
    """
    x, gamma, beta, mean, variance = (value.astype(np.float64) for value in values)
    along = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    if attribute(node, "training_mode", 0) or any(node.output[1:]):
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        mean, variance = x.mean(axes), x.var(axes)
    factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    found = (x - mean.reshape(along)) * factor.reshape(along) + beta.reshape(along)
    return found.astype(values[0].dtype)


def _alone(graph: Graph, node: NodeProto | None, reader: NodeProto) -> bool:
    """Whether one operator reads what a node gives."""
    if node is None or len(node.output) != 1 or node.output[0] in graph.outputs:
        return False
    return all(other is reader for other in graph.consumers(node.output[0]))


def _into_before(graph: Graph, norm: NodeProto, factor: np.ndarray, shift: np.ndarray, rank: int) -> bool:
    """Into weights and bias of the layer whose outputs are normalised, past a Reshape of tokens."""
    reader, node = norm, graph.producer(norm.input[0])
    if (
        node is not None
        and node.op_type in ("Flatten", "Reshape")
        and rank == 2
        and _alone(graph, node, reader)
    ):
        reader, node = node, graph.producer(node.input[0])
    add: NodeProto | None = None
    if (
        node is not None
        and node.op_type == "Add"
        and graph.split_operands(node)
        and _alone(graph, node, reader)
    ):
        add, reader, node = node, node, graph.producer(_activation(graph, node))
    if node is None or node.op_type not in LAYERS or not _alone(graph, node, reader):
        return False
    if (node.op_type == "Conv") != (rank > 2) or (add is not None and node.op_type != "MatMul"):
        return False
    weight = graph.constants.get(node.input[1])
    if weight is None or not _is_plain(node) or _outputs(node, weight) != factor.size:
        return False
    bias = _bias(graph, node, add, factor.size)
    if bias is None:
        return False
    axis = 0 if node.op_type == "Conv" or holds_out_in(node) else 1
    along = [-1 if i == axis else 1 for i in range(weight.ndim)]
    node.input[1] = _constant(graph, node, "weight", weight * factor.reshape(along))
    shifted = _constant(graph, node, "bias", bias * factor + shift)
    if node.op_type != "MatMul":
        node.input[:] = [*node.input[:2], shifted]
    elif add is not None:
        add.input[:] = [node.output[0], shifted]
    else:
        _add_after(graph, node, shifted)
    graph.reindex()
    return True


def _channels_last(graph: Graph, norm: NodeProto) -> str:
    """What a Transpose alone makes of [images, channels, tokens], the channels last; empty for others."""
    moved = graph.only_consumer(norm, "Transpose")
    return moved.output[0] if moved is not None and list(attribute(moved, "perm", [])) == [0, 2, 1] else ""


def _into_after(graph: Graph, tensor: str, factor: np.ndarray, shift: np.ndarray, rank: int) -> bool:
    """Into weights and biases of all layers that read what is normalised."""
    readers = graph.consumers(tensor) if tensor and tensor not in graph.outputs else []
    found = []
    for node in readers:
        weight = graph.constants.get(node.input[1]) if node.op_type in LAYERS else None
        if weight is None or not _is_plain(node) or (node.op_type == "Conv") != (rank > 2):
            return False
        if node.op_type == "Conv" and (attribute(node, "group", 1) != 1 or _pads(node)):
            return False
        add = graph.only_consumer(node, "Add") if node.op_type == "MatMul" else None
        operands = graph.split_operands(add) if add is not None else None
        if operands is None or operands[1].shape != weight.shape[-1:]:
            add = None  # no bias of the layer
        bias = _bias(graph, node, add, _outputs(node, weight))
        if bias is None or node.input[0] != tensor:
            return False
        found.append((node, add, weight.astype(np.float64), bias))
    for node, add, weight, bias in found:
        axis = 1 if node.op_type == "Conv" or holds_out_in(node) else 0
        along = [-1 if i == axis else 1 for i in range(weight.ndim)]
        others = tuple(i for i in range(weight.ndim) if i != (0 if axis == 1 else 1))
        moved = bias + (weight * shift.reshape(along)).sum(others)
        names = [
            _constant(graph, node, "weight", weight * factor.reshape(along)),
            _constant(graph, node, "bias", moved),
        ]
        if node.op_type == "MatMul":
            node.input[1] = names[0]
            if add is None:
                _add_after(graph, node, names[1])
            else:
                add.input[:] = [node.output[0], names[1]]
        else:
            node.input[:] = [node.input[0], *names]
    graph.reindex()
    return bool(found)


def _activation(graph: Graph, add: NodeProto) -> str:
    return next(name for name in add.input if name not in graph.constants)


def _outputs(node: NodeProto, weight: np.ndarray) -> int:
    return int(weight.shape[0] if node.op_type == "Conv" or holds_out_in(node) else weight.shape[-1])


def _is_plain(node: NodeProto) -> bool:
    factors = (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0))
    return factors == (1.0, 1.0) and not attribute(node, "transA", 0)


def _pads(conv: NodeProto) -> bool:
    return any(attribute(conv, "pads", [])) or attribute(conv, "auto_pad", b"NOTSET").startswith(b"SAME")


def _bias(graph: Graph, node: NodeProto, add: NodeProto | None, size: int) -> np.ndarray | None:
    """[out]; zeros where there is none; None where it is no constant of that size."""
    value: np.ndarray | None = np.zeros(size)
    if add is not None:
        operands = graph.split_operands(add)
        value = operands[1] if operands else None
    elif node.op_type != "MatMul" and has_bias(node):
        value = graph.constants.get(node.input[BIAS])
    return value.reshape(-1).astype(np.float64) if value is not None and value.size == size else None


def _constant(graph: Graph, node: NodeProto, what: str, value: np.ndarray) -> str:
    return graph.add_constant(f"{node.output[0]}/{what}", value.astype(np.float32))


def _add_after(graph: Graph, matmul: NodeProto, bias: str) -> None:
    """A bias for a MatMul that has none."""
    out = matmul.output[0]
    product = graph.free_tensor(f"{out}/product")
    matmul.output[0] = product
    add = helper.make_node("Add", [product, bias], [out], f"{matmul.name or out}/Add")
    graph.replace([matmul], [matmul, add])
