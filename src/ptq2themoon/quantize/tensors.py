"""What is quantized: the tensors at each operator, and the file that holds their parameters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptq2themoon.errors import UserError
from ptq2themoon.graph.operators import Operator
from ptq2themoon.quantize.recipe_file import Granularity, Observer, Operand
from ptq2themoon.stage import write_json

ROUNDING = "half-even"


@dataclass
class QuantizedTensor:
    """Quantization parameters of one input or output of one operator.

    Attributes:
        operand: what the tensor is to its operator.
        position: index among the operator's inputs, or among its outputs when `operand` is output.
        axis: the channel axis when per channel, else None.
        percentile: in percent, only for the percentile observer.
        scale: float32, 0-d per tensor, [channels] per channel; None before calibration.
            Zero point is 0 throughout: the quantizers are symmetric.
    """

    operand: Operand
    position: int
    bits: int
    quant_min: int
    quant_max: int
    granularity: Granularity
    axis: int | None
    observer: Observer
    percentile: float | None
    scale: Tensor | None = field(default=None, compare=False)


@dataclass
class QuantizedOperator:
    """An operator with its quantized tensors, inputs first."""

    operator: Operator
    tensors: list[QuantizedTensor]


def save(
    operators: Iterable[QuantizedOperator], header: Mapping[str, Any], path: Path, arrays_path: Path
) -> None:
    """Write `path` (JSON; per-tensor scales in it) and `arrays_path` (safetensors; per-channel scales)."""
    arrays: dict[str, Tensor] = {}
    entries = []
    for quantized in operators:
        tensors = []
        for tensor in quantized.tensors:
            assert tensor.scale is not None
            entry = {k: v for k, v in asdict(tensor).items() if k != "scale"}
            if tensor.granularity == "per-tensor":
                entry["scale"] = tensor.scale.item()  # float32 to JSON's double and back is exact
            else:
                key = f"{quantized.operator.name}.{tensor.operand}.{tensor.position}"
                arrays[key] = tensor.scale.clone()  # safetensors refuses shared memory
                entry["scale"] = {"array": key, "shape": list(tensor.scale.shape)}
            tensors.append({**entry, "zero_point": 0})
        entries.append({**quantized.operator._asdict(), "tensors": tensors})
    fixed = {"scheme": "linear", "symmetric": True, "rounding": ROUNDING}
    write_json(path, {**header, **fixed, "operators": entries})
    save_file(arrays, arrays_path)


def load(path: Path, arrays_path: Path) -> list[QuantizedOperator]:
    """Read what `save` wrote.

    Raises:
        UserError: a file that is not of this form.
    """
    try:
        arrays = load_file(arrays_path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: not quantization parameters of ptq2themoon ({arrays_path}: {error}); calibrate again"
        ) from None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["operators"]
        return [_operator(entry, arrays) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not quantization parameters of ptq2themoon ({error}); calibrate again"
        ) from None


def _operator(entry: dict[str, Any], arrays: Mapping[str, Tensor]) -> QuantizedOperator:
    tensors = []
    for item in entry["tensors"]:
        values = {k: v for k, v in item.items() if k not in ("scale", "zero_point")}
        stored = item["scale"]
        scale = arrays[stored["array"]] if isinstance(stored, dict) else torch.tensor(stored)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError(f"{entry['name']}, {item['operand']} {item['position']}: no valid scale")
        tensors.append(QuantizedTensor(**values, scale=scale.to(torch.float32)))
    operator = Operator(entry["name"], entry["type"], entry["role"], entry["block"])
    return QuantizedOperator(operator, tensors)
