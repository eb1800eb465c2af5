"""Softmax, and parts of LayerNorm, as exporters of JAX and TensorFlow write them, in the form of others.

A softmax is exp(x - max(x)) / sum(exp(x - max(x))). A LayerNorm has its variance as mean(x^2) - mean(x)^2,
its scale within the reciprocal of the deviation, or its mean within the shift: x s + (beta - mean(x) s).
"""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute, reduced_axes
from ptq2themoon.graph.forms.gelu import is_value, scalar_operand
from ptq2themoon.graph.forms.norms import is_one, mean_of, quotients, reduced_axis, squared


def rewrite_taken_apart(graph: Graph, shapes: Shapes) -> None:
    """Bring them to one Softmax, and to the parts that the fusion of LayerNorm looks for."""
    for rewrite in (_softmax, _mean, _kept, _root, _gain):
        for node in list(graph.nodes):
            rewrite(graph, node, shapes)
    _merge(graph, shapes)
    for rewrite in (_variance, _shift, _scale, _affine):
        for node in list(graph.nodes):
            rewrite(graph, node, shapes)


def _softmax(graph: Graph, node: NodeProto, shapes: Shapes) -> None:
    """exp / sum(exp), and exp of the logarithm of that."""
    if node.op_type == "Exp":
        log, axis = graph.producer(node.input[0]), None
        if log is not None and log.op_type == "LogSoftmax":
            axis = attribute(log, "axis", -1)
        elif log is not None and log.op_type == "Sub":
            axis = reduced_axis(graph, log.input[1], "ReduceLogSumExp", log.input[0], shapes)
        if log is not None and axis is not None:
            scores = log.input[0]
            graph.replace([node], [helper.make_node("Softmax", [scores], node.output, node.name, axis=axis)])
        return
    for exponential, total, _ in quotients(graph, node):
        power, axis = (
            graph.producer(exponential),
            reduced_axis(graph, total, "ReduceSum", exponential, shapes),
        )
        if power is None or power.op_type != "Exp" or axis is None:
            continue
        scores, less = power.input[0], graph.producer(power.input[0])
        if less is not None and less.op_type == "Sub":
            largest = reduced_axis(graph, less.input[1], "ReduceMax", less.input[0], shapes)
            scores = less.input[0] if largest == axis else scores
        graph.replace([node], [helper.make_node("Softmax", [scores], node.output, node.name, axis=axis)])
        return


def _mean(graph: Graph, node: NodeProto, shapes: Shapes) -> None:
    """A sum over the channels times one over their number."""
    for kind in ("Mul", "Div"):
        found = scalar_operand(graph, node, kind)
        total = graph.producer(found[0]) if found else None
        if not found or total is None or total.op_type != "ReduceSum":
            continue
        width = (shapes.get(total.input[0]) or ("?",))[-1]
        share = found[1] if kind == "Mul" else 1 / found[1] if found[1] else 0.0
        last = reduced_axis(graph, total.output[0], "ReduceSum", total.input[0], shapes) == -1
        if last and isinstance(width, int) and math.isclose(share * width, 1, rel_tol=1e-6):
            graph.replace([node], [mean_of(graph, total.input[0], node.output[0], node.name)])
            return


def _kept(graph: Graph, node: NodeProto, shapes: Shapes) -> None:
    """A mean whose axis is dropped and put back."""
    mean = graph.producer(node.input[0]) if node.op_type == "Unsqueeze" else None
    if mean is None or mean.op_type != "ReduceMean" or attribute(mean, "keepdims", 1):
        return
    rank, axes = len(shapes.get(mean.input[0], ())), reduced_axes(graph, mean)
    if rank and axes in ([-1], [rank - 1]) and shapes.get(node.output[0], ())[rank - 1 :] == (1,):
        graph.replace([node], [mean_of(graph, mean.input[0], node.output[0], node.name)])


