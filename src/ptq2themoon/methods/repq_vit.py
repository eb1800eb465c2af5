"""RepQ-ViT: quantize LayerNorm's output per channel, then make it per tensor by re-parameterisation.

Li, Xiao, Yang and Gu, "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision
Transformers", ICCV 2023, arXiv 2212.08254, sections 3.3 and 3.4. Channel c of the input of the layers
that read a LayerNorm has scale s_c and zero point z_c. With s~ and z~ their means, r1 = s / s~, r2 = z - z~:

    gamma' = gamma / r1            beta' = (beta + s * r2) / r1                          equations 6, 7
    W'[c, :] = r1_c * W[c, :]      b' = b - (s * r2) W                                   equations 8, 9

The graph's function stays what it is, and a quantizer of one scale s~ and one zero point z~ gives the codes
that the quantizer per channel gave. The weights are calibrated afterwards. Softmax's output has codes of
powers of the square root of two (`log_sqrt2`).

Where this differs from the paper or its released code:
- z~ is rounded to a whole number, which runtimes need; the paper's mean is none.
- Scales come from the model in floating point. The code sets each on first use, on a quantized prefix.
- LayerNorms are found by the graph's structure: every one that linear layers alone read. The code takes
  all modules with "norm" in their name.
- Where zeros are padded between LayerNorm and layer (Swin), r2 is 0: a shift would not leave them zeros.
- Weights are what the recipe says, in `recipes/repq_vit.yaml` symmetric; the paper's are asymmetric. Integer
  kernels take no zero point for each output channel. A last rule `{select: {operand: weight}, symmetry:
  asymmetric}` makes them the paper's, and then the layers stay in floating point in the INT8 models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute, tensor_shapes
from ptq2themoon.graph.editing.operator_types import BIAS, LINEAR_TYPES, has_bias, holds_out_in
from ptq2themoon.graph.forms.layernorms import is_padded, readers_of, scalable_norms
from ptq2themoon.methods.base import Method
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    from onnx import NodeProto

    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.quantizers import Uniform
    from ptq2themoon.quantize.tensors import QuantizedTensor, Slot
    from ptq2themoon.quantize.tools import Tools


class RepQViTSettings(Strict):
    """What of the method is in force; each can be switched off for an ablation."""

    layernorm: Literal["reparameterized", "per-channel", "per-tensor"] = "reparameterized"
    """How LayerNorm's output is quantized; `per-channel` is what the re-parameterisation stands for."""
    log_sqrt2: bool = True
    """Softmax's output in powers of the square root of two; no integer kernel takes those."""


class RepQViT(Method):
    """Needs a recipe that quantizes the inputs of linear layers once, per tensor."""

    Settings = RepQViTSettings
    settings: RepQViTSettings

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Choose softmax's quantizer, and rewrite LayerNorms and the layers that read them."""
        if self.settings.log_sqrt2:
            tools.add_rule(
                "repq_vit",
                {"select": {"role": "attn_context", "operand": "input", "position": 0}, "kind": "log_sqrt2"},
            )
        if self.settings.layernorm == "per-tensor":
            return
        groups = norm_groups(model, tools)
        if not groups:
            raise UserError(
                "repq_vit: no LayerNorm is read by quantized linear layers alone; "
                "say layernorm: per-tensor, or quantize the inputs of qkv and fc1 per tensor"
            )
        found = tools.observe(model, {slot: t for group in groups for slot, t in group.per_channel.items()})
        for group in groups:
            per_channel: Uniform = found[next(iter(group.per_channel))]  # type: ignore[assignment]
            if self.settings.layernorm == "per-channel":
                model.fixed |= dict.fromkeys(group.per_channel, per_channel)
            else:
                per_tensor = reparameterize(model, group, per_channel)
                model.fixed |= dict.fromkeys(group.per_channel, per_tensor)


@dataclass
class NormGroup:
    """A LayerNorm and what reads it.

    Attributes:
        per_channel: the slot of each reader's input, with the way in which it is observed.
    """

    norm: str
    readers: list[str]
    per_channel: dict[Slot, QuantizedTensor]


