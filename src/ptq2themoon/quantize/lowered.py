"""A quantized graph as a straight line of operators: PPQ's numbers to the bit, without its executor.

PPQ's executor looks up, wraps and copies at every tensor: for each quantization six passes over memory.
Lowering decides all that once. Parameters are quantized beforehand; a value that lies on its grid
already is not quantized again; what is left takes four passes in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ptq2themoon.errors import UserError
from ptq2themoon.ppq_compat import core, executor, ir

# Called with an operator's name, its inputs and its outputs, as computed.
Watcher = Callable[[str, list[Tensor], list[Tensor]], None]

# Their output is values of their input, in other places: what lay on a grid lies on it still.
MOVES = frozenset((
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
))  # fmt: skip
DATA_FIRST = MOVES - {"Concat"}  # their other inputs say where


class Grid(NamedTuple):
    """The values that a tensor can have once quantized; onto an equal grid, nothing more is rounded."""

    scale: tuple[float, ...]
    axis: int | None
    quant_min: int
    quant_max: int


class Quantizer:
    """Quantize, round half to even, clip, dequantize; PPQ's formula, in its order, with zero point 0."""

    def __init__(self, config: core.TensorQuantizationConfig, rank: int, device: str) -> None:
        shape = [-1 if axis == config.channel_axis else 1 for axis in range(rank)]
        self._scale = config.scale.to(device).reshape(shape if config.scale.ndim else [])
        self._min, self._max = config.quant_min, config.quant_max

    def __call__(self, value: Tensor) -> Tensor:
        return self._onto_grid(value / self._scale)

    def in_place(self, value: Tensor) -> Tensor:
        return self._onto_grid(value.div_(self._scale))

    def _onto_grid(self, steps: Tensor) -> Tensor:
        return steps.round_().clamp_(self._min, self._max).mul_(self._scale)


@dataclass
class _Input:
    name: str
    constant: Tensor | None
    config: core.TensorQuantizationConfig | None


@dataclass
class _Step:
    """One operator, the configurations of what is still to be quantized, and the values that end with it."""

    operation: ir.Operation
    forward: Callable[..., Any]
    inputs: list[_Input]
    outputs: list[tuple[str, core.TensorQuantizationConfig | None]]
    ending: list[str]


class Lowered:
    """Operators in their order, with those quantizations that are in force when it is made.

    Args:
        operations: consecutive operators of a PPQ graph.
        wanted: names of the tensors that `run` gives.
        device: a torch device.
    """

    def __init__(self, operations: Sequence[ir.Operation], wanted: Sequence[str], device: str) -> None:
        self._wanted, self._device = list(wanted), device
        self._context = executor.op.TorchBackendContext(executing_device=device)
        self._quantizers: dict[tuple[int, int], Quantizer] = {}
        grids: dict[str, Grid] = {}
        self._steps = [self._step(operation, grids) for operation in operations]
        self._end_values()

    def _step(self, operation: ir.Operation, grids: dict[str, Grid]) -> _Step:
        quantized = isinstance(operation, ir.QuantableOperation)
        config = operation.config if quantized else None
        before = config.input_quantization_config if config else [None] * len(operation.inputs)
        after = config.output_quantization_config if config else [None] * len(operation.outputs)
        inputs = [self._input(v, c, grids) for v, c in zip(operation.inputs, before, strict=True)]
        outputs = []
        passed = _passed_on(operation, grids)
        for variable, c in zip(operation.outputs, after, strict=True):
            grid = grid_of(c) or passed
            if grid is not None:
                grids[variable.name] = grid
            outputs.append((variable.name, c if grid_of(c) else None))
        forward = executor.base.OPERATION_FORWARD_TABLE[operation.platform][operation.type]
        return _Step(operation, forward, inputs, outputs, [])

    def _input(
        self, variable: ir.Variable, config: core.TensorQuantizationConfig | None, grids: Mapping[str, Grid]
    ) -> _Input:
        grid = grid_of(config)
        if not variable.is_parameter:
            there = grid is None or grid == grids.get(variable.name)
            return _Input(variable.name, None, None if there else config)
        value = variable.value
        if grid is not None and value is not None:
            value = Quantizer(config, value.ndim, self._device)(value)
        return _Input(variable.name, value, None)

    def _end_values(self) -> None:
        """Say at each step which values no later one reads."""
        seen = set(self._wanted)
        for step in reversed(self._steps):
            read = {i.name for i in step.inputs if i.constant is None}
            made = {name for name, _ in step.outputs}
            step.ending = [name for name in (read | made) if name not in seen]
            seen |= read

    def run(self, values: Mapping[str, Tensor], watch: Mapping[str, Watcher] | None = None) -> list[Tensor]:
        """The wanted tensors; `values` holds every tensor that the operators read from outside.

        Raises:
            UserError: as a watcher or an operator raises it.
            RuntimeError: an operator that cannot compute, with its name.
        """
        known, watch = dict(values), watch or {}
        for step in self._steps:
            name = step.operation.name
            try:
                inputs = [self._value(item, known) for item in step.inputs]
                outputs = self._outputs(step, inputs)
            except UserError:
                raise
            except Exception as error:
                raise RuntimeError(f"operator {name!r} ({step.operation.type}): {error}") from error
            if name in watch:
                watch[name](name, inputs, outputs)
            known |= zip((out for out, _ in step.outputs), outputs, strict=True)
            for ending in step.ending:
                known.pop(ending, None)
        return [known[name] for name in self._wanted]

    def _value(self, item: _Input, known: Mapping[str, Tensor]) -> Any:
        value = item.constant if item.constant is not None else known.get(item.name)
        return value if item.config is None or value is None else self._quantizer(item.config, value)(value)

    def _outputs(self, step: _Step, inputs: list[Any]) -> list[Tensor]:
        found = step.forward(step.operation, inputs, self._context)
        outputs = list(found) if isinstance(found, list | tuple) else [found]
        for i, (_, config) in enumerate(step.outputs):
            if config is not None:
                quantizer = self._quantizer(config, outputs[i])
                own = not any(_share_memory(outputs[i], value) for value in inputs)
                outputs[i] = (quantizer.in_place if own else quantizer)(outputs[i])
        return outputs

    def _quantizer(self, config: core.TensorQuantizationConfig, value: Tensor) -> Quantizer:
        key = id(config), value.ndim
        if key not in self._quantizers:
            self._quantizers[key] = Quantizer(config, value.ndim, self._device)
        return self._quantizers[key]


def grid_of(config: core.TensorQuantizationConfig | None) -> Grid | None:
    """The grid that a configuration puts in force; None: none."""
    if config is None or config.state != core.QuantizationStates.ACTIVATED:
        return None
    axis = config.channel_axis if config.scale.ndim else None
    return Grid(tuple(config.scale.flatten().tolist()), axis, config.quant_min, config.quant_max)


def _passed_on(operation: ir.Operation, grids: Mapping[str, Grid]) -> Grid | None:
    """The one grid of all that an operator moves; a channel's own may end on another axis."""
    if operation.type not in MOVES:
        return None
    moved = operation.inputs[:1] if operation.type in DATA_FIRST else operation.inputs
    found = {grids.get(variable.name) for variable in moved}
    grid = found.pop() if len(found) == 1 else None
    return grid if grid is not None and grid.axis is None else None


def _share_memory(a: Tensor, b: Any) -> bool:
    return isinstance(b, Tensor) and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
