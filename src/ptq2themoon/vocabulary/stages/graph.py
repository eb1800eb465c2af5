"""The stage from model.onnx to a fused graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Job, Output
from ptq2themoon.vocabulary.layout import Run


def _check(params: Any, model: str) -> Run:
    images, seed = params.calibration.check
    return Run(model, images=images, seed=seed)


class Fuse(Job):
    """Fuse LayerNorm, GELU and MatMul+Add, find every role, and check the logits."""

    stage: ClassVar[str] = "fuse"

    model: Annotated[Path, Input(layout.ONNX_MODEL)]
    """model.onnx."""
    info: Annotated[Path, Input(layout.MODEL_INFO)]
    """model.json."""
    images: Annotated[
        Path,
        Input(lambda params, w: layout.fill(layout.CALIBRATION, _check(params, w.model))),
    ]
    """Calibration images for the check."""
    check_images: int = 16
    """At most so many of them."""
    out: Annotated[Path, Output(layout.FUSED_GRAPH)]
    """fused.onnx."""
    out_report: Annotated[Path, Output(layout.FUSION)]
    """fusion.json."""
