"""A quantized graph as a straight line of operators: PPQ's numbers to the bit, without its executor.

PPQ's executor looks up, wraps and copies at every tensor: for each quantization six passes over memory.
A program decides all that once. Parameters are quantized beforehand; a value that lies on its grid
already is not quantized again; what is left happens in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ptq2themoon.graph.editing.operator_types import KEEPING_GRID, MANY_DATA_INPUTS
from ptq2themoon.ppq_compat import executor, ir
from ptq2themoon.quantize.integer_arithmetic import Arithmetic
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.quantize.tensors import Slot
from ptq2themoon.vocabulary.errors import UserError

# A hook is called with an operator's name, its inputs and its outputs, as computed.
Hook = Callable[[str, list[Tensor], list[Tensor]], None]
Values = dict[str, Tensor]
Quantizers = Mapping[Slot, Quantizer]
Forward = Callable[[list[Any]], Any]
Place = tuple[str, int]  # an operator, and the position of one of its parameters


@dataclass
class Input:
    """One input of an operator.

    Attributes:
        constant: the value of a parameter, quantized already unless the program is trainable.
        parameter: the key of a trainable parameter; None of any other input.
        quantizer: what is still to be done to the value.
    """

    name: str
    constant: Tensor | None
    quantizer: Quantizer | None
    parameter: str | None = None


@dataclass
class Step:
    """One operator, what of it is still to be quantized, and the values that end with it."""

    operation: ir.Operation
    forward: Forward
    inputs: list[Input]
    outputs: list[tuple[str, Quantizer | None]]
    ending: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the step's operator."""
        return str(self.operation.name)


class Program:
    """Operators in their order, with their quantizers.

    Args:
        operations: consecutive operators of a PPQ graph.
        wanted: names of the tensors that `run` gives.
        device: a torch device.
        quantizers: those in force, by slot.
        trainable: keep parameters as inputs (`parameters`), quantize them in each run, and give every
            quantization a straight-through gradient; values are the same to the bit.
        arithmetic: of operators that compute on integers where their first input is quantized, by name.
        constants: parameters as another program of these operators has them, with their quantizers: those
            whose quantizer is in force here too are not quantized again.
    """

    def __init__(
        self,
        operations: Sequence[ir.Operation],
        wanted: Sequence[str],
        device: str,
        quantizers: Quantizers,
        *,
        trainable: bool = False,
        arithmetic: Mapping[str, Arithmetic] | None = None,
        constants: Mapping[Place, tuple[Quantizer, Tensor]] | None = None,
    ) -> None:
        self.wanted, self.trainable = list(wanted), trainable
        self._arithmetic = arithmetic or {}
        self.parameters: dict[str, Tensor] = {}
        self._constants: dict[Place, tuple[Quantizer, Tensor]] = dict(constants or {})
        self.device, self._quantizers = device, quantizers
        self._context = executor.op.TorchBackendContext(executing_device=device)
        grids: dict[str, Quantizer] = {}
        self.steps = [self._step(operation, grids) for operation in operations]
        self._end_values()

    def _step(self, operation: ir.Operation, grids: dict[str, Quantizer]) -> Step:
        inputs = [self._input(operation, i, grids) for i in range(len(operation.inputs))]
        passed = _passed_on(operation, grids)
        outputs = []
        for i, variable in enumerate(operation.outputs):
            quantizer = self._quantizers.get(Slot(operation.name, "output", i))
            grid = quantizer or passed
            if grid is not None:
                grids[variable.name] = grid
            outputs.append((variable.name, quantizer))
        return Step(operation, self._forward(operation, inputs), inputs, outputs)

    def _forward(self, operation: ir.Operation, inputs: list[Input]) -> Forward:
        plain = _forward(operation, inputs, self._context)
        arithmetic = self._arithmetic.get(operation.name)
        quantizer = self._quantizers.get(Slot(operation.name, "input", 0))
        if arithmetic is None or quantizer is None:
            return plain

        def in_integers(values: list[Any]) -> Tensor:
            with torch.no_grad():
                found = arithmetic(values, quantizer.scale, quantizer.axis)
            if not self.trainable:
                return found
            smooth = plain(values)  # the gradient is that of floating point
            return found + (smooth - smooth.detach())

        return in_integers

    def _input(self, operation: ir.Operation, position: int, grids: Mapping[str, Quantizer]) -> Input:
        variable = operation.inputs[position]
        if not variable.is_parameter:
            quantizer = self._quantizers.get(Slot(operation.name, "input", position))
            there = quantizer is None or quantizer == grids.get(variable.name)
            return Input(variable.name, None, None if there else quantizer)
        value = variable.value
        quantizer = self._parameter_quantizer(operation.name, position)
        if self.trainable and value is not None and value.is_floating_point():
            key = f"{operation.name}.{position}"
            self.parameters[key] = value.detach().clone()
            return Input(variable.name, None, quantizer, key)
        if quantizer is not None and value is not None:
            value = self._constant((operation.name, position), quantizer, value)
        return Input(variable.name, value, None)

    def _constant(self, place: Place, quantizer: Quantizer, value: Tensor) -> Tensor:
        known = self._constants.get(place)
        if known is None or known[0] is not quantizer:
            self._constants[place] = known = quantizer, quantizer(value)
        return known[1]

    def _parameter_quantizer(self, operator: str, position: int) -> Quantizer | None:
        found = (self._quantizers.get(Slot(operator, operand, position)) for operand in ("weight", "bias"))
        return next((quantizer for quantizer in found if quantizer is not None), None)

    def _end_values(self) -> None:
        """Say at each step which values no later one reads."""
        seen = set(self.wanted)
        for step in reversed(self.steps):
            read = {i.name for i in step.inputs if i.constant is None and i.parameter is None}
            made = {name for name, _ in step.outputs}
            step.ending = [name for name in (read | made) if name not in seen]
            seen |= read

    def renewed(self, quantizers: Quantizers) -> Program:
        """These operators with other quantizers; only parameters that got another one are quantized."""
        return Program(
            [step.operation for step in self.steps],
            self.wanted,
            self.device,
            quantizers,
            trainable=self.trainable,
            arithmetic=self._arithmetic,
            constants=self._constants,
        )

    @property
    def read(self) -> list[str]:
        """Names of the tensors that `run` needs: what the operators read and none of them makes."""
        made: set[str] = set()
        found: dict[str, None] = {}
        for step in self.steps:
            for item in step.inputs:
                if item.constant is None and item.parameter is None and item.name and item.name not in made:
                    found[item.name] = None
            made |= {name for name, _ in step.outputs}
        return list(found)

    def run(self, values: Mapping[str, Tensor], hooks: Mapping[str, Hook] | None = None) -> list[Tensor]:
        """The wanted tensors; `values` holds every tensor that the operators read from outside.

        Raises:
            UserError: as a hook or an operator raises it.
            RuntimeError: an operator that cannot compute, with its name.
        """
        return self.run_from(0, values, hooks)

    def run_from(
        self, index: int, values: Mapping[str, Tensor], hooks: Mapping[str, Hook] | None = None
    ) -> list[Tensor]:
        """As `run`, from the operator at `index` on; `values` holds what it and later ones read."""
        known = dict(values)
        for step in self.steps[index:]:
            self.advance(step, known, hooks)
        return [known[name] for name in self.wanted]

    def advance(self, step: Step, known: Values, hooks: Mapping[str, Hook] | None = None) -> None:
        """Run one operator: take what it reads from `known`, add what it makes, drop what ends with it."""
        inputs, outputs = self.compute(step, known)
        if hooks and step.name in hooks:
            hooks[step.name](step.name, inputs, outputs)
        known.update(zip((name for name, _ in step.outputs), outputs, strict=True))
        for ending in step.ending:
            known.pop(ending, None)

    def compute(self, step: Step, known: Mapping[str, Tensor]) -> tuple[list[Any], list[Tensor]]:
        """Inputs and outputs of one operator, as quantized."""
        try:
            inputs = self.read_by(step, known)
            return inputs, self.apply(step, inputs)
        except UserError:
            raise
        except Exception as error:
            raise RuntimeError(f"operator {step.name!r} ({step.operation.type}): {error}") from error

    def read_by(self, step: Step, known: Mapping[str, Tensor]) -> list[Any]:
        """Inputs of one operator, as quantized."""
        return [self._value(item, known) for item in step.inputs]

    def _value(self, item: Input, known: Mapping[str, Tensor]) -> Any:
        if item.constant is not None:
            return item.constant
        value = self.parameters[item.parameter] if item.parameter else known.get(item.name)
        if item.quantizer is None or value is None:
            return value
        return item.quantizer.straight_through(value) if self.trainable else item.quantizer(value)

    def apply(self, step: Step, inputs: list[Any]) -> list[Tensor]:
        """Outputs of one operator, as quantized, from these inputs."""
        found = step.forward(inputs)
        outputs = list(found) if isinstance(found, list | tuple) else [found]
        for i, (_, quantizer) in enumerate(step.outputs):
            if quantizer is None:
                continue
            if self.trainable:
                outputs[i] = quantizer.straight_through(outputs[i])
            else:
                own = not any(_share_memory(outputs[i], value) for value in inputs)
                outputs[i] = (quantizer.in_place if own else quantizer)(outputs[i])
        return outputs


