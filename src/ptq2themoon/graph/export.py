"""A timm model, by name or from local files, as an ONNX file whose logits are PyTorch's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
from safetensors.torch import load_file
from timm.data import resolve_data_config
from timm.layers import set_fused_attn
from torch import Tensor, nn

from ptq2themoon.errors import UserError
from ptq2themoon.graph.runtime import run_onnx

TOLERANCE = 1e-4  # largest difference of a logit between PyTorch and the exported graph
CHECK_IMAGES = 4
WRAPPERS = ("model", "state_dict", "state_dict_ema")  # where training scripts put the weights


@dataclass(frozen=True)
class Source:
    """Where a model comes from: `source` as in params.yaml, weights of its own or not, timm arguments."""

    source: str
    checkpoint: Path | None
    arguments: Mapping[str, Any]


def load_model(spec: Source) -> nn.Module:
    """A timm model in evaluation mode, float32, with attention as plain operators.

    Raises:
        UserError: weights that are missing, of another architecture, not finite or not readable.
    """
    # PyTorch's fused attention is one operator that hides the scores and the softmax.
    set_fused_attn(False)
    try:
        model = timm.create_model(spec.source, pretrained=spec.checkpoint is None, **spec.arguments)
    except Exception as error:  # whatever a model's own code, a hub or a broken file raises
        reason = _reason(error)
        hint = "; without a network give `checkpoint: FILE.safetensors`" if isinstance(error, OSError) else ""
        raise UserError(f"model {spec.source!r}: timm cannot make it ({reason}){hint}") from None
    if spec.checkpoint is not None:
        _load_weights(model, spec.checkpoint)
    model = model.float().eval()
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"model {spec.source!r}: weights that are not finite: {', '.join(broken[:3])}")
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    state = _read_state(path)
    found, wanted = set(state), set(model.state_dict())
    if found != wanted:
        missing, unexpected = sorted(wanted - found), sorted(found - wanted)
        raise UserError(
            f"{path}: weights of another architecture: {len(missing)} keys missing (as {missing[:2]}), "
            f"{len(unexpected)} unexpected (as {unexpected[:2]})"
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # equal keys, other shapes
        raise UserError(f"{path}: {str(error).splitlines()[-1].strip()}") from None


def _read_state(path: Path) -> Mapping[str, Tensor]:
    """Weights from safetensors or a state dict; never any code from the file."""
    if not path.is_file():
        raise UserError(f"{path}: not found; `checkpoint` names a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not readable as weights ({_reason(error)})") from None
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no state dict, bare or under {', '.join(WRAPPERS)}")
    return state


def export(model: nn.Module, spec: Source, opset: int, path: Path) -> dict[str, Any]:
    """Write the ONNX file, its batch dimension free; return what model.json records.

    Raises:
        UserError: the exporter fails, or ONNX Runtime's logits differ from PyTorch's by more than 1e-4.
    """
    config = _data_config(model, spec)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CHECK_IMAGES, *config["input_size"], generator=generator)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing, of the exporter's age
            torch.onnx.export(
                model, (images[:1],), path, opset_version=opset, dynamo=False,
                input_names=["images"], output_names=["logits"],
                dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            )  # fmt: skip
    except Exception as error:
        raise UserError(f"model {spec.source!r}: torch.onnx.export failed ({_reason(error)})") from error
    onnx.checker.check_model(path, full_check=True)
    with torch.inference_mode():
        expected = model(images).numpy()
    difference = float(np.abs(run_onnx(path, images.numpy()) - expected).max())
    if not difference <= TOLERANCE:
        raise UserError(f"model {spec.source!r}: exported logits differ by {difference:.2g} (> {TOLERANCE})")
    return _facts(model, spec, config, opset, expected, difference)


def _data_config(model: nn.Module, spec: Source) -> dict[str, Any]:
    """timm's preprocessing for the model, at the image size that its arguments ask for."""
    config: dict[str, Any] = resolve_data_config({}, model=model)
    channels, *size = config["input_size"]
    asked = spec.arguments.get("img_size", size)
    size = [asked, asked] if isinstance(asked, int) else list(asked)
    return {**config, "input_size": (spec.arguments.get("in_chans", channels), *size)}


def _facts(
    model: nn.Module, spec: Source, config: dict[str, Any], opset: int, logits: np.ndarray, difference: float
) -> dict[str, Any]:
    pretrained = getattr(model, "pretrained_cfg", {})
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    return {
        "source": spec.source,
        "architecture": pretrained.get("architecture"),
        "input_size": list(config["input_size"]),
        "num_classes": int(logits.shape[-1]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "opset": opset,
        "preprocessing": {key: _plain(config[key]) for key in keys},
        "label_names": _plain(pretrained.get("label_names")),
        "max_abs_logit_difference": difference,
        "check": {"images": CHECK_IMAGES, "seed": 0, "logits": logits.tolist()},
    }


def _reason(error: Exception) -> str:
    """First line of a message that may have none."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0].removesuffix(": ")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
