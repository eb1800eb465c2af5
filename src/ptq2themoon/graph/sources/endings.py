"""What a file gives at its end: logits, or what is made of them, for which no loss is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import all_nodes, copied, maker, tensor_shapes, unique_name
from ptq2themoon.progress import warn
from ptq2themoon.vocabulary.errors import UserError

PROBABILITIES = ("Softmax", "Sigmoid")  # logarithms of probabilities serve as logits
CHOICES = ("ArgMax", "ArgMin", "TopK", "Hardmax")
PASSING = ("Identity", "Cast", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze")


def refuse_choices(model: onnx.ModelProto, output: str, path: Path) -> None:
    """Refuse an output of class numbers.

    Raises:
        UserError: an output that an operator of choice makes, whatever type it has then.
    """
    node = _maker(model, output, PASSING)
    if node is not None and node.op_type in CHOICES:
        raise UserError(
            f"{path}: output {output!r} holds class numbers of operator {node.name or node.output[0]!r}; "
            "export the model with its logits as the output"
        )


def refuse_other_numbers(outputs: np.ndarray, classifier: bool, output: str, path: Path) -> None:
    """Refuse outputs that are no logits by their values: whole numbers, and probabilities of classes.

    Args:
        classifier: whether [images, n] is taken for logits.
    """
    if not np.issubdtype(outputs.dtype, np.floating):
        raise UserError(
            f"{path}: output {output!r} holds {outputs.dtype}, no floating point numbers; "
            "export the model with its logits or features as the output"
        )
    rows = outputs.ndim == 2 and outputs.shape[1] > 1
    whole = float(outputs.sum(1).mean()) if rows else 0.0  # 100 where they are in percent
    if classifier and whole > 0 and (outputs >= 0).all() and np.allclose(outputs.sum(1), whole, rtol=1e-3):
        raise UserError(
            f"{path}: output {output!r} holds probabilities (an image's sum to {whole:.3g}), which give no "
            "right loss; export the model with its logits as the output, or say `classifier: false`"
        )


def to_logits(model: onnx.ModelProto, output: str, path: Path) -> str | None:
    """Take away the Softmax or Sigmoid that makes probabilities of logits [images, classes], in place.

    Returns:
        What was taken away, to be said; None where there is none.
    """
    node = _maker(model, output, ("Identity",))
    rows = _is_rows(tensor_shapes(model).get(output, ()))
    if node is None or node.op_type not in PROBABILITIES or not rows:
        return None
    said = (
        f"{path}: ends in {node.op_type} {node.name or node.output[0]!r}; what it reads, the logits, is taken"
    )
    logits = node.input[0]
    nodes = [other for other in model.graph.node if other is not node]
    passed = node.output[0]
    for other in all_nodes(nodes):
        other.input[:] = [output if name in (logits, passed) else name for name in other.input]
        other.output[:] = [output if name == logits else name for name in other.output]
    kept = [other for other in nodes if not (other.op_type == "Identity" and output in other.input)]
    model.graph.ClearField("node")
    model.graph.node.extend(kept)
    return said


def to_rows(model: onnx.ModelProto, output: str, path: Path) -> str | None:
    """Make [images, classes] of an output that has more dimensions, all of them 1, in place.

    Returns:
        What was done, to be said; None where there is nothing to do.
    """
    shape = tensor_shapes(model).get(output, ())
    if len(shape) == 2 or not _is_rows(shape):
        return None
    graph, (value,) = model.graph, model.graph.output
    inner = unique_name(f"{output}/whole", {name for node in all_nodes(graph.node) for name in node.output})
    for node in all_nodes(graph.node):
        node.input[:] = [inner if name == output else name for name in node.input]
        node.output[:] = [inner if name == output else name for name in node.output]
    graph.node.append(helper.make_node("Flatten", [inner], [output], f"{output}/Flatten", axis=1))
    dims = [copied(dim) for dim in value.type.tensor_type.shape.dim]
    value.type.tensor_type.shape.ClearField("dim")
    value.type.tensor_type.shape.dim.extend([dims[0], *(dim for dim in dims[1:] if dim.dim_value != 1)])
    stated = ", ".join(str(size) for size in shape[1:])
    return f"{path}: output {output!r} of [images, {stated}] is taken as logits [images, classes]"


def _is_rows(shape: Sequence[int | str]) -> bool:
    """Whether a shape has one dimension besides the images' that is not 1."""
    return len(shape) == 2 or (len(shape) > 2 and sum(size != 1 for size in shape[1:]) == 1)


def say_outputs(output: str, others: list[str], path: Path) -> None:
    """Of several outputs, which one is taken."""
    if others:
        names = ", ".join(map(repr, others))
        warn(f"{path}: output {output!r} is taken, not {names}; `output: NAME` of the model takes another")


def _maker(model: onnx.ModelProto, tensor: str, passing: tuple[str, ...]) -> NodeProto | None:
    """The operator that computes a tensor, past those of the types `passing`."""
    producers = {name: node for node in model.graph.node for name in node.output}
    return maker(producers.get, tensor, passing)
