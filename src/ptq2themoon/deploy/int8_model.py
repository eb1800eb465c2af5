"""A fused model and its quantization parameters as one INT8 ONNX model of standard operators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import onnx

from ptq2themoon import __version__
from ptq2themoon.deploy.deploy_report import Deployed
from ptq2themoon.deploy.faithful import Faithful
from ptq2themoon.deploy.fast import Fast
from ptq2themoon.graph.meaning.work import multiply_accumulates
from ptq2themoon.quantize.qparams import Header
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.modes import Mode, Profile


def metadata(made_from: Header, info: ModelInfo, mode: Mode) -> dict[str, str]:
    """What a user of the file must know, by key: its recipe, and how images become inputs (JSON)."""
    preprocessing = info.preprocessing.model_dump(mode="json")
    return {
        "ptq2themoon": __version__,
        "recipe": made_from.recipe,
        "bits": made_from.bits,
        "mode": mode,
        "preprocessing": json.dumps(preprocessing),
        "label_names": json.dumps(info.label_names),
    }


def deploy(
    model: onnx.ModelProto,
    quantized: Sequence[QuantizedOperator],
    mode: Mode,
    profile: Profile = "onnxruntime",
    source: Path | str = "the graph",
) -> Deployed:
    """The INT8 model.

    Args:
        model: fused; it stays as it is.
        quantized: with scales.
        source: what messages call the model.

    Raises:
        UserError: parameters of another graph.
    """
    nodes = {node.name: node for node in model.graph.node}
    for item in quantized:
        node = nodes.get(item.operator.name)
        if node is None or node.op_type != item.operator.type:
            raise UserError(
                f"{source}: has no operator {item.operator.name!r} of type {item.operator.type}; "
                "the parameters belong to another graph"
            )
        for tensor in item.tensors:
            names = node.output if tensor.operand == "output" else node.input
            if tensor.position >= len(names) or tensor.quantizer is None:
                raise UserError(
                    f"{source}: operator {item.operator.name!r} has no {tensor.operand} {tensor.position} "
                    "with a scale; the parameters belong to another graph"
                )
    by_name = {item.operator.name: item for item in quantized}
    work = multiply_accumulates(model)
    if mode == "faithful":
        faithful = Faithful(model, by_name, profile)
        return Deployed(faithful.write(), mode, profile, faithful.placements, [], faithful.kept, work)
    fast = Fast(model, by_name, profile)
    return Deployed(fast.write(), mode, profile, fast.placements, fast.migrations, fast.kept, work)
