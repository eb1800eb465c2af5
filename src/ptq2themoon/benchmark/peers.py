"""What other tools make of the same FP32 model with the same calibration images."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.onnx_data import model_bytes


class Reader(CalibrationDataReader):
    """Images one at a time, as ONNX Runtime's calibration asks for them."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self._feeds = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image [1, C, H, W] by input name; None after the last one."""
        return next(self._feeds, None)


def static(model: Path, input_name: str, images: np.ndarray, out: Path) -> Path:
    """ONNX Runtime's static quantization with its defaults: activations uint8, weights int8 per channel.

    Args:
        images: float32 [N, C, H, W], normalised.
    """
    prepared = out.with_name(f"{out.stem}-prepared.onnx")
    quant_pre_process(str(model), str(prepared))
    quantize_static(
        str(prepared),
        str(out),
        Reader(input_name, images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    return out


def dynamic(model: Path, out: Path) -> Path:
    """ONNX Runtime's dynamic quantization: scales of activations are found at each run."""
    prepared = out.with_name(f"{out.stem}-prepared.onnx")
    quant_pre_process(str(model), str(prepared))
    quantize_dynamic(str(prepared), str(out), per_channel=True, weight_type=QuantType.QInt8)
    return out


def nncf_model(model: Any, images: np.ndarray, out: Path) -> Path:
    """NNCF's post-training quantization for transformers, mixed preset, as an OpenVINO file.

    Args:
        model: as OpenVINO read it.

    Raises:
        UserError: NNCF is not installed.
    """
    try:
        import nncf
        import openvino
    except ImportError:
        raise UserError("nncf is not installed here; `make peers` makes .venv-peers") from None
    nncf.set_log_level(logging.ERROR)
    quantized = nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in images]),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
    )
    openvino.save_model(quantized, str(out), compress_to_fp16=False)
    return out


def size(path: Path) -> int:
    """Bytes of a model with its weights; OpenVINO keeps them in a second file."""
    if path.suffix == ".xml":
        return path.stat().st_size + path.with_suffix(".bin").stat().st_size
    return model_bytes(path)
