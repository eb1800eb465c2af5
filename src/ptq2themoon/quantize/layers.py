"""Linear layers in graph order with what they read: for methods that change weights.

`Walk` takes all calibration images through the quantized graph one operator at a time, and stops at each
linear layer. There a method can ask for sums over the rows that the layer reads, and put a new weight in
force, with which later layers are computed. Memory: what the images have at one place of the graph (the
residual stream, and what is made of it) up to the budget of `states`, beyond which it lies on disk, and the
sums of one layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ptq2themoon.graph.editing.onnx_graph import Graph
from ptq2themoon.graph.editing.operator_types import BIAS
from ptq2themoon.graph.forms.linear import Linear, linear_layers
from ptq2themoon.progress import progress
from ptq2themoon.quantize.calibration import fit
from ptq2themoon.quantize.program import Program, Step
from ptq2themoon.quantize.quantizers import Quantizer, Uniform
from ptq2themoon.quantize.quantizers.base import along
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.states import States
from ptq2themoon.quantize.tensors import QuantizedTensor, Slot

if TYPE_CHECKING:
    from ptq2themoon.quantize.model import QuantizedModel

WEIGHT = 1  # position of the weight among the inputs of a linear layer


def input_maxima(
    model: SimulatedModel, operators: Collection[str], batches: Iterable[Tensor]
) -> dict[str, np.ndarray]:
    """Largest magnitude of each channel of operators' first inputs, float64 [channels], over all images."""
    found: dict[str, Tensor] = {}

    def see(name: str, inputs: list[Tensor], _: list[Tensor]) -> None:
        largest = inputs[0].flatten(0, -2).abs().amax(0).double().cpu()
        found[name] = torch.maximum(found[name], largest) if name in found else largest

    for images in progress(batches, desc="ranges of channels"):
        for part in model.parts(images):
            model(part, dict.fromkeys(operators, see))
    return {name: largest.numpy() for name, largest in found.items()}


@dataclass
class Moments:
    """Sums over the rows x that a layer reads, and over d, how far they are from those in floating point.

    Attributes:
        count: of rows: images times tokens.
        gram: of x_i x_j, float64 [in, in].
        total: of x, float64 [in].
        cross: of x_i d_j with x + d in floating point, float64 [in, in]; None where it was not asked for.
        difference: of d, float64 [in]; None as `cross`.
    """

    count: int
    gram: Tensor
    total: Tensor
    cross: Tensor | None = None
    difference: Tensor | None = None