class _Described:
    """An operation as PPQ's functions read it, with its socket made once: PPQ makes one at each look."""

    def __init__(self, operation: ir.Operation) -> None:
        self._operation, self.socket = operation, operation.socket
        self.type, self.name, self.platform = operation.type, operation.name, operation.platform
        self.attributes, self.opset = operation.attributes, operation.opset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operation, name)


def _forward(
    operation: ir.Operation, inputs: list[Input], context: executor.op.TorchBackendContext
) -> Forward:
    """PPQ's function of an operator; a Reshape to a shape that is known reads it here, once."""
    if operation.type == "Reshape" and inputs[1].constant is not None:
        sizes = inputs[1].constant.tolist()
        return lambda values: values[0].reshape([n or values[0].shape[i] for i, n in enumerate(sizes)])
    function = executor.base.OPERATION_FORWARD_TABLE[operation.platform][operation.type]
    described = _Described(operation)
    return lambda values: function(described, values, context)


def _passed_on(operation: ir.Operation, grids: Mapping[str, Quantizer]) -> Quantizer | None:
    """The one grid of all that an operator moves; a channel's own may end on another axis."""
    if operation.type not in KEEPING_GRID:
        return None
    moved = operation.inputs if operation.type in MANY_DATA_INPUTS else operation.inputs[:1]
    found = [grids.get(variable.name) for variable in moved]
    first = found[0] if found else None
    if first is None or not first.kept_by_moving or any(other != first for other in found):
        return None
    return first


def _share_memory(a: Tensor, b: Any) -> bool:
    return isinstance(b, Tensor) and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def program_key(quantizers: Mapping[Slot, Quantizer], arithmetic: Mapping[str, Arithmetic]) -> Hashable:
    """Equal where a program made with the same of both can be used again: they are never changed."""
    slots = frozenset((slot, id(quantizer)) for slot, quantizer in quantizers.items())
    return slots, frozenset(arithmetic.items())
