"""PPQ's own executor on a quantized graph: the reference that the program is held to.

It knows uniform quantizers only, per tensor and per channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ptq2themoon.ppq_compat import core, executor, ir, uniform_config
from ptq2themoon.quantize.program import Hook
from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor, Slot
from ptq2themoon.vocabulary.errors import UserError


class PPQEngine:
    """A PPQ graph with its configurations.

    Raises:
        UserError: a quantizer that PPQ does not have.
    """

    def __init__(self, graph: ir.BaseGraph, quantized: Iterable[QuantizedOperator], device: str) -> None:
        self.graph = graph
        self._items = {item.operator.name: item for item in quantized}
        self._configs: dict[Slot, core.TensorQuantizationConfig] = {}
        for item in self._items.values():
            self._attach(item)
        self.executor = executor.TorchExecutor(graph, device=device)

    def configs(self, operator: str) -> list[core.TensorQuantizationConfig]:
        """Of each quantized tensor, in the order of `QuantizedOperator.tensors`."""
        item = self._items[operator]
        return [self._configs[item.slot(tensor)] for tensor in item.tensors]

    def _attach(self, item: QuantizedOperator) -> None:
        if item.arithmetic is not None:
            raise UserError(f"PPQ's executor has no {item.arithmetic.kind}; use the program")
        operation = self.graph.operations[item.operator.name]
        inputs = [_floating() for _ in operation.inputs]
        outputs = [_floating() for _ in operation.outputs]
        for tensor in item.tensors:
            config = ppq_config(tensor)
            (outputs if tensor.operand == "output" else inputs)[tensor.position] = config
            self._configs[item.slot(tensor)] = config
        whole = core.OperationQuantizationConfig(inputs, outputs)
        replacer = ir.QuantableGraph(ir.GraphReplacer(self.graph))
        replacer.quantize_operation(item.operator.name, core.TargetPlatform.EXTENSION, whole)

    def put_in_force(self, slots: Mapping[Slot, object]) -> None:
        """Quantize these slots and no others, with the scales that they have now."""
        states = core.QuantizationStates
        for item in self._items.values():
            for tensor in item.tensors:
                config = self._configs[item.slot(tensor)]
                if tensor.quantizer is not None:
                    _set_scale(config, tensor)
                    config.state = states.ACTIVATED if item.slot(tensor) in slots else states.FP32

    def run(self, images: Tensor, hooks: Mapping[str, Hook] | None) -> Tensor:
        """Output of the graph for `images` [B, C, H, W]."""
        around = {name: _PPQHook(self.graph.operations[name], hook) for name, hook in (hooks or {}).items()}
        try:
            (output,) = self.executor.forward(images, hooks=around)
        except RuntimeError as error:  # PPQ wraps what an operator, or its hook, raises
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise
        return output

    def run_part(
        self, operations: Sequence[ir.Operation], values: dict[str, Tensor], outputs: Sequence[str]
    ) -> list[Tensor]:
        """The tensors `outputs` of consecutive operators that read `values`."""
        found: list[Tensor] = self.executor.partial_graph_forward(list(operations), values, list(outputs))
        return found


def ppq_config(tensor: QuantizedTensor) -> core.TensorQuantizationConfig:
    """PPQ's configuration of a tensor, with its scale where it has one."""
    spec = tensor.spec
    if spec.kind != "uniform" or spec.granularity == "per-head":
        raise UserError(f"PPQ's executor has no quantizer {spec.kind} {spec.granularity}; use the program")
    config = uniform_config(
        spec.bits,
        spec.quant_min,
        spec.quant_max,
        tensor.axis,
        symmetric=spec.symmetry == "symmetric",
        observer=spec.observer,
    )
    config.detail[core.OBSERVER_PERCENTILE_MANUL_OVERRIDE] = round(spec.percentile / 100, 12)
    if tensor.quantizer is not None:
        _set_scale(config, tensor)
    return config


def _set_scale(config: core.TensorQuantizationConfig, tensor: QuantizedTensor) -> None:
    quantizer = tensor.ready()
    assert isinstance(quantizer, Uniform)
    config.scale = quantizer.scale.clone()
    config.offset = quantizer.zero_point.expand(quantizer.scale.shape).clone()


def _floating() -> core.TensorQuantizationConfig:
    config = uniform_config(8, -128, 127, None, symmetric=True)
    config.state = core.QuantizationStates.FP32
    return config


class _PPQHook(executor.RuntimeHook):
    def __init__(self, operation: ir.Operation, hook: Hook) -> None:
        super().__init__(operation)
        self._hook = hook
        self._inputs: list[Tensor] = []

    def pre_forward_hook(self, inputs: list[Tensor], **kwargs: object) -> list[Tensor]:
        self._inputs = inputs
        return inputs

    def post_forward_hook(self, outputs: list[Tensor], **kwargs: object) -> list[Tensor]:
        self._hook(self._hook_to.name, self._inputs, outputs)
        self._inputs = []
        return outputs
