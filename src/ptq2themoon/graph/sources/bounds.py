"""What a file asks of time and memory, before any of it runs: a small file can stand for very much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from ptq2themoon.graph.editing.one_message import LIGHT
from ptq2themoon.graph.editing.onnx_graph import (
    MOST_ELEMENTS,
    all_nodes,
    fixed_batch,
    most_constants,
    tensor_shapes,
)
from ptq2themoon.vocabulary.errors import UserError

MOST_OPERATORS = 30_000  # with functions written out; a ViT of 48 blocks has some 5,000
DEEPEST = 20  # branches and bodies within each other
REFUSED = {
    **dict.fromkeys(
        ("Loop", "Scan", "SequenceMap"),
        "repeats others, which does not become a fixed graph; export the model for a fixed image size",
    ),
    **dict.fromkeys(  # shape inference writes them out
        ("HannWindow", "HammingWindow", "BlackmanWindow"),
        "is for sound, and of any length; export the model without it",
    ),
}
JOINING = ("Concat", "SequenceConstruct", "ConcatFromSequence")
# Which inputs of an operator say, by their values, how large its result is.
SIZED: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("ConstantOfShape", "NonZero", "Unique", "Compress"), (0, 1)),
    **dict.fromkeys(("Expand", "Tile", "Pad", "Upsample", "OneHot", "CenterCropPad", "AffineGrid"), (1,)),
    **dict.fromkeys(("Range", "NonMaxSuppression"), (0, 1, 2, 3, 4)),
    **{"Resize": (1, 2, 3), "DFT": (1,), "STFT": (1, 3), "Col2Im": (1, 2), "MaxUnpool": (2,)},
}
HIGHEST_RANK = 8  # of a tensor in any model
MOST_JOINED = 5_000_000  # numbers of constants, joined or passed on, that inference may meet
# Fields of a tensor's values, but for raw bytes.
VALUES = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def refuse_unbounded(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what would not end, or fill the memory, by what the file says of itself.

    Raises:
        UserError: operators that repeat others, functions or branches that stand for too many operators.
    """
    values = [*model.graph.input, *model.graph.output, *model.graph.initializer]
    _refuse_bytes([value.name for value in values], path)
    _count(model, path)
    for tensor in tensors(model):
        if problem := _lie(tensor):
            raise UserError(f"{path}: constant {tensor.name!r} {problem}; export the model again")


def _refuse_bytes(names: Iterable[object], path: Path) -> None:
    # Of what is no UTF-8 protobuf gives the bytes, for some fields.
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: not a valid ONNX model (names that are no UTF-8 text)")


def refuse_large(model: onnx.ModelProto, path: Path) -> None:
    """Refuse operators whose results would fill the memory, as far as shape inference tells.

    Args:
        model: whose input states the size of the images.

    Raises:
        UserError: the first operator with a result of more than `MOST_ELEMENTS`, for one image where it may.
    """
    shapes = tensor_shapes(model, None if fixed_batch(model) else 1)
    constants, total = {tensor.name for tensor in model.graph.initializer}, 0
    most = most_constants(prod(tensor.dims) for tensor in model.graph.initializer)
    for node in model.graph.node:
        fixed = constants.issuperset(filter(None, node.input))
        for name in node.output:
            size = prod(d for d in shapes.get(name, ()) if isinstance(d, int))
            if fixed:
                constants.add(name)
                total += size
            if size > MOST_ELEMENTS or total > most:
                found, limit = (size, MOST_ELEMENTS) if size > MOST_ELEMENTS else (total, most)
                what = "makes" if size > MOST_ELEMENTS else "and those before it make of constants"
                raise UserError(
                    f"{path}: operator {node.name or name!r} ({node.op_type}) {what} {found} numbers; "
                    f"at most {limit}; export the model for smaller images"
                )


def refuse_sizes_of_values(model: onnx.ModelProto, image: str, path: Path) -> None:
    """Refuse results as large as the values of the images say, and branches that those choose.

    Args:
        image: name of the input; its shape may decide sizes, and so may constants.
    """
    depends = {image}
    for node in model.graph.node:
        inner = [*all_nodes([node])]
        if node.op_type == "If" and node.input[0] in depends:
            raise UserError(
                f"{path}: operator {node.name or node.output[0]!r} (If) chooses by the values of the images, "
                "which does not become a fixed graph; export the model for one image of fixed size"
            )
        for one in inner:
            sized = SIZED.get(one.op_type, ())
            names = [name for place, name in enumerate(one.input) if place in sized and name in depends]
            if names:
                called = f"operator {one.name or one.output[0]!r} ({one.op_type})"
                raise UserError(
                    f"{path}: {called} makes as many numbers as the values of the images say; "
                    "export the model for one image of fixed size"
                )
            if one.op_type not in ("Shape", "Size") and depends.intersection(one.input):
                depends.update(one.output)
        if len(inner) > 1 and any(depends.intersection(one.output) for one in inner):
            depends.update(node.output)


