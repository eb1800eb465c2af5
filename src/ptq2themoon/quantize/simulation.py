"""A graph run in floating point, quantized, or with any of its operators quantized.

The inputs and the outputs of each quantized operator are fake-quantized (quantized and dequantized), by
one of two engines that give the same bits: `program`, or PPQ's own executor, which it is held to.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import Tensor

from ptq2themoon.graph.editing.onnx_graph import fixed_batch, tensor_shapes
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.ppq_compat import executor, ir, quiet_ppq
from ptq2themoon.quantize.integer_arithmetic import Arithmetic
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.ppq_engine import PPQEngine
from ptq2themoon.quantize.ppq_graph import load_graph
from ptq2themoon.quantize.program import Hook, Program, Quantizers, program_key
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.quantize.tensors import QuantizedOperator, Slot
from ptq2themoon.vocabulary.errors import UserError

Engine = Literal["program", "ppq"]
# The largest tensor of those images that go through the program together on a CPU: what caches hold.
LARGEST_BYTES = 5_000_000
PROGRAMS_KEPT = 2  # each has parameters of its own: in floating point, and quantized


class SimulatedModel:
    """One graph on one device, with or without quantizers.

    Args:
        model: a fused model, edited or not; it stays as it is.
        device: a torch device.
        quantized: the operators to quantize and how; a tensor without a quantizer is not yet quantized.
        engine: what runs the graph.
        source: what messages call the model.

    Raises:
        UserError: a graph that PPQ can't load, or parameters of another graph.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        device: str,
        quantized: Sequence[QuantizedOperator] = (),
        engine: Engine = "program",
        source: Path | str = "the graph",
    ) -> None:
        self._graph = load_graph(model, source)
        fast = _images_at_once(model) if engine == "program" and device == "cpu" else None
        self._at_once = fixed_batch(model) or fast
        self._programs: dict[Hashable, tuple[Program, Quantizers]] = {}
        self._of_operators: dict[Hashable, tuple[Program, Quantizers]] = {}
        self._items = {item.operator.name: item for item in quantized}
        for item in quantized:
            _check(self._graph, item, source)
        with quiet_ppq():
            self._ppq = PPQEngine(self._graph, quantized, device) if engine == "ppq" else None
            if self._ppq is None:  # puts parameters on the device, and operators in order
                self._order = executor.TorchExecutor(self._graph, device=device)._executing_order
            else:
                self._order = self._ppq.executor._executing_order
        self.device = device
        self._active: Collection[str] = self._items

    @property
    def quantized_operators(self) -> list[str]:
        """Names in graph order."""
        return list(self._items)

    @property
    def order(self) -> list[ir.Operation]:
        """PPQ's operators in the order in which they are run."""
        return list(self._order)

    @property
    def ppq(self) -> PPQEngine:
        """The reference engine, where it was chosen."""
        assert self._ppq is not None
        return self._ppq

    def quantizers(self, operators: Collection[str] | None = None) -> dict[Slot, Quantizer]:
        """Those in force, or those of the operators named, as far as they are calibrated."""
        wanted = self._active if operators is None else operators
        return {
            item.slot(tensor): tensor.quantizer
            for name, item in self._items.items()
            if name in wanted
            for tensor in item.tensors
            if tensor.quantizer is not None
        }

    def activate(self, operators: Collection[str]) -> None:
        """Quantize these operators (as far as they are calibrated) and no others."""
        self._active = operators

    @contextlib.contextmanager
    def only(self, operators: Collection[str]) -> Iterator[None]:
        """Within the block, quantize these operators only; afterwards all."""
        self.activate(operators)
        try:
            yield
        finally:
            self.activate(self._items)

    def __call__(self, images: Tensor, hooks: Mapping[str, Hook] | None = None) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]; `hooks`, by operator, capture inputs and outputs.

        With hooks all images run together: split them with `parts` where memory or time matter.
        """
        parts = [images] if hooks else self.parts(images)
        return torch.cat([self._whole(part.to(self.device), hooks) for part in parts])

    def parts(self, images: Tensor) -> Sequence[Tensor]:
        """The images in parts that run fast, or that the graph takes."""
        return images.split(self._at_once) if self._at_once else [images]

    def _whole(self, images: Tensor, hooks: Mapping[str, Hook] | None) -> Tensor:
        if self._ppq is not None:
            self._ppq.put_in_force(self.quantizers())
            with quiet_ppq():
                return self._ppq.run(images, hooks)
        with quiet_ppq(), torch.inference_mode():
            (logits,) = self.program().run({self.input_name: images}, hooks)
        return logits

    @property
    def input_name(self) -> str:
        """The graph's one input."""
        (name,) = self._graph.inputs
        return str(name)

    def program(self) -> Program:
        """The graph with what is in force now; kept with its quantizers, whose ids are the key."""
        quantizers = self.quantizers()
        key = program_key(quantizers, self._arithmetic)
        if key not in self._programs:
            if len(self._programs) == PROGRAMS_KEPT:
                self._programs.clear()
            program = self._made(self._order, self.outputs, quantizers)
            self._programs[key] = program, quantizers
        return self._programs[key][0]

    def trainable(self, operations: Sequence[ir.Operation], wanted: Sequence[str]) -> Program:
        """Consecutive operators with what is in force, parameters as inputs, and gradients."""
        return self._made(operations, wanted, self.quantizers(), trainable=True)

    def _made(
        self,
        operations: Sequence[ir.Operation],
        wanted: Sequence[str],
        quantizers: Quantizers,
        *,
        trainable: bool = False,
    ) -> Program:
        arithmetic = self._arithmetic
        return Program(
            operations, wanted, self.device, quantizers, trainable=trainable, arithmetic=arithmetic
        )

    @property
    def _arithmetic(self) -> dict[str, Arithmetic]:
        return {name: item.arithmetic for name, item in self._items.items() if item.arithmetic}

    def part(self, operations: Sequence[ir.Operation], wanted: Sequence[str]) -> Program:
        """Consecutive operators with what is in force, their parameters quantized beforehand."""
        return self._made(operations, wanted, self.quantizers())

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return list(self._graph.outputs)

    def one_at_a_time(self, images: Tensor, floating: SimulatedModel) -> Iterator[tuple[str, Tensor]]:
        """(operator, logits [B, classes] with it alone quantized), in graph order.

        What comes before and after an operator is in floating point; what comes before is computed once.

        Args:
            floating: the graph before any method changed its function, not quantized.
        """
        order = floating._order
        alive = {name: images.to(self.device) for name in self._graph.inputs}
        for index, operation in enumerate(order):
            produced = [variable.name for variable in operation.outputs]
            if operation.name in self._items:
                after = alive | dict(zip(produced, self._alone(operation.name, alive), strict=True))
                yield operation.name, floating._rest(index + 1, after)
            alive |= zip(produced, floating._alone(operation.name, alive), strict=True)
            used = {variable.name for later in order[index + 1 :] for variable in later.inputs}
            alive = {name: value for name, value in alive.items() if name in used}

    def quantized_output(self, operator: str, inputs: list[Tensor]) -> Tensor:
        """First output of one operator, quantized, from the floating-point inputs given."""
        variables = self._graph.operations[operator].inputs
        return self._alone(operator, {v.name: x for v, x in zip(variables, inputs, strict=True)})[0]

    def _alone(self, operator: str, values: dict[str, Tensor]) -> list[Tensor]:
        """All outputs of one operator, quantized if it is one of those, from what it reads."""
        operation = self._graph.operations[operator]
        quantizers = self.quantizers({operator})
        produced = [variable.name for variable in operation.outputs]
        with quiet_ppq(), torch.inference_mode():
            if self._ppq is not None:
                self._ppq.put_in_force(quantizers)
                return self._ppq.run_part([operation], values, produced)
            key = operator, program_key(quantizers, self._arithmetic)
            if key not in self._of_operators:  # kept: its parameters are quantized once
                program = self._made([operation], produced, quantizers)
                self._of_operators[key] = program, quantizers
            return self._of_operators[key][0].run(values)

    def _rest(self, index: int, values: dict[str, Tensor]) -> Tensor:
        """The output of a model that is not quantized, from what the operators from `index` on read."""
        with quiet_ppq(), torch.inference_mode():
            if self._ppq is None:
                return self.program().run_from(index, values)[0]
            self._ppq.put_in_force({})
            (name,) = self.outputs
            rest = self._order[index:]
            return self._ppq.run_part(rest, values, [name])[0] if rest else values[name]

    def parameter(self, operator: str, position: int) -> Tensor:
        """The value of a parameter input."""
        value: Tensor = self._graph.operations[operator].inputs[position].value
        return value

    def tensor_name(self, slot: Slot) -> str:
        """The name of the tensor in a slot."""
        operation = self._graph.operations[slot.operator]
        variables = operation.outputs if slot.operand == "output" else operation.inputs
        return str(variables[slot.position].name)


