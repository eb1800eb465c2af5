"""All that the golden comparison asks of the package; when its interface changes, only this file follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from ptq2themoon.deploy.export import deploy
from ptq2themoon.errors import UserError
from ptq2themoon.evaluate.accuracy import evaluate_quantized
from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.evaluate.operators import logits_errors, output_errors
from ptq2themoon.graph.files import read_graph
from ptq2themoon.graph.nodes import read_nodes
from ptq2themoon.graph.report import read_operators
from ptq2themoon.quantize.bits import parse_bits
from ptq2themoon.quantize.calibration import calibrate
from ptq2themoon.quantize.plan import plan
from ptq2themoon.quantize.recipe import load_recipe
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator

__all__ = [
    "FIGURES", "MODES", "WAYS", "Mode", "Quantized", "Scale", "UserError", "deployed", "errors", "floating",
    "logits", "metrics", "quantize", "scales",
]  # fmt: skip

FIGURES = ("nsr", "relative_error", "mse", "mae", "cosine")  # of an operator's error
WAYS = ("accumulated", "local", "logits")  # of measuring it
Mode = Literal["faithful", "fast"]
MODES: tuple[Mode, ...] = ("faithful", "fast")


@dataclass
class Quantized:
    """A fused model in `folder` (fused.onnx, fusion.json), calibrated."""

    folder: Path
    model: SimulatedModel
    operators: list[QuantizedOperator]


class Scale(NamedTuple):
    """Of one tensor: bits, axis of the channels (None: per tensor) and the scales, float32, [1] or [C]."""

    bits: int
    axis: int | None
    values: np.ndarray


def quantize(folder: Path, recipe: Path, bits: str, batches: Iterable[Tensor]) -> Quantized:
    """Calibrated on batches [B, C, H, W]; `bits` as `w8a8`.

    Raises:
        UserError: a recipe that does not fit the model or the bits.
    """
    wanted = parse_bits(bits)
    graph = folder / "fused.onnx"
    known = load_recipe(recipe, [wanted])
    planned = plan(read_operators(folder / "fusion.json"), read_nodes(graph), known, *wanted)
    model = SimulatedModel(graph, "cpu", planned)
    calibrate(model, planned, batches)
    return Quantized(folder, model, planned)


def floating(folder: Path, images: Tensor) -> np.ndarray:
    """Logits [B, classes] of the model that nothing quantizes."""
    return SimulatedModel(folder / "fused.onnx", "cpu")(images).numpy()


def scales(quantized: Quantized) -> dict[str, Scale]:
    """By `operator/operand/position`, in graph order."""
    found = {}
    for item in quantized.operators:
        for tensor in item.tensors:
            assert tensor.scale is not None
            name = f"{item.operator.name}/{tensor.operand}/{tensor.position}"
            found[name] = Scale(tensor.spec.bits, tensor.axis, tensor.scale.reshape(-1).numpy())
    return found


def logits(quantized: Quantized, images: Tensor) -> np.ndarray:
    """[B, classes], of the quantized model."""
    return quantized.model(images).numpy()


def errors(quantized: Quantized, batches: list[Tensor]) -> dict[str, np.ndarray]:
    """[ways, figures] by operator, in graph order."""
    measured = (*output_errors(quantized.model, batches), logits_errors(quantized.model, batches))
    summaries = [{name: meter.summary() for name, meter in meters.items()} for meters in measured]
    return {
        name: np.array([[summary[name][figure] for figure in FIGURES] for summary in summaries])
        for name in summaries[0]
    }


def metrics(quantized: Quantized, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float | int | None]:
    """Of the quantized model, over batches of images [B, C, H, W] and labels [B]; attention: last block's."""
    spec = attention_spec(quantized.folder / "fusion.json", -1)
    return evaluate_quantized(quantized.model, batches, spec).metrics


def deployed(quantized: Quantized, mode: Mode) -> tuple[dict[str, Any], bytes]:
    """What deploy.json says of the INT8 model, and int8.onnx."""
    made = deploy(read_graph(quantized.folder / "fused.onnx"), quantized.operators, mode)
    return made.report(item.operator for item in quantized.operators), made.model.SerializeToString()
