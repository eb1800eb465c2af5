"""What ONNX's converter writes for operators of old opsets, brought back to the operators of today."""

from __future__ import annotations

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute

MATRIX_TYPES = ("Softmax", "LogSoftmax", "Hardmax")


def restore_softmax(graph: Graph, shapes: Shapes) -> None:
    """A Softmax over the last axis in place of Flatten, Softmax, Reshape.

    Before opset 13 a Softmax works on a matrix, to which it flattens its input; where the matrix has the
    input's last axis as its columns, this is the Softmax of today.
    """
    for softmax in [node for node in graph.nodes if node.op_type in MATRIX_TYPES]:
        before, after = graph.producer(softmax.input[0]), graph.only_consumer(softmax, "Reshape")
        if before is None or before.op_type not in ("Flatten", "Reshape") or after is None:
            continue
        whole, flat = shapes.get(before.input[0], ()), shapes.get(softmax.input[0], ())
        if len(flat) != 2 or whole[-1:] != flat[-1:] or shapes.get(after.output[0]) != whole:
            continue
        if attribute(softmax, "axis", -1) not in (-1, 1):
            continue
        softmax.input[0] = before.input[0]
        softmax.output[0] = after.output[0]
        for item in softmax.attribute:
            if item.name == "axis":
                item.i = -1
        graph.replace([after], [])
        graph.reindex()
        shapes[softmax.output[0]] = whole
    graph.drop_dead()
