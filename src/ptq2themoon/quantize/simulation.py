"""PPQ's graph of a fused model: run it in floating point, quantized, or any operators quantized.

The inputs and the outputs of each quantized operator are fake-quantized (quantize, round half to even,
clip, dequantize), by one of two engines that give the same bits: `lowered`, or PPQ's own executor, the
reference that it is held to.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import Tensor

from ptq2themoon.errors import UserError
from ptq2themoon.graph.editing import tensor_shapes
from ptq2themoon.graph.fused import FusedModel
from ptq2themoon.ppq_compat import build_graph, core, executor, ir
from ptq2themoon.ppq_operators import missing
from ptq2themoon.quantize.lowered import Lowered, Watcher
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor, load

Engine = Literal["lowered", "ppq"]
# The largest tensor of those images that go through the lowered graph together on a CPU: what caches hold.
LARGEST_BYTES = 5_000_000
PROGRAMS_KEPT = 2  # each has parameters of its own: in floating point, and quantized


class SimulatedModel:
    """One fused model on one device, with or without quantization parameters.

    Args:
        model: a fused ONNX model; it stays as it is.
        device: a torch device.
        quantized: the operators to quantize and how; without scales they are not yet in force.
        engine: what runs the graph.
        source: what messages call the model.

    Raises:
        UserError: a graph that PPQ can't load, or parameters of another graph.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        device: str,
        quantized: list[QuantizedOperator] | None = None,
        engine: Engine = "lowered",
        source: Path | str = "the graph",
    ) -> None:
        self._graph = _load(model, source)
        self._engine = engine
        self._at_once = _images_at_once(model) if engine == "lowered" and device == "cpu" else None
        self._programs: dict[tuple[int | None, ...], tuple[Lowered, list[Tensor]]] = {}
        self._configs: dict[str, list[core.TensorQuantizationConfig]] = {}
        for item in quantized or []:
            self._attach(item, source)
        with _quiet():
            self._executor = executor.TorchExecutor(self._graph, device=device)
        self.device = device
        self.activate(self._configs)

    @property
    def quantized_operators(self) -> list[str]:
        """Names in graph order."""
        return list(self._configs)

    def configs(self, operator: str) -> list[core.TensorQuantizationConfig]:
        """PPQ's configuration of each quantized tensor, in the order of `QuantizedOperator.tensors`."""
        return self._configs[operator]

    def _attach(self, item: QuantizedOperator, source: Path | str) -> None:
        name = item.operator.name
        operation = self._graph.operations.get(name)
        if operation is None or operation.type != item.operator.type:
            raise UserError(
                f"{source}: has no operator {name!r} of type {item.operator.type}; "
                "the parameters belong to another graph"
            )
        inputs = [ppq_config(None) for _ in operation.inputs]
        outputs = [ppq_config(None) for _ in operation.outputs]
        self._configs[name] = []
        for tensor in item.tensors:
            config = ppq_config(tensor)
            (outputs if tensor.operand == "output" else inputs)[tensor.position] = config
            self._configs[name].append(config)
        whole = core.OperationQuantizationConfig(inputs, outputs)
        replacer = ir.QuantableGraph(ir.GraphReplacer(self._graph))
        replacer.quantize_operation(name, core.TargetPlatform.EXTENSION, whole)

    def activate(self, operators: Collection[str]) -> None:
        """Quantize these operators (as far as they are calibrated) and no others."""
        for name, configs in self._configs.items():
            for config in configs:
                if config.scale is not None:
                    on = name in operators
                    config.state = core.QuantizationStates.ACTIVATED if on else core.QuantizationStates.FP32

    @contextlib.contextmanager
    def only(self, operators: Collection[str]) -> Iterator[None]:
        """Within the block, quantize these operators only; afterwards all."""
        self.activate(operators)
        try:
            yield
        finally:
            self.activate(self._configs)

    def __call__(self, images: Tensor, watch: Mapping[str, Watcher] | None = None) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]; `watch` sees the operators that it names.

        What is watched runs with all images together: split them with `parts` where memory or time matter.
        """
        parts = [images] if watch else self.parts(images)
        return torch.cat([self._whole(part.to(self.device), watch) for part in parts])

    def parts(self, images: Tensor) -> Sequence[Tensor]:
        """The images in parts that run fast."""
        return images.split(self._at_once) if self._at_once else [images]

    def _whole(self, images: Tensor, watch: Mapping[str, Watcher] | None) -> Tensor:
        (graph_input,) = self._graph.inputs
        if self._engine == "ppq":
            return self._run_ppq(images, watch)
        with _quiet(), torch.inference_mode():
            (logits,) = self._program().run({graph_input: images}, watch)
        return logits

    def _program(self) -> Lowered:
        """The graph, lowered with what is in force now; kept with its scales, whose ids are the key."""
        on = core.QuantizationStates.ACTIVATED
        scales = [c.scale if c.state == on else None for configs in self._configs.values() for c in configs]
        key = tuple(None if scale is None else id(scale) for scale in scales)
        if key not in self._programs:
            if len(self._programs) == PROGRAMS_KEPT:
                self._programs.clear()
            whole = self._lower(self._executor._executing_order, list(self._graph.outputs))
            self._programs[key] = whole, [scale for scale in scales if scale is not None]
        return self._programs[key][0]

    def _run_ppq(self, images: Tensor, watch: Mapping[str, Watcher] | None) -> Tensor:
        hooks = {name: _hook(self._graph.operations[name], w) for name, w in (watch or {}).items()}
        try:
            with _quiet():
                (logits,) = self._executor.forward(images, hooks=hooks)
        except RuntimeError as error:  # PPQ wraps what an operator, or its watcher, raises
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise
        return logits

    def one_at_a_time(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(operator, logits [B, classes] with it alone quantized), in graph order.

        What comes before an operator is in floating point and is computed once for all.
        """
        order = self._executor._executing_order
        alive = {name: images.to(self.device) for name in self._graph.inputs}
        with self.only(()):
            for index, operation in enumerate(order):
                if operation.name in self._configs:
                    self.activate({operation.name})
                    (logits,) = self._run_part(order[index:], alive, list(self._graph.outputs))
                    self.activate(())
                    yield operation.name, logits
                produced = [variable.name for variable in operation.outputs]
                alive |= zip(produced, self._run_part([operation], alive, produced), strict=True)
                used = {variable.name for later in order[index + 1 :] for variable in later.inputs}
                alive = {name: value for name, value in alive.items() if name in used}

    def quantized_output(self, operator: str, inputs: list[Tensor]) -> Tensor:
        """First output of one operator, quantized, from the floating-point inputs given."""
        operation = self._graph.operations[operator]
        values = {v.name: value for v, value in zip(operation.inputs, inputs, strict=True)}
        configs = self._configs[operator]
        states = [config.state for config in configs]
        try:
            for config in configs:
                config.state = core.QuantizationStates.ACTIVATED
            return self._run_part([operation], values, [operation.outputs[0].name])[0]
        finally:
            for config, state in zip(configs, states, strict=True):
                config.state = state

    def _run_part(
        self, operations: list[ir.Operation], values: dict[str, Tensor], outputs: list[str]
    ) -> list[Tensor]:
        with _quiet(), torch.inference_mode():
            if self._engine == "ppq":
                return self._executor.partial_graph_forward(operations, values, outputs)
            return self._lower(operations, outputs).run(values)

    def _lower(self, operations: list[ir.Operation], outputs: list[str]) -> Lowered:
        return Lowered(operations, outputs, self.device)

    def parameter(self, operator: str, position: int) -> Tensor:
        """The value of a parameter input."""
        return self._graph.operations[operator].inputs[position].value

    def variable(self, operator: str, position: int, *, output: bool) -> ir.Variable:
        """PPQ's variable at an operator's input or output."""
        operation = self._graph.operations[operator]
        return (operation.outputs if output else operation.inputs)[position]


