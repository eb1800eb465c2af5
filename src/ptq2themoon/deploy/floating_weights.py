"""Which weights of an INT8 model stay in floating point, and how much of the file they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
from onnx import TensorProto

from ptq2themoon.vocabulary.operators import Operator

LEAST = 0.001  # share of the bytes below which an operator is not named


def floating_weights(model: onnx.ModelProto, operators: Iterable[Operator]) -> dict[str, Any]:
    """Share of float32 constants among the bytes of all constants, and the operators that have most of them.

    Args:
        model: INT8.
        operators: of the fused graph; constants of what was written for integers, as scales, count in the
            whole alone.
    """
    sizes = {tensor.name: tensor.ByteSize() for tensor in model.graph.initializer}
    floating = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    total = sum(sizes.values()) or 1
    read: dict[str, int] = {}
    counted: set[str] = set()
    for node in model.graph.node:
        names = floating.intersection(node.input) - counted
        counted |= names
        read[node.name] = sum(sizes[name] for name in names)
    found = []
    for operator in operators:
        size = read.get(operator.name, 0)
        if size / total >= LEAST:
            found.append({**operator._asdict(), "bytes": size, "share": round(size / total, 4)})
    return {
        "share": round(sum(sizes[name] for name in floating) / total, 4),
        "operators": sorted(found, key=lambda entry: -entry["bytes"]),
    }
