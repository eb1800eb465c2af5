"""The stage from model.onnx to a fused graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Job, Output


class Fuse(Job):
    """Fuse LayerNorm, GELU and MatMul+Add, find the role of every operator, and check the logits."""

    stage: ClassVar[str] = "fuse"

    model: Annotated[Path, Input(layout.ONNX_MODEL)]
    """model.onnx."""
    info: Annotated[Path, Input(layout.MODEL_INFO)]
    """model.json."""
    images: Annotated[
        Path,
        Input(lambda params, w: layout.check_images(params, w.model)),
    ]
    """Calibration images for the check."""
    check_images: int = 16
    """How many of them are used, at most."""
    out: Annotated[Path, Output(layout.FUSED_GRAPH)]
    """fused.onnx."""
    out_report: Annotated[Path, Output(layout.FUSION)]
    """fusion.json."""