def load_model(
    fused: FusedModel, device: str, qparams: Sequence[Path] | None = None, engine: Engine = "lowered"
) -> SimulatedModel:
    """A fused model; quantized when `qparams` names its parameters (JSON, then safetensors)."""
    return SimulatedModel(fused.graph, device, load(*qparams) if qparams else None, engine, fused.path)


def _load(model: onnx.ModelProto, source: Path | str) -> ir.BaseGraph:
    try:
        with _quiet():
            graph = build_graph(model)
            formatter = ir.GraphFormatter(graph)
            # One copy of a shared parameter for each use: each use has a scale of its own.
            formatter.format_parameter()
            formatter.format_cast()
            _axes_to_attribute(graph)
    except Exception as error:
        raise UserError(f"{source}: PPQ cannot load this graph ({error})") from error
    for operation in graph.operations.values():
        operation.platform = core.TargetPlatform.FP32
    if unknown := missing(graph):
        kinds = ", ".join(sorted({operation.type for operation in unknown}))
        raise UserError(
            f"{source}: PPQ has no operator {kinds} (first at {unknown[0].name!r}); "
            "export the model without it"
        )
    return graph


def _images_at_once(model: onnx.ModelProto) -> int:
    """As many as keep the largest tensor small."""
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = [shape for name, shape in tensor_shapes(model, batch=1).items() if name not in constants]
    known = [[n for n in shape if isinstance(n, int)] for shape in shapes]
    largest = max(map(math.prod, known), default=1)
    return max(1, LARGEST_BYTES // (4 * max(largest, 1)))


def _axes_to_attribute(graph: ir.BaseGraph) -> None:
    """PPQ's ReduceMean has its axes as an attribute, as ONNX before opset 18, not as an input."""
    for operation in graph.operations.values():
        if operation.type == "ReduceMean" and len(operation.inputs) == 2:
            axes = operation.inputs[1]
            operation.attributes["axes"] = axes.value.tolist()
            graph.remove_variable(axes)


def ppq_config(tensor: QuantizedTensor | None) -> core.TensorQuantizationConfig:
    """PPQ's configuration of a tensor; None: stays in floating point."""
    properties = core.QuantizationProperty
    per_channel = tensor is not None and tensor.granularity == "per-channel"
    granularity = properties.PER_CHANNEL if per_channel else properties.PER_TENSOR
    config = core.TensorQuantizationConfig(
        policy=core.QuantizationPolicy(properties.SYMMETRICAL + properties.LINEAR + granularity),
        rounding=core.RoundingPolicy.ROUND_HALF_EVEN,
        num_of_bits=tensor.bits if tensor else 8,
        quant_min=tensor.quant_min if tensor else -128,
        quant_max=tensor.quant_max if tensor else 127,
        observer_algorithm=tensor.observer if tensor else "minmax",
        channel_axis=tensor.axis if tensor else None,
        state=core.QuantizationStates.FP32 if tensor is None else core.QuantizationStates.INITIAL,
    )
    if tensor is not None and tensor.percentile is not None:
        config.detail[core.OBSERVER_PERCENTILE_MANUL_OVERRIDE] = round(tensor.percentile / 100, 12)
    if tensor is not None and tensor.scale is not None:
        config.scale = tensor.scale.clone()
        config.offset = torch.zeros_like(config.scale)
    return config


def _hook(operation: ir.Operation, watcher: Watcher) -> executor.RuntimeHook:
    return _WatchingHook(operation, watcher)


class _WatchingHook(executor.RuntimeHook):
    def __init__(self, operation: ir.Operation, watcher: Watcher) -> None:
        super().__init__(operation)
        self._watcher = watcher
        self._inputs: list[Tensor] = []

    def pre_forward_hook(self, inputs: list[Tensor], **kwargs: object) -> list[Tensor]:
        self._inputs = inputs
        return inputs

    def post_forward_hook(self, outputs: list[Tensor], **kwargs: object) -> list[Tensor]:
        self._watcher(self._hook_to.name, self._inputs, outputs)
        self._inputs = []
        return outputs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PPQ indexes tensors with lists, which torch warns of at each call; its result is tested."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence", category=UserWarning)
        yield
