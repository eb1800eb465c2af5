"""A tiny fused model, recipes for it, and its graph computed node by node without PPQ."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from families import FAMILIES, image_shape
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny_info import fused_model
from tiny_models import tiny_vit, to_onnx
from torch import Tensor

from ptq2themoon.evaluate.attention import AttentionSpec, run_with_attention
from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.graph.meaning.nodes import Node, read_nodes
from ptq2themoon.graph.meaning.roles import find_roles, rename_operators
from ptq2themoon.quantize.calibration import calibrate
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.plan import plan
from ptq2themoon.quantize.qparams import Header, write_qparams
from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.recipes import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
HEADER = Header(
    recipe="layernorm",
    bits="w8a8",
    protocol="all-operators",
    methods=[],
    calibration_images=24,
    graph_sha256="0" * 64,
)
# Operators that only move data or compute shapes; all others of the tiny models compute on floats.
MOVING = {"Transpose", "Squeeze", "Reshape", "Gather", "Concat", "Split", "Shape", "Expand", "Slice"}


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def write_recipe(folder: Path, *rules: dict[str, Any], **defaults: Any) -> Recipe:
    """A recipe with the study's settings but for `defaults`, and with `rules`."""
    base = {
        "granularity": "per-tensor",
        "observer": "percentile",
        "percentile": 99.99,
        "weight_axis": "input",
    }
    path = folder / f"recipe{len(list(folder.glob('recipe*.yaml')))}.yaml"
    path.write_text(yaml.safe_dump({"defaults": base | defaults, "rules": list(rules)}), encoding="utf-8")
    return load_recipe(path)


@dataclass
class Tiny:
    """A fused model of two blocks: file, operators in graph order, and what a quantizer knows of each."""

    path: Path
    operators: list[Operator]
    nodes: dict[str, Node]

    @classmethod
    def make(cls, folder: Path, **overrides: Any) -> Tiny:
        path, operators = tiny_vit(folder, **overrides)
        return cls(path, operators, read_nodes(onnx.load(path)))

    @classmethod
    def of_family(cls, name: str, folder: Path) -> Tiny:
        """A fused member of a family of `families.FAMILIES`."""
        fused, _ = fuse(normalise(to_onnx(FAMILIES[name](), (1, *image_shape(name)))))
        operators, _ = rename_operators(fused, find_roles(fused))
        onnx.save(fused, folder / "fused.onnx")
        return cls(folder / "fused.onnx", operators, read_nodes(onnx.load(folder / "fused.onnx")))

    @cached_property
    def graph(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    @cached_property
    def fused(self) -> FusedModel:
        return fused_model(self.path, self.graph, self.operators)

    def plan(self, recipe: Recipe | str, bits: tuple[int, int] = (8, 8)) -> list[QuantizedOperator]:
        recipe = load_recipe(RECIPES / f"{recipe}.yaml") if isinstance(recipe, str) else recipe
        return plan(self.operators, self.nodes, recipe, *bits)

    def calibrated(
        self, recipe: Recipe | str, bits: tuple[int, int] = (8, 8), batches: Iterable[Tensor] | None = None
    ) -> tuple[SimulatedModel, list[QuantizedOperator]]:
        planned = self.plan(recipe, bits)
        model = SimulatedModel(self.graph, "cpu", planned)
        calibrate(model, planned, list(images(24).split(8)) if batches is None else batches)
        return model, planned

    def saved(self, planned: list[QuantizedOperator], folder: Path) -> list[Path]:
        """The two files of a calibrated model."""
        paths = [folder / "qparams.json", folder / "qparams.safetensors"]
        model = QuantizedModel(self.graph, self.operators, quantized=planned)
        write_qparams(model, HEADER, *paths)
        return paths

    def role(self, role: str, block: int | None = None) -> str:
        """The name of the one operator in that place."""
        (name,) = (o.name for o in self.operators if (o.role, o.block) == (role, block))
        return name


def symmetric(tensor: QuantizedTensor, scale: Tensor) -> Uniform:
    """The quantizer of a tensor whose scale is known."""
    bounds = tensor.spec.quant_min, tensor.spec.quant_max
    return Uniform(scale, torch.zeros_like(scale), tensor.spec.bits, *bounds, tensor.axis)


def fake_quantize(x: np.ndarray, tensor: QuantizedTensor) -> np.ndarray:
    quantizer, spec = tensor.ready(), tensor.spec
    assert isinstance(quantizer, Uniform)
    shape = [-1 if axis == tensor.axis else 1 for axis in range(x.ndim)]
    scale, zero_point = (
        a.numpy() if tensor.axis is None else a.numpy().reshape(shape)
        for a in (quantizer.scale, quantizer.zero_point)
    )
    codes = np.clip(np.rint(x / scale) + zero_point, spec.quant_min, spec.quant_max)
    return (codes - zero_point) * scale


class Reference:
    """The quantized graph as its definition says, in numpy and ONNX's reference operators."""

    def __init__(self, path: Path, quantized: Iterable[QuantizedOperator] = ()) -> None:
        self.model = onnx.load(path)
        self.quantized = {item.operator.name: item.tensors for item in quantized}
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}

    def run(self, pixels: Tensor, active: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """First output of each operator; `active`: those in force, None means all."""
        values = {**self.constants, "images": pixels.numpy()}
        outputs = {}
        for node in self.model.graph.node:
            on = active is None or node.name in active
            results = self.node(node, [values[name] for name in node.input], quantize=on)
            values |= dict(zip(node.output, results, strict=True))
            outputs[node.name] = results[0]
        return outputs

    def local(self, pixels: Tensor) -> dict[str, np.ndarray]:
        """First output of each operator, quantized, from floating-point inputs."""
        values = {**self.constants, "images": pixels.numpy()}
        outputs = {}
        for node in self.model.graph.node:
            inputs = [values[name] for name in node.input]
            outputs[node.name] = self.node(node, inputs, quantize=True)[0]
            values |= dict(zip(node.output, self.node(node, inputs, quantize=False), strict=True))
        return outputs

    def node(self, node: onnx.NodeProto, inputs: list[np.ndarray], *, quantize: bool) -> list[np.ndarray]:
        tensors = self.quantized.get(node.name, []) if quantize else []
        inputs = list(inputs)
        for tensor in tensors:
            if tensor.operand != "output":
                inputs[tensor.position] = fake_quantize(inputs[tensor.position], tensor)
        outputs = compute(node, inputs)
        for tensor in tensors:
            if tensor.operand == "output":
                outputs[tensor.position] = fake_quantize(outputs[tensor.position], tensor)
        return outputs


def compute(node: onnx.NodeProto, inputs: list[np.ndarray]) -> list[np.ndarray]:
    if node.op_type == "PPQBiasFusedMatMul":
        return [inputs[0] @ inputs[1] + inputs[2]]
    if node.op_type == "Gelu":
        return [(inputs[0] * (1 + np.vectorize(math.erf)(inputs[0] / math.sqrt(2))) / 2).astype(np.float32)]
    feeds = dict(zip(node.input, inputs, strict=True))
    return ReferenceEvaluator(node, opsets={"": 20}).run(None, feeds)


def references(
    tiny: Tiny, batches: Iterable[tuple[Tensor, Tensor]], spec: AttentionSpec
) -> list[tuple[Tensor, Tensor]]:
    """Output and attention in floating point, of each batch of images and labels."""
    model = SimulatedModel(tiny.graph, "cpu")
    return [run_with_attention(model, pixels, spec) for pixels, _ in batches]
