"""From a fused model and a recipe to a quantized model: methods before, calibration, methods after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
from torch import Tensor

from ptq2themoon.methods import all_made
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.tools import Tools
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.recipes import Recipe

if TYPE_CHECKING:
    from ptq2themoon.methods.base import Method


@dataclass(frozen=True)
class Prepared:
    """A model on which the methods of a recipe have done what they do before calibration.

    Attributes:
        tools: with the rules that methods added, and the images that they calibrate on.
    """

    model: QuantizedModel
    tools: Tools
    methods: list[Method]


def prepared(
    reference: onnx.ModelProto,
    operators: Sequence[Operator],
    tools: Tools,
    methods: Sequence[Method] | None = None,
) -> Prepared:
    """As `quantize`, up to calibration.

    Args:
        tools: of this calibration; methods change them.
        methods: of the recipe, made before: what one of them keeps it need not make again at other bits.
    """
    model, calls = QuantizedModel(reference, list(operators)), tools.recipe.methods
    called = all_made(calls) if methods is None else list(methods)
    for call, method in zip(calls, called, strict=True):
        known = dict(model.fixed)
        method.before(model, tools)
        tools.prepared.append(call.name)
        tools.fixed_by |= {slot: call.name for slot, q in model.fixed.items() if q is not known.get(slot)}
    return Prepared(model, tools, called)


def calibrated(ready: Prepared) -> QuantizedModel:
    """The rest of `quantize`."""
    model, tools = ready.model, ready.tools
    model.quantized = tools.plan(model)
    for slot, tensor in model.slots():
        tensor.quantizer = model.fixed.get(slot)
    tools.calibrate(model)
    for method in sorted(ready.methods, key=lambda method: method.stage):
        method.after(model, tools)
    for method in ready.methods:
        method.finish(model, tools)
    return model


def quantize(
    reference: onnx.ModelProto,
    operators: Sequence[Operator],
    recipe: Recipe,
    bits: tuple[int, int],
    batches: Iterable[Tensor],
    device: str,
    seed: int = 0,
    state: State | None = None,
    info: ModelInfo | None = None,
) -> QuantizedModel:
    """Quantize a fused model, which stays as it is.

    Args:
        operators: of the fused model, with roles.
        bits: of weights and of activations.
        batches: calibration images [B, C, H, W], normalised; iterated as often as recipe and methods need.
        seed: of what methods draw.
        state: where a training saves itself, and goes on from; None: nowhere.
        info: of the model, where it is known.

    Raises:
        UserError: a rule that selects nothing, values that cannot be quantized, or what a method refuses.
    """
    tools = Tools(recipe, bits, batches, seed, device, state, info)
    return calibrated(prepared(reference, operators, tools))
