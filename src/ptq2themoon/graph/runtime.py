"""ONNX Runtime as the reference for what a graph computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from ptq2themoon.errors import UserError

TOLERANCE = 1e-4  # largest difference of an output between two forms of one model


def run_onnx(model: Path | onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """First output for images [B, C, H, W], float32, on the CPU.

    Raises:
        UserError: a graph that ONNX Runtime refuses, or images that do not fit it.
    """
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        (name,) = (item.name for item in session.get_inputs())
        return session.run(None, {name: images})[0]
    except Exception as error:  # ONNX Runtime's own have no common ancestor
        reason = " ".join(str(error).split())
        raise UserError(f"ONNX Runtime cannot run the graph on {list(images.shape)} ({reason})") from error
