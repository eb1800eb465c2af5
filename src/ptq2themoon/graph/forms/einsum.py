"""Einsum as Transpose, MatMul, Transpose: attention and layers as others write them."""

from __future__ import annotations

from itertools import chain, combinations
from math import prod
from string import ascii_uppercase

import numpy as np
import onnx
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute, tensor_shapes

Operand = tuple[str, str]  # its letters, its tensor


def rewrite_einsums(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, of known shapes, with each Einsum that is a matrix product as MatMul; others stay."""
    if not any(node.op_type == "Einsum" for node in model.graph.node):
        return model
    model = _in_pairs(model)
    graph, shapes = Graph(model), tensor_shapes(model)
    for node in [node for node in graph.nodes if node.op_type == "Einsum"]:
        letters = _letters(node, shapes)
        if letters is not None:
            _Product(graph, node, *letters).rewrite()
    return graph.finish()


def _in_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each Einsum of many operands as several of two."""
    graph = Graph(model)
    for node in [node for node in graph.nodes if node.op_type == "Einsum" and len(node.input) > 2]:
        equation = attribute(node, "equation", b"").decode().replace(" ", "")
        left, arrow, out = equation.partition("->")
        operands = list(zip(left.split(","), node.input, strict=True))
        if not arrow or "." in equation:
            continue
        new: list[NodeProto] = []
        while len(operands) > 2:
            (first, x), (second, y) = pair = _summed_pair(operands, out)
            operands = [other for other in operands if other not in pair]
            wanted = set("".join([out, *(letters for letters, _ in operands)]))
            kept = "".join(dict.fromkeys(letter for letter in first + second if letter in wanted))
            made = graph.free_tensor(f"{node.output[0]}/pair_{len(new)}")
            new.append(helper.make_node("Einsum", [x, y], [made], made, equation=f"{first},{second}->{kept}"))
            operands.insert(0, (kept, made))
        letters = ",".join(letters for letters, _ in operands)
        inputs = [tensor for _, tensor in operands]
        new.append(
            helper.make_node("Einsum", inputs, list(node.output), node.name, equation=f"{letters}->{out}")
        )
        graph.replace([node], new)
    return graph.finish()


def _summed_pair(operands: list[Operand], out: str) -> tuple[Operand, Operand]:
    """The first two operands that share a letter which nothing else needs; else the first two."""
    letters = [letters for letters, _ in operands]
    for i, j in combinations(range(len(operands)), 2):
        others = set("".join([out, *(x for k, x in enumerate(letters) if k not in (i, j))]))
        if set(letters[i]) & set(letters[j]) - others:
            return operands[i], operands[j]
    return operands[0], operands[1]


class _Product:
    """One Einsum: its letters by what becomes of them, and the size of each."""

    def __init__(
        self, graph: Graph, node: NodeProto, first: str, second: str, out: str, sizes: dict[str, int]
    ) -> None:
        self.graph, self.node, self.out, self.sizes = graph, node, out, sizes
        self.shared = [x for x in first if x in second and x in out]
        self.summed = [x for x in first if x in second and x not in out]
        self.rows = [x for x in first if x not in second]
        self.columns = [x for x in second if x not in first]
        self.operands, self.new = (first, second), list[NodeProto]()
        self.stem = node.name or node.output[0]

    def rewrite(self) -> None:
        first, second = self.operands
        alone = [x for x in (*self.rows, *self.columns) if x not in self.out]
        if alone or not self.summed:
            return  # a sum of one operand, or no sum: no matrix product
        # A layer's weight serves all rows as they are; other products have one dimension of rows.
        layer = self.node.input[1] in self.graph.constants and not self.shared
        rows = [self.rows, self.summed] if layer else [self.shared, self.rows, self.summed]
        x = self._moved(self.node.input[0], first, rows, "first")
        y = self._moved(self.node.input[1], second, [self.shared, self.summed, self.columns], "second")
        together = [*self.shared, *self.rows, *self.columns]
        joint = (len(self.rows) != 1 and not layer) or len(self.columns) != 1
        perm = [together.index(x) for x in self.out]
        moved = perm != sorted(perm)
        out = self.node.output[0]
        product = self.graph.free_tensor(f"{out}/product") if joint or moved else out
        self.new.append(helper.make_node("MatMul", [x, y], [product], self._named("MatMul")))
        if joint:
            sizes = [self.sizes[x] for x in together]
            product = self._reshape(product, sizes, "product", None if moved else out)
        if moved:
            last = helper.make_node("Transpose", [product], [out], self._named("Transpose"), perm=perm)
            self.new.append(last)
        self.graph.replace([self.node], self.new)

    def _moved(self, tensor: str, letters: str, groups: list[list[str]], part: str) -> str:
        """The operand with its letters in the order of the groups, the last two groups one dimension each."""
        order = list(chain(*groups))
        perm, last = [letters.index(x) for x in order], groups[1:]
        shape = [self.sizes[x] for x in groups[0]] + [prod(self.sizes[x] for x in group) for group in last]
        reshaped = any(len(group) != 1 for group in last)
        value = self.graph.constants.get(tensor)
        if value is not None:
            return self.graph.add_constant(f"{self.stem}/{part}", value.transpose(perm).reshape(shape))
        if perm != sorted(perm):
            moved = self.graph.free_tensor(f"{self.stem}/{part}")
            self.new.append(helper.make_node("Transpose", [tensor], [moved], self._named(part), perm=perm))
            tensor = moved
        return self._reshape(tensor, shape, part) if reshaped else tensor

    def _reshape(self, tensor: str, shape: list[int], part: str, out: str | None = None) -> str:
        out = out or self.graph.free_tensor(f"{self.stem}/{part}/reshaped")
        to = self.graph.add_constant(f"{out}/shape", np.array(shape, dtype=np.int64))
        self.new.append(helper.make_node("Reshape", [tensor, to], [out], self._named(f"{part}/Reshape")))
        return out

    def _named(self, part: str) -> str:
        scope = self.stem.rpartition("/")[0]
        return f"{scope}/{part}" if scope else part


def _letters(node: NodeProto, shapes: Shapes) -> tuple[str, str, str, dict[str, int]] | None:
    """(first, second, output) of the equation, an ellipsis written out, and the size of each letter."""
    equation = attribute(node, "equation", b"").decode().replace(" ", "")
    inputs, arrow, out = equation.partition("->")
    operands = inputs.split(",")
    ranks = [len(shapes.get(name, ())) for name in node.input]
    if not arrow or len(operands) != 2 or len(node.input) != 2:
        return None
    more = max(rank - len(x.replace("...", "")) for x, rank in zip(operands, ranks, strict=True))
    unused = [x for x in ascii_uppercase if x not in equation][: max(more, 0)]
    first, second = (
        x.replace("...", "".join(unused[len(unused) - (rank - len(x.replace("...", ""))) :]))
        for x, rank in zip(operands, ranks, strict=True)
    )
    out = out.replace("...", "".join(unused))
    sizes: dict[str, int] = {}
    for name, letters in zip(node.input, (first, second), strict=True):
        shape = shapes.get(name, ())
        if len(set(letters)) != len(letters) or len(shape) != len(letters):
            return None
        for letter, size in zip(letters, shape, strict=True):
            if not isinstance(size, int) or sizes.setdefault(letter, size) != size:
                return None  # a dimension of one that stands for many stays an Einsum
    return (first, second, out, sizes) if set(out) <= set(sizes) else None
