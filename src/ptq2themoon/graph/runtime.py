"""ONNX Runtime as the reference for what a graph computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime


def run_onnx(model: Path | onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """First output for images [B, C, H, W], float32, on the CPU."""
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    (name,) = (item.name for item in session.get_inputs())
    return session.run(None, {name: images})[0]
