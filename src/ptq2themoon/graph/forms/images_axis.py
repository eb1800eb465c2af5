"""Which dimension of each tensor carries the images: the first as a rule, but [tokens, images, width] inside
`nn.MultiheadAttention`, and images and heads in one dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from math import prod
from typing import NamedTuple

import onnx
from onnx import NodeProto, TypeProto, helper, numpy_helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute, tensor_shapes, tensor_types
from ptq2themoon.graph.forms.support import place
from ptq2themoon.vocabulary.errors import UserError

TRIES = 50  # of choices that a fixed batch of one image leaves
# Images stay in their dimension, counted from the last one, whatever constants have there.
PLACEWISE = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Where",
    "Pow",
    "Min",
    "Max",
    "PRelu",
    "Clip",
    "Concat",
    "Expand",
    "Resize",
)


class UntoldImages(UserError):
    """The graph does not tell which dimension carries the images behind an operator."""


class Images(NamedTuple):
    """Where a tensor has its images.

    Attributes:
        axis: the dimension.
        within: how many places an image has in that dimension, one after another, as heads are.
    """

    axis: int
    within: int


class ImagesAxes:
    """Where each tensor of a graph of fixed batch has its images, found along the way from the input.

    Args:
        shapes: of all tensors, in numbers.
        other: shapes of the same graph at another batch, where it has them; asked only where a Reshape
            leaves several dimensions to choose from.
    """

    def __init__(self, model: onnx.ModelProto, batch: int, other: Callable[[], Shapes] | None = None) -> None:
        self.graph, self.batch, self._other_shapes = Graph(model), batch, other
        self.shapes: Shapes = tensor_shapes(model)
        self.found: dict[str, Images] = {}
        self._types = tensor_types(model)
        self._opset = next(item.version for item in model.opset_import if not item.domain)
        self._taken: dict[str, int] = {}  # which of several choices, by a Reshape's output
        self._left: dict[str, int] = {}  # how many choices there are after it
        self._follow_all()

    def _follow_all(self) -> None:
        """From the input to the output; where that fails, again with the next choice of the last Reshape."""
        first: UntoldImages | None = None
        for _ in range(TRIES):
            try:
                self.found = {self.graph.inputs[0]: Images(0, 1)}
                for node in self.graph.nodes:
                    carrying = [name for name in node.input if name in self.found]
                    if carrying:
                        self._follow(node, carrying)
                self._check_output()
                return
            except UntoldImages as error:
                first = first or error
                while self._left and not self._left[next(reversed(self._left))]:
                    self._taken.pop(self._left.popitem()[0])
                if not self._left:
                    break
                last = next(reversed(self._left))
                self._taken[last], self._left[last] = self._taken[last] + 1, self._left[last] - 1
        assert first is not None
        raise first

    def _check_output(self) -> None:
        out = self.graph.outputs[0]
        node = self.graph.producer(out)
        if node is not None and self.found.get(out, Images(0, 1)).axis:
            raise self._untold(node, "gives the images in another dimension than the first")

    @cached_property
    def _other(self) -> Shapes:
        return self._other_shapes() if self._other_shapes else {}

    def _sizes(self, tensor: str) -> tuple[int, ...]:
        return tuple(size for size in self.shapes.get(tensor, ()) if isinstance(size, int))

    def _follow(self, node: NodeProto, carrying: list[str]) -> None:
        first = self.found[carrying[0]]
        if node.op_type in ("Reshape", "Flatten"):
            self.found[node.output[0]] = self._reshaped(node, first)
        elif node.op_type in PLACEWISE or self.meets_constant_rows(node):
            ranks = {name: len(self.shapes.get(name, ())) for name in (*carrying, node.output[0])}
            axis = attribute(node, "axis", 0) % max(ranks[carrying[0]], 1)
            if node.op_type == "Concat" and axis == first.axis:
                raise self._untold(node, "joins what it reads along the dimension of the images")
            from_last = {(self.found[name].axis - ranks[name], self.found[name].within) for name in carrying}
            if len(from_last) > 1:
                raise self._untold(node, "joins images of two dimensions")
            self.found[node.output[0]] = Images(
                first.axis + ranks[node.output[0]] - ranks[carrying[0]], first.within
            )
        else:
            self._check_apart(node, first)
            for name, shape in zip(node.output, self._inferred(node), strict=True):
                if name:
                    self.found[name] = Images(self._one_axis(node, shape), first.within)

    def meets_constant_rows(self, node: NodeProto) -> bool:
        """Whether a MatMul of [images * heads, ...] has a constant of as many rows: a learnt query."""
        images = next((self.found[name] for name in node.input if name in self.found), None)
        value = next(
            (self.graph.constants[name] for name in node.input if name in self.graph.constants), None
        )
        if node.op_type != "MatMul" or images is None or value is None or images.axis:
            return False
        return value.ndim > 2 and len(value) == images.within * self.batch > 1

    def _check_apart(self, node: NodeProto, images: Images) -> None:
        """Refuse an operator that computes over the images without a trace in its shape."""
        rank = len(self.shapes.get(node.input[0], ()))
        axis = attribute(node, "axis", -1) % max(rank, 1)
        over = node.op_type in ("Softmax", "LogSoftmax") and axis == images.axis
        if over or (node.op_type == "LayerNormalization" and axis <= images.axis):
            raise self._untold(node, "works across the images")

    def _one_axis(self, node: NodeProto, shape: TypeProto) -> int:
        dims = shape.tensor_type.shape.dim
        axes = [i for i, dim in enumerate(dims) if not dim.HasField("dim_value")]
        if len(axes) != 1:
            raise self._untold(node, "works across the images" if not axes else "makes several sizes open")
        return axes[0]

    def _untold(self, node: NodeProto, why: str) -> UntoldImages:
        return UntoldImages(f"{place(self.graph, node)}: {why}, as far as its graph tells")

    # What ONNX's own inference says of an operator ---------------------------------------------------

    def _inferred(self, node: NodeProto) -> Iterable[TypeProto]:
        """Types of the outputs, the dimension of the images open."""
        names = [name for name in node.input if name]
        constants = {name: self.graph.constants[name] for name in names if name in self.graph.constants}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, node.domain)
            types = onnx.shape_inference.infer_node_outputs(
                schema, node, {name: self._type(name) for name in names},
                {name: numpy_helper.from_array(value, name) for name, value in constants.items()},
                opset_imports=[helper.make_opsetid("", self._opset)],
            )  # fmt: skip
            return [types[name] if name else TypeProto() for name in node.output]
        except (KeyError, RuntimeError, onnx.defs.SchemaError, onnx.shape_inference.InferenceError) as error:
            raise self._untold(node, f"has no shape ({' '.join(str(error).split())})") from None

    def _type(self, tensor: str) -> TypeProto:
        shape: list[int | str] = list(self.shapes.get(tensor, ()))
        if tensor in self.found:
            axis = self.found[tensor].axis
            shape[axis] = f"{shape[axis]} for {self.batch}"  # one name for one size
        return helper.make_tensor_type_proto(self._types.get(tensor, onnx.TensorProto.FLOAT), shape)

    # Reshape -----------------------------------------------------------------------------------------

    def _reshaped(self, node: NodeProto, images: Images) -> Images:
        """A Reshape leaves the order of all values, and so the distance between two images' values."""
        before, after = self._sizes(node.input[0]), self._sizes(node.output[0])
        if len(after) < len(self.shapes.get(node.output[0], ("?",))):
            raise UserError(
                f"operator {node.name!r} ({node.op_type}): its shape depends on the image; fix the input size"
            )
        distance = images.within * prod(before[images.axis + 1 :])
        choices = []
        for axis, size in enumerate(after):
            within, rest = divmod(distance, prod(after[axis + 1 :]))
            if not rest and within and size % (within * self.batch) == 0:
                choices.append(Images(axis, within))
        if not choices:
            raise self._untold(node, "parts the dimension of the images")
        return choices[0] if len(choices) == 1 else self._chosen(node, choices, images)

    def _chosen(self, node: NodeProto, choices: list[Images], before: Images) -> Images:
        """One image alone leaves the choice between dimensions that touch where it stands."""
        after = self.shapes[node.output[0]]
        there = self._other.get(node.output[0], after)
        grown = [here for here in choices if there[here.axis] != after[here.axis]]
        if len(grown) == 1:
            return grown[0]
        # Heads follow their image. Channels do not: [tokens, images, width] to [tokens * images, width].
        inner = [here for here in choices if here.axis != len(after) - 1]
        apart = self.shapes[node.input[0]][before.axis] == self.batch
        same = [here for here in inner if apart and here.axis == before.axis]
        alone = [here for here in inner if after[here.axis] == self.batch and here.within == 1]
        best = list(dict.fromkeys(same + alone + inner[::-1] + choices))
        taken = self._taken.setdefault(node.output[0], 0)
        self._left.setdefault(node.output[0], len(best) - 1 - taken)
        return best[taken]
