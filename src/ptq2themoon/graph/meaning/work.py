"""How much work each matrix product and convolution of a model is."""

from __future__ import annotations

import math

import onnx

from ptq2themoon.graph.editing.onnx_graph import Graph, tensor_shapes
from ptq2themoon.graph.editing.operator_types import WEIGHTED_TYPES


def multiply_accumulates(model: onnx.ModelProto) -> dict[str, int]:
    """Of one image, by the name of each product and convolution; 0 where shapes do not tell."""
    graph, shapes = Graph(model), tensor_shapes(model, batch=1)
    found = {}
    for node in graph.nodes:
        if node.op_type not in WEIGHTED_TYPES:
            continue
        output, left = shapes.get(node.output[0], ()), shapes.get(node.input[0], ())
        summed = shapes.get(node.input[1], ())[1:] if node.op_type == "Conv" else left[-1:]
        sizes = [size for size in (*output, *summed) if isinstance(size, int)]
        known = bool(output and summed) and len(sizes) == len(output) + len(summed)
        found[node.name] = math.prod(sizes) if known else 0
    return found