def _gain(graph: Graph, node: NodeProto, shapes: Shapes) -> None:
    """(x gamma) / root as (x / root) gamma."""
    product = graph.producer(node.input[0]) if node.op_type == "Div" else None
    root = graph.producer(node.input[1]) if product is not None else None
    if product is None or product.op_type != "Mul" or root is None or root.op_type != "Sqrt":
        return
    operands = graph.split_operands(product)
    if operands is None or operands[1].ndim != 1 or graph.only_consumer(product, "Div") is None:
        return
    gamma, whole = (
        next(n for n in product.input if n in graph.constants),
        graph.free_tensor(f"{node.output[0]}/unit"),
    )
    graph.replace([product, node], [
        helper.make_node("Div", [operands[0], node.input[1]], [whole], f"{node.name}/unit"),
        helper.make_node("Mul", [whole, gamma], node.output, node.name),
    ])  # fmt: skip


def _root(graph: Graph, node: NodeProto, shapes: Shapes) -> None:
    """x^-0.5 as one over a root."""
    if node.op_type == "Pow" and is_value(scalar_operand(graph, node, "Pow"), -0.5):
        root = graph.free_tensor(f"{node.output[0]}/root")
        graph.replace([node], [
            helper.make_node("Sqrt", [node.input[0]], [root], f"{node.name}/Sqrt"),
            helper.make_node("Reciprocal", [root], node.output, f"{node.name}/Reciprocal"),
        ])  # fmt: skip


def _merge(graph: Graph, shapes: Shapes) -> None:
    """Means over the channels, and differences, computed twice, as x.mean() and x.var() do."""
    first: dict[tuple[str, ...], str] = {}
    for node in graph.nodes:
        mean = _mean_input(graph, node, shapes)
        if node.op_type != "Sub" and mean is None:
            continue
        key = ("mean", mean) if mean is not None else ("Sub", *node.input)
        if key in first and node.output[0] not in graph.outputs:
            graph.rename_uses(node.output[0], first[key])
        first.setdefault(key, node.output[0])


def _variance(graph: Graph, node: NodeProto, shapes: Shapes) -> None:
    """mean(x^2) - mean(x)^2, perhaps never below 0, as mean((x - mean(x))^2)."""
    if node.op_type != "Sub":
        return
    of_squares, square = (graph.producer(name) for name in node.input)
    if of_squares is None or square is None or _mean_input(graph, of_squares, shapes) is None:
        return
    inner = graph.producer(of_squares.input[0])
    x, mean = (squared(graph, part) if part is not None else None for part in (inner, square))
    source = graph.producer(mean) if mean else None
    if x is None or source is None or _mean_input(graph, source, shapes) != x:
        return
    centred, power = _centred(graph, source, x), graph.free_tensor(f"{node.output[0]}/square")
    two = graph.add_constant(f"{node.output[0]}/two", np.array(2, np.float32))
    graph.replace([node], [
        helper.make_node("Pow", [centred, two], [power], f"{node.name}/Pow"),
        mean_of(graph, power, node.output[0], node.name),
    ])  # fmt: skip
    for reader in graph.consumers(node.output[0]):
        if _never_negative(graph, reader):
            graph.rename_uses(reader.output[0], node.output[0])


def _shift(graph: Graph, node: NodeProto, shapes: Shapes) -> None:
    """x s + (beta - mean(x) s) as (x - mean(x)) s + beta."""
    if node.op_type != "Add":
        return
    for scaled, rest in (tuple(node.input), tuple(node.input)[::-1]):
        product, less = graph.producer(scaled), graph.producer(rest)
        if product is None or less is None or (product.op_type, less.op_type) != ("Mul", "Sub"):
            continue
        moved, beta = graph.producer(less.input[1]), less.input[0]
        if moved is None or moved.op_type != "Mul" or beta not in graph.constants:
            continue
        for x, scale in (tuple(product.input), tuple(product.input)[::-1]):
            source = graph.producer(next((name for name in moved.input if name != scale), ""))
            if scale not in moved.input or source is None or _mean_input(graph, source, shapes) != x:
                continue
            centred, whole = _centred(graph, source, x), graph.free_tensor(f"{node.output[0]}/scaled")
            graph.replace([node], [
                helper.make_node("Mul", [centred, scale], [whole], f"{node.name}/Mul"),
                helper.make_node("Add", [whole, beta], node.output, node.name),
            ])  # fmt: skip
            return