def norm_groups(model: QuantizedModel, tools: Tools) -> list[NormGroup]:
    """LayerNorms that quantized linear layers alone read, their inputs all quantized in one way."""
    graph, shapes = model.graph(), tensor_shapes(model.edited)
    inputs = {
        item.operator.name: (item.slot(tensor), tensor)
        for item in tools.plan(model)
        for tensor in item.tensors
        if (tensor.operand, tensor.position) == ("input", 0)
    }
    groups = []
    for norm in scalable_norms(graph):
        readers = readers_of(graph, shapes, norm) or []
        slots = [inputs.get(reader.name) for reader in readers]
        found = [slot for slot in slots if slot is not None and _can_be_scaled(slot[1])]
        linear = all(_is_linear(graph, reader) for reader in readers)
        if not readers or len(found) < len(readers) or not linear:
            continue
        padded = is_padded(graph, norm, readers)
        per_channel = {slot: _per_channel(t, slot, graph, shapes, padded) for slot, t in found}
        if len({(t.spec, t.axis) for t in per_channel.values()}) > 1:
            continue
        groups.append(NormGroup(norm.name, [reader.name for reader in readers], per_channel))
    return groups


def _can_be_scaled(tensor: QuantizedTensor) -> bool:
    return tensor.spec.kind == "uniform" and tensor.granularity == "per-tensor"


def _is_linear(graph: Graph, node: NodeProto) -> bool:
    weight = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
    plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
    return node.op_type in LINEAR_TYPES and plain and weight is not None and weight.ndim == 2


def _per_channel(
    tensor: QuantizedTensor, slot: Slot, graph: Graph, shapes: Shapes, padded: bool
) -> QuantizedTensor:
    (node,) = (node for node in graph.nodes if node.name == slot.operator)
    spec = replace(tensor.spec, granularity="per-channel")
    if spec.observer != "percentiles":
        spec = replace(spec, observer="minmax")
    if padded:
        spec = replace(spec, symmetry="symmetric", codes="signed")
    return replace(tensor, spec=spec, axis=len(shapes[node.input[0]]) - 1)


def reparameterize(model: QuantizedModel, group: NormGroup, per_channel: Uniform) -> Uniform:
    """Rewrite a LayerNorm and its readers, and give the quantizer per tensor that has the same codes."""
    one, r1, shift = means(per_channel)
    graph = model.graph()
    nodes = {node.name: node for node in graph.nodes}
    norm = nodes[group.norm]
    gamma, *beta = (graph.constants[name].astype(np.float64) for name in norm.input[1:])
    values = {(norm.name, 1): gamma / r1}
    if beta or shift.any():
        values[norm.name, 2] = ((beta[0] if beta else 0.0) + shift) / r1
    for name in group.readers:
        node = nodes[name]
        weight = graph.constants[node.input[1]].astype(np.float64)
        turned = holds_out_in(node)
        rows = weight.T if turned else weight  # [in, out]
        scaled = rows * r1[:, None]
        values[name, 1] = scaled.T if turned else scaled
        if has_bias(node) or shift.any():
            bias = graph.constants[node.input[BIAS]].astype(np.float64) if has_bias(node) else 0.0
            values[name, BIAS] = bias - shift @ rows
    model.set_parameters(values, equal=True)
    return one


def means(per_channel: Uniform) -> tuple[Uniform, np.ndarray, np.ndarray]:
    """The quantizer of mean scale and zero point, r1 and s * r2, both float64 [channels]."""
    scale = per_channel.scale.double()
    zero_point = per_channel.zero_point.double()
    mean = zero_point.mean().round()
    one = type(per_channel)(
        scale.mean().float(),
        mean.float(),
        per_channel.bits,
        per_channel.quant_min,
        per_channel.quant_max,
        None,
    )
    r1 = scale / one.scale.double()
    return one, r1.numpy(), (scale * (zero_point - mean)).numpy()


METHOD = RepQViT
