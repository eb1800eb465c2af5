"""GELU as exporters take it apart, by the error function or by its tanh approximation."""

from __future__ import annotations

import math

from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph

DEPTH = 8  # operators between x and the Tanh, in the longest way to write the polynomial
Polynomial = dict[int, float]  # coefficient by power


def scalar_operand(graph: Graph, node: NodeProto | None, op_type: str) -> tuple[str, float] | None:
    """(other operand, value) of a node of `op_type` with a scalar constant, second unless it commutes."""
    if node is None or node.op_type != op_type:
        return None
    operands = graph.split_operands(node)
    if operands is None or operands[1].size != 1:
        return None
    if op_type in ("Div", "Pow") and node.input[0] != operands[0]:  # constant / x, constant ** x
        return None
    return operands[0], float(operands[1].reshape(()))


def is_value(operand: tuple[str, float] | None, expected: float) -> bool:
    """Whether a scalar operand is there and equals `expected` within 1e-6."""
    return operand is not None and math.isclose(operand[1], expected, rel_tol=1e-6)


def match_erf(graph: Graph, erf: NodeProto) -> tuple[list[NodeProto], NodeProto] | None:
    """x/sqrt(2), Erf, +1, times x, times 1/2 in any order; anchored at the Erf."""
    scale = graph.producer(erf.input[0]) if erf.op_type == "Erf" else None
    divided, multiplied = scalar_operand(graph, scale, "Div"), scalar_operand(graph, scale, "Mul")
    scaled = divided or multiplied
    if scale is None or scaled is None:
        return None
    if not is_value(divided, math.sqrt(2)) and not is_value(multiplied, 1 / math.sqrt(2)):
        return None
    gate = _gate(graph, erf, scaled[0])
    if gate is None:
        return None
    new = helper.make_node("Gelu", [scaled[0]], _last(gate), approximate="none")
    return [scale, erf, *gate], new


def match_tanh(graph: Graph, tanh: NodeProto) -> tuple[list[NodeProto], NodeProto] | None:
    """The polynomial sqrt(2/pi) (x + 0.044715 x^3), Tanh, +1, times x, times 1/2; anchored at the Tanh."""
    if tanh.op_type != "Tanh":
        return None
    slope = math.sqrt(2 / math.pi)
    for x in _candidates(graph, tanh):
        used: list[NodeProto] = []
        found = _polynomial(graph, tanh.input[0], x, used, DEPTH)
        gate = _gate(graph, tanh, x)
        if found is None or gate is None or set(found) != {1, 3}:
            continue
        if all(math.isclose(found[k], v, rel_tol=1e-5) for k, v in ((1, slope), (3, slope * 0.044715))):
            new = helper.make_node("Gelu", [x], _last(gate), approximate="tanh")
            return [*used, tanh, *gate], new
    return None


def _last(gate: list[NodeProto]) -> list[str]:
    """The output of the last product: the one whose output no other operator of the gate reads."""
    read = {name for node in gate for name in node.input}
    return [node.output[0] for node in gate if node.output[0] not in read]


def _gate(graph: Graph, inner: NodeProto, x: str) -> list[NodeProto] | None:
    """The operators of x (1 + inner) / 2: Add, then products with x and with 1/2, in any order."""
    plus_one = graph.only_consumer(inner, "Add")
    if plus_one is None or not is_value(scalar_operand(graph, plus_one, "Add"), 1.0):
        return None
    gate, last, left = [plus_one], plus_one, {"x", "half"}
    while left:
        product = graph.only_consumer(last, "Mul")
        if product is None:
            return None
        other = product.input[1] if product.input[0] == last.output[0] else product.input[0]
        gate.append(product)
        half = graph.producer(other)
        if other == x:
            found = {"x"}
        elif is_value(scalar_operand(graph, product, "Mul"), 0.5):
            found = {"half"}
        elif half is not None and scalar_operand(graph, half, "Mul") == (x, 0.5):
            found = {"x", "half"}
            gate.append(half)
        else:
            return None
        if not found <= left:
            return None
        left, last = left - found, product
    return gate


def _candidates(graph: Graph, tanh: NodeProto) -> list[str]:
    """Tensors that the gate after the Tanh may multiply: what may be x."""
    found: list[str] = []
    last: NodeProto | None = graph.only_consumer(tanh, "Add")
    while last is not None:
        last = graph.only_consumer(last, "Mul")
        for name in last.input if last is not None else ():
            producer = graph.producer(name)
            found += [name, *(producer.input if producer is not None else ())]
    return [name for name in dict.fromkeys(found) if name not in graph.constants]


def _polynomial(graph: Graph, tensor: str, x: str, used: list[NodeProto], depth: int) -> Polynomial | None:
    """What `tensor` is as a polynomial in `x`; the operators on the way are added to `used`."""
    if tensor == x:
        return {1: 1.0}
    constant = graph.constants.get(tensor)
    if constant is not None:
        return {0: float(constant.reshape(()))} if constant.size == 1 else None
    node = graph.producer(tensor)
    if node is None or depth == 0 or node.op_type not in ("Add", "Mul", "Pow"):
        return None
    parts = [_polynomial(graph, name, x, used, depth - 1) for name in node.input]
    if len(parts) != 2 or parts[0] is None or parts[1] is None:
        return None
    if node not in used:
        used.append(node)
    if node.op_type == "Add":
        powers = parts[0].keys() | parts[1].keys()
        return {power: parts[0].get(power, 0.0) + parts[1].get(power, 0.0) for power in powers}
    if node.op_type == "Mul":
        return _product(parts[0], parts[1])
    power = parts[1].get(0, 0.0)
    if set(parts[1]) != {0} or power not in (2.0, 3.0):
        return None
    square = _product(parts[0], parts[0])
    return square if power == 2.0 else _product(square, parts[0])


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    result: Polynomial = {}
    for i, u in a.items():
        for j, v in b.items():
            result[i + j] = result.get(i + j, 0.0) + u * v
    return result