def _scale(graph: Graph, node: NodeProto, shapes: Shapes) -> None:
    """x (r gamma), where r is one over a root, as (x r) gamma."""
    if node.op_type != "Mul":
        return
    for x, scale in (tuple(node.input), tuple(node.input)[::-1]):
        product = graph.producer(scale)
        operands = graph.split_operands(product) if product is not None and product.op_type == "Mul" else None
        if product is None or operands is None or operands[1].ndim != 1 or x in graph.constants:
            continue
        inverse = graph.producer(operands[0])
        divides = inverse is not None and inverse.op_type == "Div" and is_one(graph, inverse.input[0])
        if inverse is None or not (divides or inverse.op_type == "Reciprocal"):
            continue
        gamma = next(name for name in product.input if name in graph.constants)
        whole = graph.free_tensor(f"{node.output[0]}/unit")
        graph.replace([node], [
            helper.make_node("Mul", [x, operands[0]], [whole], f"{node.name}/unit"),
            helper.make_node("Mul", [whole, gamma], node.output, node.name),
        ])  # fmt: skip
        return


def _affine(graph: Graph, node: NodeProto, shapes: Shapes) -> None:
    """A scale and a shift after a LayerNorm that has none of its own."""
    if node.op_type != "LayerNormalization" or len(node.input) < 3 or attribute(node, "axis", -1) != -1:
        return
    gamma, beta = (graph.constants.get(name) for name in node.input[1:3])
    if gamma is None or beta is None or (gamma != 1).any() or beta.any():
        return
    consumed = [node]
    for kind in ("Mul", "Add"):
        reader = graph.only_consumer(consumed[-1], kind)
        operands = graph.split_operands(reader) if reader is not None else None
        if reader is None or operands is None or operands[1].shape != gamma.shape:
            continue
        gamma, beta = (operands[1], beta) if kind == "Mul" else (gamma, operands[1])
        consumed.append(reader)
    if len(consumed) == 1:
        return
    output = list(consumed[-1].output)
    scale, shift = (
        graph.add_constant(f"{output[0]}/scale", gamma),
        graph.add_constant(f"{output[0]}/shift", beta),
    )
    new = helper.make_node("LayerNormalization", [node.input[0], scale, shift], output, node.name)
    new.attribute.extend(node.attribute)
    graph.replace(consumed, [new])


def _centred(graph: Graph, mean: NodeProto, x: str) -> str:
    """x - mean(x), made once, next to the mean, for all that read it."""
    centred = graph.free_tensor(f"{mean.output[0]}/centred")
    others = [n for n in graph.consumers(mean.output[0]) if n.op_type == "Sub" and n.input[0] == x]
    less = helper.make_node("Sub", [x, mean.output[0]], [centred], f"{mean.name}/Sub")
    graph.replace([mean], [mean, less])
    for other in others:
        graph.rename_uses(other.output[0], centred)
    return centred


def _mean_input(graph: Graph, node: NodeProto, shapes: Shapes) -> str | None:
    """What a node is the mean of over the channels."""
    if node.op_type != "ReduceMean":
        return None
    x = node.input[0]
    return x if reduced_axis(graph, node.output[0], "ReduceMean", x, shapes) == -1 else None


def _never_negative(graph: Graph, node: NodeProto) -> bool:
    """Whether a node gives its input where that is not below 0."""
    if node.op_type == "Relu":
        return True
    if node.op_type == "Max":
        return len(node.input) == 2 and is_value(scalar_operand(graph, node, "Max"), 0.0)
    low = graph.constants.get(node.input[1]) if node.op_type == "Clip" and len(node.input) == 2 else None
    return low is not None and low.size == 1 and float(low.reshape(())) == 0
