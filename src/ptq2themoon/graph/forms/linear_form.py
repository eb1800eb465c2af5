"""Linear layers in one form: MatMul and Add over tokens, or Gemm with a transposed weight: one row per image.

Simplifiers write a linear layer over tokens as Reshape, Gemm, Reshape; others write the classifier as
MatMul and Add. What torch's exporter writes is the form that all are brought to.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute
from ptq2themoon.graph.editing.operator_types import BIAS, has_bias, holds_out_in


def rewrite_linear(graph: Graph, shapes: Shapes, batch: int) -> None:
    """Bring every linear layer to the form that its number of rows asks for.

    Args:
        shapes: of a graph whose batch is fixed, at `batch`; kept up to date.
    """
    for node in [node for node in graph.nodes if node.op_type == "Add"]:
        _bias_of_heads(graph, shapes, node)
    for node in list(graph.nodes):
        rows = _rows(shapes, node)
        if node.op_type == "Gemm":
            parts = _gemm_parts(graph, node)
            if parts is None or rows is None:
                continue
            if rows > batch:
                _to_matmul(graph, shapes, node, *parts)
            elif not _is_plain(node):
                _replace_by_gemm(graph, [node], node.input[0], *parts)
        elif node.op_type == "MatMul" and rows == batch:
            _matmul_to_gemm(graph, node)


def _bias_of_heads(graph: Graph, shapes: Shapes, add: NodeProto) -> None:
    """A bias [heads, size] behind the Reshape that parts a layer's channels, as JAX has it, before that."""
    operands = graph.split_operands(add)
    reshape = graph.producer(operands[0]) if operands is not None else None
    matmul = (
        graph.producer(reshape.input[0]) if reshape is not None and reshape.op_type == "Reshape" else None
    )
    if operands is None or reshape is None or matmul is None or matmul.op_type != "MatMul":
        return
    bias, whole, parted = operands[1], shapes.get(matmul.output[0], ()), shapes.get(reshape.output[0], ())
    alone = graph.only_consumer(matmul, "Reshape") is reshape and graph.only_consumer(reshape, "Add") is add
    if not alone or matmul.input[1] not in graph.constants or bias.ndim < 2:
        return
    if (bias.size, bias.shape) != (whole[-1], parted[-bias.ndim :]) or whole[:-1] != parted[: -bias.ndim]:
        return
    shifted, stem = graph.free_tensor(f"{add.output[0]}/shifted"), add.name or add.output[0]
    flat = graph.add_constant(f"{add.output[0]}/bias", bias.reshape(-1))
    shapes[shifted] = whole
    graph.replace([reshape, add], [
        helper.make_node("Add", [matmul.output[0], flat], [shifted], stem),
        helper.make_node("Reshape", [shifted, reshape.input[1]], list(add.output), reshape.name),
    ])  # fmt: skip


def _rows(shapes: Shapes, node: NodeProto) -> int | None:
    """Rows of a product whose first operand is a matrix."""
    shape = shapes.get(node.input[0], ()) if node.input else ()
    return shape[0] if len(shape) == 2 and isinstance(shape[0], int) else None


def _is_plain(gemm: NodeProto) -> bool:
    factors = (attribute(gemm, "alpha", 1.0), attribute(gemm, "beta", 1.0))
    return factors == (1.0, 1.0) and holds_out_in(gemm)


def _gemm_parts(graph: Graph, gemm: NodeProto) -> tuple[np.ndarray, np.ndarray | None] | None:
    """(weight [in, out], bias [out] or None), alpha and beta multiplied in; None where it is no layer."""
    weight = graph.constants.get(gemm.input[1])
    if weight is None or gemm.input[0] in graph.constants or attribute(gemm, "transA", 0):
        return None
    weight = weight.T if holds_out_in(gemm) else weight
    weight = _times(weight, attribute(gemm, "alpha", 1.0))
    if not has_bias(gemm):
        return weight, None
    bias = graph.constants.get(gemm.input[BIAS])
    if bias is None or bias.size not in (1, weight.shape[1]) or (bias.ndim == 2 and bias.shape[0] != 1):
        return None
    bias = np.broadcast_to(bias.reshape(-1), weight.shape[1])
    return weight, _times(bias, attribute(gemm, "beta", 1.0))


def _times(value: np.ndarray, factor: float) -> np.ndarray:
    return np.ascontiguousarray(value if factor == 1.0 else value * value.dtype.type(factor))


def _to_matmul(
    graph: Graph, shapes: Shapes, gemm: NodeProto, weight: np.ndarray, bias: np.ndarray | None
) -> None:
    """MatMul and Add on the tensor [images, tokens, in] before the Reshape that fed the Gemm."""
    out, source = gemm.output[0], gemm.input[0]
    before = graph.producer(source)
    leading: tuple[int | str, ...] = ()
    if before is not None and before.op_type == "Reshape" and out not in graph.outputs:
        whole = shapes.get(before.input[0], ())
        readers = graph.consumers(out)
        reshaped = bool(readers) and all(n.op_type == "Reshape" and n.input[0] == out for n in readers)
        if len(whole) > 2 and whole[-1] == weight.shape[0] and reshaped:
            source, leading = before.input[0], whole[:-1]
    new = _matmul_and_add(graph, gemm, source, weight, bias)
    graph.replace([gemm], new)
    if not leading:
        return
    shapes[out] = (*leading, weight.shape[1])
    for reader in list(graph.consumers(out)):
        if shapes.get(reader.output[0]) == shapes[out] and reader.output[0] not in graph.outputs:
            graph.rename_uses(reader.output[0], out)


def _matmul_and_add(
    graph: Graph, gemm: NodeProto, source: str, weight: np.ndarray, bias: np.ndarray | None
) -> list[NodeProto]:
    scope, out = gemm.name.rpartition("/")[0], gemm.output[0]
    stem = f"{scope}/" if scope else ""
    kernel = graph.add_constant(f"{out}/weight", weight)
    if bias is None:
        return [helper.make_node("MatMul", [source, kernel], [out], f"{stem}MatMul")]
    shift, product = graph.add_constant(f"{out}/bias", bias), graph.free_tensor(f"{out}/product")
    return [
        helper.make_node("MatMul", [source, kernel], [product], f"{stem}MatMul"),
        helper.make_node("Add", [product, shift], [out], f"{stem}Add"),
    ]


def _matmul_to_gemm(graph: Graph, matmul: NodeProto) -> None:
    weight = graph.constants.get(matmul.input[1])
    add = graph.only_consumer(matmul, "Add")
    operands = graph.split_operands(add) if add is not None else None
    if weight is None or weight.ndim != 2 or add is None or operands is None:
        return
    bias = operands[1]
    if bias.size == weight.shape[1] and bias.ndim <= 2:
        _replace_by_gemm(graph, [matmul, add], matmul.input[0], weight, bias.reshape(-1))


def _replace_by_gemm(
    graph: Graph, old: list[NodeProto], source: str, weight: np.ndarray, bias: np.ndarray | None
) -> None:
    out = old[-1].output[0]
    inputs = [source, graph.add_constant(f"{out}/weight", np.ascontiguousarray(weight.T))]
    if bias is not None:
        inputs.append(graph.add_constant(f"{out}/bias", bias))
    gemm = helper.make_node("Gemm", inputs, [out], old[0].name, alpha=1.0, beta=1.0, transB=1)
    graph.replace(old, [gemm])
