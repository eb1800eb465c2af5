"""AdaLog: logarithms of a base that fits, for the outputs of softmax and GELU, and a progressive search.

Wu, Chen, Zhong, Huang and Wang, "AdaLog: Post-Training Quantization for Vision Transformers with Adaptive
Logarithm Quantizer", ECCV 2024, arXiv 2407.12951, sections 3.2 and 3.3. The quantizer is of kind `adalog`:
base 2^(q / 37), and a table for what the shift leaves (its module has the equations).

- Softmax's output: scale 1, q from 10 to 138, the one of least squared error of the product with the values.
- GELU's output: shifted by 0.16997, the negative of its minimum, so that it has a logarithm; fc2's bias takes
  the shift out, b' = b - 0.16997 * (sum of each column of W^). Scale and q are searched together.
- Other inputs of products: scale and zero point of their uniform quantizer, searched together.

FPCS, the fast progressive combining search: score a coarse grid over both numbers, keep the best, try scales
around each, and again with finer steps; q or the zero point stays what it was. The score is the squared error
of the output of the layer, or of the attention product, with the other side quantized.

LayerNorm's outputs are re-parameterised as RepQ-ViT does: `recipes/adalog.yaml` calls that method first.
What it fixed is not searched again.

Where this differs from the paper or its released code:
- Weights are what the recipe's observer finds for them; the code searches them in turns with the inputs.
- It searches 256 rows, or 32 matrices, of each operator's inputs, sampled from all images, and 64 candidates
  in 4 steps; the code has all rows, 128 candidates and 6 steps. `candidates` and `steps` say others.
- What was calibrated stays a candidate at each step, so no operator gets worse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from ptq2themoon.graph.editing.onnx_graph import Graph, attribute, maker
from ptq2themoon.graph.editing.operator_types import DATA_MOVEMENT
from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.methods.base import GELU_KIND, INPUT_SCALES, SOFTMAX_KIND, Method, Stage, refuse_fixed
from ptq2themoon.progress import progress
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.quantizers import Quantizer
    from ptq2themoon.quantize.tensors import QuantizedTensor, Slot
    from ptq2themoon.quantize.tools import Tools

    Inputs = dict[Slot, QuantizedTensor]

GELU_MINIMA = {"none": 0.16997124254703522, "tanh": 0.17004075057125403}  # by how it is computed, negated
SOFTMAX = {"role": "attn_context", "operand": "input", "position": 0}
ROWS, MATRICES = 256, 32
LEAST_Q, MOST_Q, COARSE = 10, 138, 4
BASES = 8  # q, or zero points, on the first grid
FRESH = 8  # scales tried around each that is kept
LEAST_SHARE = 0.9  # quantile of the values at the least scale of the first grid
TURNS = 2  # of both sides of an attention product


class AdaLogSettings(Strict):
    """What is quantized and searched so; with the first three false the method changes nothing."""

    softmax: bool = True
    """Softmax's output as adalog."""
    gelu: bool = True
    """GELU's output as adalog, shifted."""
    uniform: bool = True
    """The uniform quantizers of other inputs of products are searched."""
    candidates: Annotated[int, Field(ge=16)] = 64
    """Tried at each step."""
    steps: Annotated[int, Field(ge=1)] = 4
    """The first on the coarse grid, the others around the best."""


class Scored(NamedTuple):
    """A candidate: its error, its scale, and its q or zero point."""

    error: float
    scale: float
    other: int