@dataclass
class Stop:
    """A linear layer that waits for its weight, everything before it as quantized.

    Attributes:
        layer: with the weight and bias as they are now.
        weight: how the weight is quantized; None where it is not.
    """

    layer: Linear
    weight: QuantizedTensor | None
    _walk: Walk = field(repr=False)
    _step: Step = field(repr=False)

    def matrix(self) -> Tensor:
        """The layer's weight before quantization, float64 [in, out]."""
        return torch.tensor(self.layer.weight, dtype=torch.float64, device=self._walk.device)

    def exact_layer(self) -> Linear:
        """The layer in floating point."""
        return self._walk.exact_layers[self.layer.name]

    def rows(self) -> Iterator[Tensor]:
        """What the layer reads, quantized, float32 [rows, in], some images at a time."""
        program = self._walk.program
        for state in self._walk.states:
            yield program.read_by(self._step, state)[0].flatten(0, -2)

    def exact_rows(self) -> Iterator[Tensor]:
        """As `rows`, of the same images in floating point, from the first operator on."""
        return self._walk.exact_rows(self.layer.name)

    def moments(self, *, exact: bool = False) -> Moments:
        """Sums over all rows; `exact`: with `cross` and `difference`."""
        found = None
        others = self.exact_rows() if exact else None
        for x in self.rows():
            part = Moments(len(x), (x.T @ x).double(), x.double().sum(0))
            if others is not None:
                d = next(others) - x  # small: from x and x + d themselves rounding would hide it
                part.cross, part.difference = (x.T @ d).double(), d.double().sum(0)
            found = part if found is None else _sum(found, part)
        assert found is not None
        return found

    def fit(self, weight: Tensor) -> None:
        """Give the weight the quantizer that the recipe's observer finds for `weight`, [in, out]."""
        assert self.weight is not None
        self.weight.quantizer = fit(self._slot, self.weight, self._stored(weight))

    def rounded(self, rows: Tensor, index: Tensor) -> Tensor:
        """Some rows of a weight quantized, float64 [n, out], by the quantizer of the whole weight.

        Args:
            index: of the rows' input channels, [n].
        """
        assert self.weight is not None
        quantizer: Quantizer = self.weight.ready()
        if quantizer.axis == self.layer.input_axis:
            assert isinstance(quantizer, Uniform)  # no other kind has a scale for each channel
            quantizer = quantizer.part(index)
        return self._turned(quantizer(self._stored(rows))).double()

    def other_side(self, rows: Tensor, nearest: Tensor, index: Tensor) -> Tensor:
        """The next value of a uniform grid on the other side of `rows`, float64 [n, out].

        It is `nearest` itself where a value lies on the grid, or where the grid ends.

        Args:
            nearest: what `rounded` gave for the rows.
        """
        assert self.weight is not None
        quantizer = self.weight.ready()
        assert isinstance(quantizer, Uniform)
        if quantizer.axis == self.layer.input_axis:
            quantizer = quantizer.part(index)
        stored, rounding = self._turned(rows), self._turned(nearest)
        scale, low, high = (
            along(each.to(rows.device).double(), quantizer.axis, 2)
            for each in (quantizer.scale, quantizer.lowest, quantizer.highest)
        )
        codes = (rounding / scale).round() + (stored - rounding).sign()
        inside = (codes >= low) & (codes <= high)
        return self._turned(torch.where(inside, codes * scale, rounding))

    def put(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Let the layer have this weight [in, out], quantized where the recipe says so, and bias [out]."""
        stored = self._stored(weight)
        self._walk.values[self.layer.name, WEIGHT] = stored.cpu().numpy()
        self._step.inputs[WEIGHT].constant = self.weight.ready()(stored) if self.weight else stored
        if bias is not None:
            self._walk.values[self.layer.name, BIAS] = bias.float().cpu().numpy()
            constant = fit_constant(self._walk.model, self.layer.name, BIAS, bias.float())
            self._step.inputs[BIAS].constant = constant

    @property
    def _slot(self) -> Slot:
        return Slot(self.layer.name, "weight", WEIGHT)

    def _stored(self, weight: Tensor) -> Tensor:
        return self._turned(weight.float()).contiguous()

    def _turned(self, weight: Tensor) -> Tensor:
        return weight.T if self.layer.transposed else weight


def _sum(a: Moments, b: Moments) -> Moments:
    return Moments(
        a.count + b.count,
        a.gram + b.gram,
        a.total + b.total,
        None if a.cross is None or b.cross is None else a.cross + b.cross,
        None if a.difference is None or b.difference is None else a.difference + b.difference,
    )


class Walk:
    """All images on their way through a quantized model; iterated once, within `tools.without_gradients`.

    After the last operator the new weights and biases are the model's.

    Args:
        names: of the layers to stop at.
        program, states: of the quantized model, and the images before its first operator.
        device: a torch device.
        exact: the same of the model in floating point, where rows of it are asked for.
    """

    def __init__(
        self,
        model: QuantizedModel,
        names: Collection[str],
        program: Program,
        states: States,
        device: str,
        exact: tuple[Program, States] | None = None,
    ) -> None:
        self.model, self.program, self.states, self.device = model, program, states, device
        self.values: dict[tuple[str, int], np.ndarray] = {}
        self._layers = {layer.name: layer for layer in linear_layers(model.graph()) if layer.name in names}
        self.exact_layers = {layer.name: layer for layer in linear_layers(Graph(model.rewritten))}
        self._tensors = dict(model.slots())
        self._exact = exact
        self._waiting = [] if exact is None else list(exact[0].steps)

    def __iter__(self) -> Iterator[Stop]:
        passed: list[Step] = []
        with self.states, contextlib.nullcontext() if self._exact is None else self._exact[1]:
            for step in progress(self.program.steps, desc="layer by layer"):
                if step.name in self._layers:
                    self.states.advance(passed)
                    passed = []
                    weight = self._tensors.get(Slot(step.name, "weight", WEIGHT))
                    yield Stop(self._layers[step.name], weight, self, step)
                passed.append(step)
        self.model.set_parameters(self.values, equal=False)

    def exact_rows(self, name: str) -> Iterator[Tensor]:
        """What an operator reads in floating point, after that model was taken up to it."""
        assert self._exact is not None
        program, states = self._exact
        place = next(i for i, step in enumerate(self._waiting) if step.name == name)
        states.advance(self._waiting[:place])
        del self._waiting[:place]
        for state in states:
            yield program.read_by(self._waiting[0], state)[0].flatten(0, -2)


def fit_constant(model: QuantizedModel, operator: str, position: int, value: Tensor) -> Tensor:
    """A parameter's new value as the quantized model will have it, with a quantizer that fits it.

    It is on its grid where the recipe quantizes it, and `value` where it does not.
    """
    for slot, tensor in model.slots():
        if slot.operator == operator and slot.position == position and tensor.is_parameter:
            tensor.quantizer = fit(slot, tensor, value)
            return tensor.quantizer(value)
    return value
