"""From a fused model and a recipe to a quantized model: methods before, calibration, methods after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx
from torch import Tensor

from ptq2themoon.methods import all_made
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.tools import Tools
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.recipes import Recipe


def quantize(
    reference: onnx.ModelProto,
    operators: Sequence[Operator],
    recipe: Recipe,
    bits: tuple[int, int],
    batches: Iterable[Tensor],
    device: str,
    seed: int = 0,
    state: State | None = None,
) -> QuantizedModel:
    """Quantize a fused model, which stays as it is.

    Args:
        operators: of the fused model, with roles.
        bits: of weights and of activations.
        batches: calibration images [B, C, H, W], normalised; iterated as often as recipe and methods need.
        seed: of what methods draw.
        state: where a training saves itself, and goes on from; None: nowhere.

    Raises:
        UserError: a rule that selects nothing, values that cannot be quantized, or what a method refuses.
    """
    model = QuantizedModel(reference, list(operators))
    tools = Tools(recipe, bits, batches, seed, device, state)
    methods = all_made(recipe.methods)
    for call, method in zip(recipe.methods, methods, strict=True):
        known = dict(model.fixed)
        method.before(model, tools)
        tools.prepared.append(call.name)
        tools.fixed_by |= {slot: call.name for slot, q in model.fixed.items() if q is not known.get(slot)}
    model.quantized = tools.plan(model)
    for slot, tensor in model.slots():
        tensor.quantizer = model.fixed.get(slot)
    tools.calibrate(model)
    for method in sorted(methods, key=lambda method: method.stage):
        method.after(model, tools)
    for method in methods:
        method.finish(model, tools)
    return model
