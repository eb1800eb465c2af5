"""Find the quantizer of every planned tensor with observers, one batch in memory at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq2themoon.progress import progress
from ptq2themoon.quantize.observers import Observer, make_observer
from ptq2themoon.quantize.program import Hook
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor, Slot
from ptq2themoon.vocabulary.errors import UserError

Observed = dict[Slot, tuple[QuantizedTensor, Observer]]


def calibrate(model: SimulatedModel, planned: list[QuantizedOperator], batches: Iterable[Tensor]) -> None:
    """Set the quantizer of every tensor of `planned` that has none.

    Parameters first; then activations, observed while the parameters are quantized and the
    activations are not, as PPQ does. What several operators share is observed once.

    Args:
        model: the model with `planned` attached.
        batches: images [B, C, H, W], normalised; iterated twice when an observer needs it.

    Raises:
        UserError: a value that is not finite, or that a quantizer has no code for, with its operator.
    """
    waiting = {
        item.slot(tensor): tensor for item in planned for tensor in item.tensors if tensor.quantizer is None
    }
    for slot, tensor in waiting.items():
        if tensor.is_parameter:
            tensor.quantizer = fit(slot, tensor, model.parameter(slot.operator, slot.position))
    activations = {slot: tensor for slot, tensor in waiting.items() if not tensor.is_parameter}
    for slot, quantizer in observe(model, activations, batches).items():
        activations[slot].quantizer = quantizer


def fit(slot: Slot, tensor: QuantizedTensor, value: Tensor) -> Quantizer:
    """The quantizer of a parameter with this value."""
    observer = make_observer(tensor.spec, tensor.axis)
    _finite(value, slot)
    for number in range(observer.passes):
        if number:
            _end_pass(slot, observer)
        observer.observe(value)
    return _quantizer(slot, observer)


def observe(
    model: SimulatedModel, wanted: Mapping[Slot, QuantizedTensor], batches: Iterable[Tensor]
) -> dict[Slot, Quantizer]:
    """Quantizers of activations, seen in `model` as it is in force.

    Args:
        batches: images [B, C, H, W], normalised; iterated twice when an observer needs it.
    """
    shared = _Shared.of(model, wanted)
    for number in range(max((o.passes for _, o in shared.observed.values()), default=0)):
        again = {slot: pair for slot, pair in shared.observed.items() if pair[1].passes > number}
        if number:
            for slot, (_, observer) in again.items():
                _end_pass(slot, observer)
        hooks = _hooks(again)
        for images in progress(batches, desc=f"calibrate, pass {number + 1}" if number else "calibrate"):
            model(images, hooks)
    found = {slot: _quantizer(slot, observer) for slot, (_, observer) in shared.observed.items()}
    return found | {slot: found[first] for slot, first in shared.copies.items()}


@dataclass
class _Shared:
    """One observer for each distinct (tensor, way of quantizing), and the slots that copy another's."""

    observed: Observed
    copies: dict[Slot, Slot]

    @classmethod
    def of(cls, model: SimulatedModel, wanted: Mapping[Slot, QuantizedTensor]) -> _Shared:
        observed: Observed = {}
        first: dict[tuple, Slot] = {}
        copies = {}
        for slot, tensor in wanted.items():
            key = (model.tensor_name(slot), tensor.spec, tensor.axis)
            if key in first:
                copies[slot] = first[key]
            else:
                first[key] = slot
                observed[slot] = tensor, make_observer(tensor.spec, tensor.axis)
        return cls(observed, copies)


def _hooks(observed: Observed) -> dict[str, Hook]:
    by_operator: dict[str, Observed] = {}
    for slot, pair in observed.items():
        by_operator.setdefault(slot.operator, {})[slot] = pair
    return {name: _hook(pairs) for name, pairs in by_operator.items()}


def _hook(pairs: Observed) -> Hook:
    def observe(_: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        for slot, (_tensor, observer) in pairs.items():
            value = (outputs if slot.operand == "output" else inputs)[slot.position]
            observer.observe(_finite(value, slot))

    return observe


def _end_pass(slot: Slot, observer: Observer) -> None:
    with _refused_in_one_line(slot, observer):
        observer.end_pass()


def _quantizer(slot: Slot, observer: Observer) -> Quantizer:
    with _refused_in_one_line(slot, observer):
        return observer.quantizer()


@contextlib.contextmanager
def _refused_in_one_line(slot: Slot, observer: Observer) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UserError(f"{_named(slot)}: observer {observer.spec.observer!r}: {error}") from None


def _finite(value: Tensor, slot: Slot) -> Tensor:
    """An order statistic would pass over a few values that are not finite."""
    # NaN and infinity reach the extremes, found in a fraction of the time of isfinite on each value.
    if not bool(torch.isfinite(torch.stack(torch.aminmax(value))).all()):
        raise UserError(f"{_named(slot)}: values that are not finite")
    return value


def _named(slot: Slot) -> str:
    return f"operator {slot.operator!r}, {slot.operand} {slot.position}"
