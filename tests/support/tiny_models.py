"""Tiny Vision Transformers with random weights, as PyTorch modules, plain ONNX and fused ONNX files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import torch
from onnx import numpy_helper
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.roles import find_roles, rename_operators
from ptq2themoon.vocabulary.operators import Operator

TINY: dict[str, Any] = {
    "img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 5,
    "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2,
}  # fmt: skip


def tiny_vit(folder: Path, **overrides: Any) -> tuple[Path, list[Operator]]:
    """A fused model of two blocks in `folder`, input `images` [batch, 1, 16, 16], and its operators.

    `overrides` are arguments of timm's VisionTransformer.
    """
    fused, _ = fuse(normalise(to_onnx(tiny_module(**overrides))))
    operators, _ = rename_operators(fused, find_roles(fused))
    path = folder / "fused.onnx"
    onnx.save(fused, path)
    return path, operators


def tiny_module(**overrides: Any) -> nn.Module:
    """A VisionTransformer none of whose parameters is zero or one."""
    set_fused_attn(False)  # the fused operator hides scores and softmax
    return randomised(VisionTransformer(**{**TINY, **overrides}))


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` for evaluation; weights keep the size of activations, the scales of norms lie around one."""
    generator = torch.Generator().manual_seed(seed)
    scales = {id(m.weight) for m in module.modules() if isinstance(m, nn.LayerNorm) and m.weight is not None}
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in scales:
            parameter.data = 1 + 0.3 * noise
        elif parameter.ndim == 1:
            parameter.data = 0.3 * noise
        else:
            parameter.data = noise / parameter[0].numel() ** 0.5
    return module.eval()


def to_onnx(
    module: nn.Module, shape: tuple[int, ...] = (1, 1, 16, 16), dynamic_batch: bool = True, opset: int = 13
) -> onnx.ModelProto:
    """As torch's TorchScript exporter writes it; input `images` of `shape`, output `logits`."""
    buffer = io.BytesIO()
    batch = {"images": {0: "batch"}, "logits": {0: "batch"}} if dynamic_batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, of the exporter's age
        torch.onnx.export(
            module, (torch.zeros(shape),), buffer, opset_version=opset, dynamo=False,
            input_names=["images"], output_names=["logits"], dynamic_axes=batch,
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def run_all(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    """Every output of `model` in ONNX Runtime for its one input."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: images})


def random_images(batch: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, *(shape or (1, 16, 16)))).astype(np.float32)


def written(
    body: str, constants: Mapping[str, np.ndarray], outputs: Iterable[str] = ("y",)
) -> onnx.ModelProto:
    """A graph in ONNX's text form: input `x` [batch, 4, 8], any of rank 3 out, opset 13."""
    results = ", ".join(f"float[batch, {name}1, {name}2] {name}" for name in outputs)
    header = '<ir_version: 8, opset_import: ["": 13]>'
    model = onnx.parser.parse_model(f"{header} written (float[batch, 4, 8] x) => ({results}) {{ {body} }}")
    model.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return model
