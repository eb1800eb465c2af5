"""All that the golden comparison asks of the package; when its interface changes, only this file follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.evaluate.accuracy import evaluate_quantized
from ptq2themoon.evaluate.attention import attention_spec, run_with_attention
from ptq2themoon.evaluate.operator_errors import logits_errors, output_errors
from ptq2themoon.graph.meaning.attention_facts import attention_facts
from ptq2themoon.graph.meaning.fusion_record import Attention
from ptq2themoon.graph.meaning.roles import find_roles
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.pipeline import quantize as quantize_model
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import load_recipe

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
    """A fused model in `folder` (fused.onnx), quantized."""

    folder: Path
    model: QuantizedModel
    simulation: SimulatedModel


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
    wanted, graph = parse_bits(bits), read_graph(folder / "fused.onnx")
    known = load_recipe(recipe, [wanted])
    model = quantize_model(graph, find_roles(graph), known, wanted, batches, "cpu")
    return Quantized(folder, model, simulated(model, "cpu"))


def floating(folder: Path, images: Tensor) -> np.ndarray:
    """Logits [B, classes] of the model that nothing quantizes."""
    return SimulatedModel(read_graph(folder / "fused.onnx"), "cpu")(images).numpy()


def scales(quantized: Quantized) -> dict[str, Scale]:
    """By `operator/operand/position`, in graph order."""
    return {
        "/".join(map(str, slot)): Scale(
            tensor.spec.bits, tensor.axis, tensor.ready().scale.reshape(-1).numpy()
        )
        for slot, tensor in quantized.model.slots()
    }


def logits(quantized: Quantized, images: Tensor) -> np.ndarray:
    """[B, classes], of the quantized model."""
    return quantized.simulation(images).numpy()


def errors(quantized: Quantized, batches: list[Tensor]) -> dict[str, np.ndarray]:
    """[ways, figures] by operator, in graph order."""
    plain = SimulatedModel(quantized.model.rewritten, "cpu")
    references = [plain(part) for part in batches]
    measured = (
        *output_errors(quantized.simulation, plain, batches),
        logits_errors(quantized.simulation, plain, batches, references),
    )
    summaries = [{name: meter.summary() for name, meter in meters.items()} for meters in measured]
    return {
        name: np.array([[summary[name][figure] for figure in FIGURES] for summary in summaries])
        for name in summaries[0]
    }


def metrics(quantized: Quantized, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float | int | None]:
    """Of the quantized model, over batches of images [B, C, H, W] and labels [B]; attention: last block's."""
    graph = quantized.model.reference
    facts = Attention.model_validate(attention_facts(graph, find_roles(graph)))
    spec = attention_spec(facts, -1)
    plain = SimulatedModel(graph, "cpu")
    references = [run_with_attention(plain, images, spec) for images, _ in batches]
    found = evaluate_quantized(quantized.simulation, batches, references, spec).metrics
    return found.model_dump(exclude={"version", "protocol"})


def deployed(quantized: Quantized, mode: Mode) -> tuple[dict[str, Any], bytes]:
    """What deploy.json says of the INT8 model, and int8.onnx."""
    made = deploy(quantized.model.edited, quantized.model.quantized, mode)
    operators = (item.operator for item in quantized.model.quantized)
    return made.report(operators), made.model.SerializeToString()
