"""Find the scale of every planned tensor with PPQ's observers, one batch in memory at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from ptq2themoon.errors import UserError
from ptq2themoon.ppq_compat import TensorObserverFactory, core, ir, observer
from ptq2themoon.progress import progress
from ptq2themoon.quantize.lowered import Watcher
from ptq2themoon.quantize.percentile import PercentileObserver
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor

TWO_PASSES = ("kl", "mse")  # PPQ's histogram observers: the range first, then the histogram
Pairs = list[tuple[QuantizedTensor, observer.base.BaseTensorObserver]]
Observers = dict[str, Pairs]  # by operator


def calibrate(model: SimulatedModel, planned: list[QuantizedOperator], batches: Iterable[Tensor]) -> None:
    """Set the scale of every tensor of `planned`.

    Parameters first; then activations, observed while the parameters are quantized and the
    activations are not, as PPQ does. What several operators share is observed once.

    Args:
        model: the model with `planned` attached.
        batches: images [B, C, H, W], normalised; iterated twice when an observer needs it.

    Raises:
        UserError: a value that is not finite, with its operator.
    """
    _calibrate_parameters(model, planned)
    observers, copies = _activation_observers(model, planned)
    _observe(model, batches, observers, "calibrate")
    again = {name: kept for name, pairs in observers.items() if (kept := _with_two_passes(pairs))}
    if again:
        # Only these have a first result: it puts no activation in force, so both passes see the same.
        _render(again)
        _observe(model, batches, again, "calibrate, second pass")
    _render(observers)
    for config, source in copies:
        config.scale, config.offset, config.state = source.scale, source.offset, source.state
    for item in planned:
        for tensor, config in zip(item.tensors, model.configs(item.operator.name), strict=True):
            tensor.scale = _checked(config.scale, item, tensor)


def build_observer(
    variable: ir.Variable, config: core.TensorQuantizationConfig
) -> observer.base.BaseTensorObserver:
    """PPQ's observer of a tensor, or ours that finds the same scale sooner."""
    if config.observer_algorithm == "percentile":
        return PercentileObserver(variable, config)
    return TensorObserverFactory.build_observer(variable, config)


def _calibrate_parameters(model: SimulatedModel, planned: list[QuantizedOperator]) -> None:
    for item in planned:
        name = item.operator.name
        for tensor, config in zip(item.tensors, model.configs(name), strict=True):
            if tensor.operand not in ("weight", "bias"):
                continue
            watching = build_observer(model.variable(name, tensor.position, output=False), config)
            value = _finite(model.parameter(name, tensor.position), name, tensor)
            for _ in range(2 if tensor.observer in TWO_PASSES else 1):
                watching.observe(value)
                watching.render_quantization_config()


def _activation_observers(
    model: SimulatedModel, planned: list[QuantizedOperator]
) -> tuple[Observers, list[tuple[core.TensorQuantizationConfig, core.TensorQuantizationConfig]]]:
    """One observer a distinct (variable, way of quantizing), and the configurations that copy another's."""
    observers: Observers = defaultdict(list)
    first: dict[tuple, core.TensorQuantizationConfig] = {}
    copies = []
    for item in planned:
        name = item.operator.name
        for tensor, config in zip(item.tensors, model.configs(name), strict=True):
            if tensor.operand in ("weight", "bias"):
                continue
            variable = model.variable(name, tensor.position, output=tensor.operand == "output")
            key = (variable.name, tensor.bits, tensor.axis, tensor.observer, tensor.percentile)
            if key in first:
                copies.append((config, first[key]))
            else:
                first[key] = config
                observers[name].append((tensor, build_observer(variable, config)))
    return observers, copies


def _observe(model: SimulatedModel, batches: Iterable[Tensor], observers: Observers, desc: str) -> None:
    watch = {name: _watcher(pairs) for name, pairs in observers.items()}
    for images in progress(batches, desc=desc):
        model(images, watch)


def _render(observers: Observers) -> None:
    """Let every observer turn what it saw into a scale, or get ready for its second pass."""
    for pairs in observers.values():
        for _, watching in pairs:
            watching.render_quantization_config()


def _with_two_passes(pairs: Pairs) -> Pairs:
    return [(tensor, watching) for tensor, watching in pairs if tensor.observer in TWO_PASSES]


def _watcher(pairs: Pairs) -> Watcher:
    def watch(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        for tensor, watching in pairs:
            value = (outputs if tensor.operand == "output" else inputs)[tensor.position]
            watching.observe(_finite(value, name, tensor))
            _condense(watching)

    return watch


def _condense(watching: observer.base.BaseTensorObserver) -> None:
    """Join what PPQ's observers keep of each batch, so that memory hardly grows with their number."""
    if isinstance(watching, observer.TorchMinMaxObserver):  # the histogram observers are such too
        for name, reduce in (("_min_val_collector", torch.amin), ("_max_val_collector", torch.amax)):
            setattr(watching, name, [reduce(torch.cat(getattr(watching, name), -1), -1, keepdim=True)])
    elif isinstance(watching, observer.TorchPercentileObserver):
        watching._percentile_collector = [torch.cat(watching._percentile_collector)]


def _finite(value: Tensor, operator: str, tensor: QuantizedTensor) -> Tensor:
    """An order statistic would pass over a few values that are not finite."""
    # NaN and infinity reach the extremes, found in a fraction of the time of isfinite on each value.
    if not bool(torch.isfinite(torch.stack(torch.aminmax(value))).all()):
        raise UserError(
            f"operator {operator!r}, {tensor.operand} {tensor.position}: values that are not finite"
        )
    return value


def _checked(scale: Tensor, item: QuantizedOperator, tensor: QuantizedTensor) -> Tensor:
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise UserError(
            f"operator {item.operator.name!r}, {tensor.operand} {tensor.position}: observer "
            f"{tensor.observer!r} finds no scale; use another"
        )
    return scale.detach().cpu().to(torch.float32)
