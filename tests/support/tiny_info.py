"""What model.json says of a tiny model, and its fused model without any files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.graph.meaning.attention_facts import attention_facts
from ptq2themoon.graph.meaning.fusion_record import FusionReport
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.validation import validate

PREPROCESSING = {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}


def model_info(size: Sequence[int] = (1, 16, 16), classes: int | None = 5, **changes: Any) -> dict[str, Any]:
    """The content of a model.json; `changes` are of the preprocessing."""
    preprocessing = {
        "input_size": list(size),
        "mean": [0.5] * size[0],
        "std": [0.25] * size[0],
        **PREPROCESSING,
        **changes,
    }
    return {
        "version": 1,
        "source": "tiny",
        "output": "logits" if classes else "features",
        "num_classes": classes,
        "architecture": None,
        "weights": {},
        "exporter": "torchscript",
        "opset": 13,
        "input_size": list(size),
        "parameters": 1,
        "preprocessing": preprocessing,
        "label_names": None,
        "max_abs_logit_difference": 0.0,
        "check": {"images": 4, "seed": 0, "logits": None},
    }


def fusion_report(model: onnx.ModelProto, operators: Sequence[Operator]) -> FusionReport:
    facts = {
        "images": 1,
        "max_abs_logit_difference": 0.0,
        "counts": {"before": {}, "after": {}},
        "fused": {},
        "attention": attention_facts(model, list(operators)),
        "unassigned": [],
        "operators": [operator._asdict() for operator in operators],
        "fusions": [],
    }
    return validate(FusionReport, facts, "fusion.json")


def fused_model(path: Path, model: onnx.ModelProto, operators: Sequence[Operator]) -> FusedModel:
    size = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    info = validate(ModelInfo, model_info(size), "model.json")
    return FusedModel(path, model, fusion_report(model, operators), info)