def refuse_growing(model: onnx.ModelProto, path: Path) -> None:
    """Refuse constants that are joined to ever longer ones: shape inference would write them all out."""
    held = {tensor.name: prod(tensor.dims) for tensor in model.graph.initializer}
    known = {name: length for name, length in held.items() if length <= LIGHT}
    total = 0
    for node in all_nodes(model.graph.node):
        length = _joined(node, known)
        if length is None:
            continue
        known |= dict.fromkeys(node.output, length)
        total += length
        if total > MOST_JOINED:
            raise UserError(
                f"{path}: operator {node.name or node.output[0]!r} ({node.op_type}) joins constants to more "
                f"than {MOST_JOINED} numbers; export the model for one image of fixed size"
            )


def _joined(node: NodeProto, known: Mapping[str, int]) -> int | None:
    """How many numbers an operator makes of known ones; None where what it reads depends on the images."""
    if node.op_type == "Constant":
        sizes = [prod(item.t.dims) for item in node.attribute if item.HasField("t")]
        sizes += [len(item.ints) + len(item.floats) for item in node.attribute]
        return max(sizes, default=1)
    if node.op_type in ("Shape", "Size"):
        return HIGHEST_RANK
    given = [known.get(name) for name in node.input if name]
    lengths = [length for length in given if length is not None]
    if not given or len(lengths) < len(given):
        return None
    return sum(lengths) if node.op_type in JOINING else max(lengths)


def tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """All constants: of the graph, of attributes, of subgraphs and functions."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes += graph.node
            yield from graph.initializer
            sparse = list(graph.sparse_initializer)
        else:
            items = nodes.pop().attribute
            for item in items:
                yield from (*([item.t] if item.HasField("t") else []), *item.tensors)
            sparse = [
                tensor
                for item in items
                for tensor in (
                    *([item.sparse_tensor] if item.HasField("sparse_tensor") else []),
                    *item.sparse_tensors,
                )
            ]
            graphs += [graph for item in items for graph in _graphs(item)]
        for tensor in sparse:
            yield from (tensor.values, tensor.indices)


def _graphs(item: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*([item.g] if item.HasField("g") else []), *item.graphs]


def _count(model: onnx.ModelProto, path: Path) -> None:
    """Refuse repetition, depth and number of operators, functions counted where they are called."""
    bodies = {(function.domain, function.name): function.node for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    calling: list[tuple[str, str]] = []

    def size(nodes: Iterable[NodeProto], depth: int) -> int:
        if depth > DEEPEST:
            raise UserError(f"{path}: branches lie more than {DEEPEST} deep; export the model without them")
        total = 0
        for node in nodes:
            _refuse_bytes((node.name, node.op_type, node.domain, *node.input, *node.output), path)
            if node.op_type in REFUSED:
                called = f"{node.name or node.op_type!r} ({node.op_type})"
                raise UserError(f"{path}: operator {called} {REFUSED[node.op_type]}")
            total += 1 + _called(node)
            total += sum(size(graph.node, depth + 1) for item in node.attribute for graph in _graphs(item))
            if total > MOST_OPERATORS:
                raise UserError(f"{path}: has more than {MOST_OPERATORS} operators, functions written out")
        return total

    def _called(node: NodeProto) -> int:
        key = (node.domain, node.op_type)
        if key not in bodies:
            return 0
        if key in calling or len(calling) > DEEPEST:
            raise UserError(
                f"{path}: function {node.op_type!r} calls itself, or {DEEPEST} others call each other; "
                "export the model without functions"
            )
        if key not in sizes:
            calling.append(key)
            sizes[key] = size(bodies[key], 0)
            calling.pop()
        return sizes[key]

    size(model.graph.node, 0)


def _lie(tensor: TensorProto) -> str | None:
    """What is wrong with a tensor that holds more or fewer values than its shape says."""
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        return f"is of type {tensor.data_type}, which is none of ONNX"
    if any(size < 0 for size in tensor.dims):
        return f"has shape {list(tensor.dims)}"
    count = prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        held, needed = len(tensor.string_data), count
    elif tensor.HasField("raw_data"):
        held, needed = len(tensor.raw_data), -(-count * _bits(tensor.data_type) // 8)
    else:
        held = sum(len(getattr(tensor, field)) for field in VALUES)
        needed = count * (2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1)
        if _bits(tensor.data_type) < 8:
            return None  # several values in a number, which the checker counts
    if held == needed:
        return None
    unit = "bytes" if tensor.HasField("raw_data") else "values"
    return f"of shape {list(tensor.dims)} holds {held} {unit}, not {needed}"


def _bits(kind: int) -> int:
    name: str = TensorProto.DataType.Name(kind)
    if name in ("UINT4", "INT4") or name.startswith("FLOAT4"):
        return 4
    if name in ("UINT2", "INT2"):
        return 2
    return int(helper.tensor_dtype_to_np_dtype(kind).itemsize) * 8
