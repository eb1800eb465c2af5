"""ONNX Runtime as the reference for what a graph computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from ptq2themoon.vocabulary.errors import UserError

TOLERANCE = 1e-4  # largest difference of an output between two forms of one model


def run_onnx(model: Path | onnx.ModelProto, images: np.ndarray, at_once: int | None = None) -> np.ndarray:
    """First output for images [B, C, H, W], float32, on the CPU.

    Args:
        at_once: images in a run, all by default; a graph of a fixed batch takes as many as that is.

    Raises:
        UserError: a graph that ONNX Runtime refuses, or images that do not fit it.
    """
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        (image,) = session.get_inputs()
        fixed = next((size for size in image.shape[:1] if isinstance(size, int)), None)
        size = fixed or at_once or len(images)
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        if fixed is None:
            outputs = [session.run(None, {image.name: part})[0] for part in parts]
        else:
            outputs = [session.run(None, {image.name: _filled(part, size)})[0][: len(part)] for part in parts]
        return np.concatenate(outputs)
    except Exception as error:  # ONNX Runtime's own have no common ancestor
        reason = " ".join(str(error).split())
        raise UserError(f"ONNX Runtime cannot run the graph on {list(images.shape)} ({reason})") from error


def _filled(images: np.ndarray, size: int) -> np.ndarray:
    """So many images, the last one repeated."""
    return np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])