def load_model(
    fused: FusedModel, device: str, qparams: Sequence[Path] | None = None, engine: Engine = "program"
) -> SimulatedModel:
    """A fused model in floating point; quantized where `qparams` are given (JSON, then safetensors)."""
    if not qparams:
        return SimulatedModel(fused.graph, device, engine=engine, source=fused.path)
    return simulated(read_qparams(*qparams).model(fused.graph), device, engine, fused.path)


def simulated(
    model: QuantizedModel, device: str, engine: Engine = "program", source: Path | str = "the graph"
) -> SimulatedModel:
    """The edited graph with its quantizers."""
    return SimulatedModel(model.edited, device, model.quantized, engine, source)


def _check(graph: ir.BaseGraph, item: QuantizedOperator, source: Path | str) -> None:
    operation = graph.operations.get(item.operator.name)
    if operation is None or operation.type != item.operator.type:
        raise UserError(
            f"{source}: has no operator {item.operator.name!r} of type {item.operator.type}; "
            "the parameters belong to another graph"
        )


def _images_at_once(model: onnx.ModelProto) -> int:
    """As many as keep the largest tensor small."""
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = [shape for name, shape in tensor_shapes(model, batch=1).items() if name not in constants]
    known = [[n for n in shape if isinstance(n, int)] for shape in shapes]
    largest = max(map(math.prod, known), default=1)
    return max(1, LARGEST_BYTES // (4 * max(largest, 1)))