class AdaLog(Method):
    """Needs a recipe that quantizes inputs of linear layers or attention products per tensor."""

    Settings = AdaLogSettings
    settings: AdaLogSettings
    stage = Stage.SHIFTS

    def decides(self) -> dict[str, str]:
        """Kinds, where they are switched on, and the scales that it searches."""
        on = self.settings
        found = {SOFTMAX_KIND: "softmax: false"} if on.softmax else {}
        found |= {GELU_KIND: "gelu: false"} if on.gelu else {}
        return found | ({INPUT_SCALES: "uniform: false"} if on.uniform else {})

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Choose kinds, shift GELU's outputs, and search every quantizer on sampled inputs."""
        self._shifts: dict[str, np.ndarray] = {}
        if not (self.settings.softmax or self.settings.gelu or self.settings.uniform):
            return
        if self.settings.softmax:
            _take_softmax(model, tools)
        if self.settings.gelu:
            self._take_gelu(model, tools)
        kinds = ("adalog", "uniform") if self.settings.uniform else ("adalog",)
        linear, products = _inputs(model, tools, kinds)
        wanted = dict(pair for inputs in (linear | products).values() for pair in inputs.items())
        if not wanted:
            raise UserError(
                "adalog: the recipe quantizes no input of a product per tensor; leave the method out"
            )
        rows = tools.sampled_inputs(model, dict.fromkeys(linear, 1), ROWS)
        matrices = tools.sampled_inputs(model, dict.fromkeys(products, 2), MATRICES)
        model.fixed |= tools.observe(model, wanted)
        for name, inputs in progress(list(linear.items()), desc="adalog, layers"):
            (x,), (slot,) = rows[name], inputs
            model.fixed[slot] = self._searched(model.fixed[slot], x, tools.output_error(model, [name], x))
        for name, inputs in progress(list(products.items()), desc="adalog, attention"):
            for slot in [*inputs] * TURNS:
                self._search_side(model, slot, matrices[name])

    def _take_gelu(self, model: QuantizedModel, tools: Tools) -> None:
        """Let layers that read a GELU have adalog inputs, and shift these; roles say which in a rule."""
        shifts = dict(_after_gelu(model.graph()))
        blocks = {o.name: o.block for o in model.operators if o.role == "fc2" and o.block is not None}
        refuse_fixed("adalog", tools, blocks, "which would have another kind")
        planned = {
            item.operator.name
            for item in tools.plan(model)
            for t in item.tensors
            if (t.operand, t.spec.kind, t.granularity) == ("input", "uniform", "per-tensor")
        }
        names = [name for name in blocks if name in planned and name in shifts]
        if not names:
            return
        select = {"role": "fc2", "operand": "input", "block": sorted({blocks[name] for name in names})}
        tools.add_rule("adalog", {"select": select, "kind": "adalog"})
        for group in tools.shiftable(model, names):
            layers = [layer for layer in linear_layers(model.graph()) if layer.name in group.readers]
            amount = np.full(len(layers[0].weight), shifts[group.readers[0]])
            tools.shift(model, group, amount)
            self._shifts |= dict.fromkeys(group.readers, amount)

    def _search_side(self, model: QuantizedModel, slot: Slot, sides: Sequence[Tensor]) -> None:
        """One side of an attention product, with the other as quantized as it is now."""
        exact, other = sides[0] @ sides[1], 1 - slot.position
        quantizer = model.fixed.get(slot._replace(position=other))
        beside = sides[other] if quantizer is None else quantizer(sides[other])

        def error(read: Tensor) -> float:
            found = read @ beside if slot.position == 0 else beside @ read
            return float((found - exact).double().square().sum())

        model.fixed[slot] = self._searched(model.fixed[slot], sides[slot.position], error)

    def _searched(self, calibrated: Quantizer, x: Tensor, error: Callable[[Tensor], float]) -> Quantizer:
        """The candidate of least error, among them the one that was calibrated."""
        if calibrated.kind == "adalog":
            return self._logarithmic(calibrated, x, error)
        return self._uniform(calibrated, x, error)

    def _logarithmic(self, calibrated: Any, x: Tensor, error: Callable[[Tensor], float]) -> Quantizer:
        """Of values that reach 1 and no further, such as a softmax's, the scale is 1."""
        import torch

        def made(scale: float, q: int) -> Quantizer:
            found: Quantizer = calibrated.with_base(torch.tensor(scale), q)
            return found

        shifted = bool(self._shifts) and x.ndim == 2
        widest = float(x.max()) if shifted else 1.0

        def score(scale: float, q: int) -> Scored:
            return Scored(error(made(scale, q)(x)), scale, q)

        coarse = sorted(score(widest, q) for q in range(LEAST_Q, MOST_Q + 1, COARSE))
        near = range(max(coarse[0].other - COARSE + 1, LEAST_Q), min(coarse[0].other + COARSE, MOST_Q + 1))
        bases = sorted({*coarse, *(score(widest, q) for q in near)})
        if not shifted:
            return made(*bases[0][1:])
        least = float(torch.quantile(x, LEAST_SHARE))
        first = [(scale, base.other) for base in bases[:BASES] for scale in self._scales(least, widest)]
        return made(*self._progressive(first, [bases[0]], score, widest - least)[1:])

    def _uniform(self, calibrated: Any, x: Tensor, error: Callable[[Tensor], float]) -> Quantizer:
        """Scales from the 0.9 quantile to the whole range, zero points around the calibrated one."""
        import torch

        levels = calibrated.quant_max - calibrated.quant_min
        ends = torch.quantile(x, torch.tensor([1 - LEAST_SHARE, LEAST_SHARE, 0.0, 1.0]))
        low, high = ends[[0, 2]].clamp(max=0), ends[[1, 3]].clamp(min=0)
        if calibrated.symmetric:
            widths = 2 * torch.maximum(-low, high) if calibrated.quant_min < 0 else high
            points = [0]
        else:
            widths, point = high - low, int(calibrated.zero_point)
            apart = max(1, levels // 32)
            near = range(point - BASES // 2 * apart, point + BASES // 2 * apart, apart)
            points = sorted({point, *(min(max(p, calibrated.quant_min), calibrated.quant_max) for p in near)})
        least, widest = (float(width) / levels for width in widths)

        def made(scale: float, point: int) -> Quantizer:
            found: Quantizer = calibrated.changed(torch.tensor(scale), torch.tensor(float(point)))
            return found

        def score(scale: float, point: int) -> Scored:
            return Scored(error(made(scale, point)(x)), scale, point)

        start = score(float(calibrated.scale), int(calibrated.zero_point))
        first = [(scale, point) for scale in self._scales(least, widest) for point in points]
        best = self._progressive(first, [start], score, widest - least)
        return calibrated if best == start else made(best.scale, best.other)

    def _scales(self, least: float, widest: float) -> list[float]:
        """Evenly from the least to the widest, as many as the first grid has for each base."""
        return [least + (widest - least) * i / self._gaps for i in range(self._gaps + 1)]

    @property
    def _gaps(self) -> int:
        """Between the scales of the first grid."""
        return max(self.settings.candidates // BASES, 2) - 1

    def _progressive(
        self,
        first: Sequence[tuple[float, int]],
        known: Sequence[Scored],
        score: Callable[[float, int], Scored],
        width: float,
    ) -> Scored:
        """The best after all steps; scales around what is kept come ever closer."""
        scored = sorted({*known, *(score(scale, other) for scale, other in first if scale > 0)})
        width /= self._gaps
        for _ in range(self.settings.steps - 1):
            kept = scored[: max(self.settings.candidates // FRESH, 1)]
            offsets = [width * (i / (FRESH - 1) - 0.5) for i in range(FRESH)]
            fresh = {(one.scale + offset, one.other) for one in kept for offset in offsets}
            scored = sorted({*kept, *(score(scale, other) for scale, other in fresh if scale > 0)})
            width /= FRESH - 0.5
        return scored[0]

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Take the shifts out of the biases as the quantized weights see them."""
        tools.remove_shifts(model, self._shifts)


def _take_softmax(model: QuantizedModel, tools: Tools) -> None:
    """Let softmax's outputs be adalog, unless something else has taken them."""
    found = [
        (item.operator.name, tensor.spec.kind)
        for item in tools.plan(model)
        for tensor in item.tensors
        if item.operator.role == "attn_context" and (tensor.operand, tensor.position) == ("input", 0)
    ]
    for operator, kind in found:
        if kind not in ("uniform", "adalog"):
            what = f"what {operator} reads of softmax has kind {kind} from a rule"
            raise UserError(f"adalog: {what}; take it out, or say softmax: false")
    if found:
        tools.add_rule("adalog", {"select": SOFTMAX, "kind": "adalog"})


def _after_gelu(graph: Graph) -> Iterator[tuple[str, float]]:
    """Linear layers that read a GELU's output, past data movement, and the negative of its minimum."""
    for layer in linear_layers(graph):
        node = maker(graph.producer, layer.x, DATA_MOVEMENT)
        if node is not None and node.op_type == "Gelu":
            how = attribute(node, "approximate", b"none")
            yield layer.name, GELU_MINIMA[how.decode() if isinstance(how, bytes) else how]


def _inputs(
    model: QuantizedModel, tools: Tools, kinds: Sequence[str]
) -> tuple[dict[str, Inputs], dict[str, Inputs]]:
    """What linear layers read, and both sides of products of activations: per tensor, and not fixed yet."""
    graph = model.graph()
    layers = {layer.name for layer in linear_layers(graph)}
    products = {
        node.name
        for node in graph.nodes
        if node.op_type == "MatMul" and not graph.constants.keys() & {*node.input}
    }
    found: tuple[dict[str, Inputs], dict[str, Inputs]] = ({}, {})
    for item in tools.plan(model):
        inputs = {
            item.slot(tensor): tensor
            for tensor in item.tensors
            if tensor.operand == "input" and tensor.spec.kind in kinds and tensor.granularity == "per-tensor"
            if item.slot(tensor) not in model.fixed
        }
        name = item.operator.name
        if inputs and name in layers | products:
            found[name in products][name] = inputs
    return found


METHOD = AdaLog
