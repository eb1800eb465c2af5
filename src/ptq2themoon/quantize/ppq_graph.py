"""A graph as PPQ holds it, in the form that its operators take."""

from __future__ import annotations

from pathlib import Path

import onnx

from ptq2themoon.ppq_compat import build_graph, core, ir, quiet_ppq
from ptq2themoon.ppq_operators import missing
from ptq2themoon.vocabulary.errors import UserError


def load_graph(model: onnx.ModelProto, source: Path | str) -> ir.BaseGraph:
    """PPQ's graph of a model; `UserError` where PPQ cannot load it or lacks an operator.

    Args:
        source: what messages call the model.
    """
    try:
        with quiet_ppq():
            graph = build_graph(model)
            formatter = ir.GraphFormatter(graph)
            # One copy of a shared parameter for each use: each use has a scale of its own.
            formatter.format_parameter()
            formatter.format_cast()
            _axes_to_attribute(graph)
    except Exception as error:
        raise UserError(f"{source}: PPQ cannot load this graph ({error})") from error
    for operation in graph.operations.values():
        operation.platform = core.TargetPlatform.FP32
    if unknown := missing(graph):
        kinds = ", ".join(sorted({operation.type for operation in unknown}))
        raise UserError(
            f"{source}: PPQ has no operator {kinds} (first at {unknown[0].name!r}); "
            "export the model without it"
        )
    return graph


def _axes_to_attribute(graph: ir.BaseGraph) -> None:
    """PPQ's ReduceMean has its axes as an attribute, as ONNX before opset 18, not as an input."""
    for operation in graph.operations.values():
        if operation.type == "ReduceMean" and len(operation.inputs) == 2:
            axes = operation.inputs[1]
            operation.attributes["axes"] = axes.value.tolist()
            graph.remove_variable(axes)
