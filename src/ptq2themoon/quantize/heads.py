"""Heads of attentions: which outputs of which linear layer are each head of the queries, keys and values.

Numbers of the layers' outputs are sent through all operators that only move data, to see where each arrives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptq2themoon.graph.editing.onnx_graph import tensor_shapes
from ptq2themoon.graph.editing.operator_types import DATA_MOVEMENT
from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.ppq_compat import quiet_ppq
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.program import Step
from ptq2themoon.quantize.simulation import SimulatedModel

PROJECTIONS = ("qkv", "q", "k", "v", "qk", "kv")


@dataclass(frozen=True)
class Head:
    """One head of the queries, keys or values of an attention.

    Attributes:
        maker: the linear layer.
        columns: its outputs that are the head's channels, in their order, int64 [channels of a head].
    """

    maker: str
    columns: np.ndarray


@dataclass(frozen=True)
class Values:
    """The values of an attention, which pass to the layer after it, each channel by itself.

    Attributes:
        heads: each once.
        reader: the projection after attention.
        rows: the reader's inputs that each head becomes, int64 [channels of a head].
    """

    heads: list[Head]
    reader: str
    rows: list[np.ndarray]


class Attentions:
    """All attentions of a model.

    Args:
        floating: the model in floating point.
    """

    def __init__(self, model: QuantizedModel, floating: SimulatedModel) -> None:
        self._program, self._device = floating.program(), floating.device
        self._shapes = tensor_shapes(model.rewritten, batch=1)
        layers = {layer.name for layer in linear_layers(model.graph())}
        self._places = {o.name: (o.role, o.block) for o in model.operators}
        self._names = {place: name for name, place in self._places.items() if place[0] != "other"}
        made = {name for name, (role, _) in self._places.items() if role in PROJECTIONS}
        self._makers = made & layers
        self._first: dict[str, int] = {}  # the number of each maker's first output
        self._next = 1  # 0 is what a Pad puts beside them
        self._known: dict[str, Tensor] = {}
        self._inputs: dict[str, list[Tensor | None]] = {}  # of products and projections, as numbers
        self._readers: dict[str, Tensor] = {}  # what other operators read, all numbers in a row
        with quiet_ppq(), torch.inference_mode():
            for step in self._program.steps:
                self._advance(step)
        for name in floating.outputs:
            self._reads(f"the output {name!r}", [self._known.get(name)])

    def queries_and_keys(self, block: int) -> list[Head] | str:
        """Heads of both, each once; or a reason why they cannot be told apart from all else."""
        scores = self._names.get(("attn_scores", block))
        queries, keys = self._inputs.get(scores or "", [None, None])
        keys = None if keys is None else keys.transpose(-1, -2)
        rows = [None if part is None else _heads(part) for part in (queries, keys)]
        if scores is None or rows[0] is None or rows[1] is None or rows[0].shape[1] != rows[1].shape[1]:
            return self._why(block)
        found = torch.cat([part for part in rows if part is not None]).unique(dim=0)
        return self._made(found, {scores}) or self._why(block, found)

    def values(self, block: int) -> Values | str:
        """Of a block; or a reason why they do not pass from layer to layer."""
        context, reader = (self._names.get((role, block)) for role in ("attn_context", "proj"))
        mixed = self._inputs.get(context or "", [None, None])[1]
        arrived = self._inputs.get(reader or "", [None])[0]
        rows = None if mixed is None else _heads(mixed)
        inputs = None if arrived is None else _heads(arrived)
        if context is None or reader is None or rows is None or inputs is None or len(inputs) != 1:
            return self._why(block)
        if not torch.equal(rows.flatten().sort().values, inputs[0].sort().values):
            return self._why(block)
        heads = self._made(rows, {context, reader})
        order = {int(number): place for place, number in enumerate(inputs[0])}
        places = [np.array([order[int(number)] for number in row]) for row in rows]
        return Values(heads, reader, places) if heads else self._why(block, rows)

    def _made(self, rows: Tensor, by: set[str]) -> list[Head] | None:
        """The heads of these numbers [heads, channels], that no other operators read than those named."""
        others = [numbers for name, numbers in self._readers.items() if name not in by]
        once = rows.numel() == rows.unique().numel()
        if not once or (others and bool(torch.isin(rows, torch.cat(others)).any())):
            return None
        found = []
        for row in rows.cpu().long().numpy():
            below = {name: first for name, first in self._first.items() if first <= row.max()}
            maker = max(below, key=below.__getitem__)
            if row.min() < below[maker]:  # channels of two layers
                return None
            found.append(Head(maker, row - below[maker]))
        return found

    def _why(self, block: int, rows: Tensor | None = None) -> str:
        """What operator reads the numbers of a block's layers that should not."""
        own = {name for name in self._makers if self._places[name][1] == block}
        products = {self._names.get((role, block)) for role in ("attn_scores", "attn_context", "proj")}
        starts = [first for maker, first in self._first.items() if maker in own]
        wanted = rows if rows is not None else torch.tensor(starts, dtype=torch.float32, device=self._device)
        for name, numbers in self._readers.items():
            if name not in products and bool(torch.isin(wanted, numbers).any()):
                return f"{name} reads what the layers before it give"
        return "the layers that make them, or their way to the products of attention, are not known"

    def _advance(self, step: Step) -> None:
        role, block = self._places.get(step.name, (None, None))
        inputs = [self._known.get(item.name) for item in step.inputs]
        there = any(value is not None for value in inputs)
        if step.name in self._makers:
            self._reads(step.name, inputs)
            self._start(step)
        elif role in ("attn_scores", "attn_context", "proj") and block is not None:
            self._inputs[step.name] = inputs
            self._reads(step.name, inputs)
            if role == "attn_context" and inputs[0] is None:
                self._mix(step, inputs[1])
        elif there and self._moves(step):
            self._program.advance(step, self._known)
        elif there and (same := _scaled(step, inputs)) is not None:
            self._known[step.outputs[0][0]] = same
        elif there:
            self._reads(f"operator {step.name!r} ({step.operation.type})", inputs)

    def _reads(self, name: str, inputs: list[Tensor | None]) -> None:
        found = [value.flatten() for value in inputs if value is not None and value.is_floating_point()]
        if found:
            self._readers[name] = torch.cat(found).unique()

    def _start(self, step: Step) -> None:
        """Number what a layer gives."""
        name = step.outputs[0][0]
        shape = self._shapes.get(name, ())
        sizes = [size for size in shape if isinstance(size, int)]
        if sizes and len(sizes) == len(shape):
            self._first[step.name], self._next = self._next, self._next + sizes[-1]
            numbers = torch.arange(self._first[step.name], self._next, dtype=torch.float32)
            self._known[name] = numbers.to(self._device).expand(sizes)

    def _moves(self, step: Step) -> bool:
        if step.operation.type not in DATA_MOVEMENT | {"Shape"}:
            return False
        return all(i.constant is not None or i.name in self._known or not i.name for i in step.inputs)

    def _mix(self, step: Step, values: Tensor | None) -> None:
        """What attention gives has the numbers of the values that it mixes over tokens."""
        name = step.outputs[0][0]
        shape = self._shapes.get(name, ())
        sizes = [size for size in shape if isinstance(size, int)]
        if values is not None and len(shape) == len(sizes) == values.ndim:
            self._known[name] = values[..., :1, :].expand(sizes)


def _scaled(step: Step, inputs: list[Tensor | None]) -> Tensor | None:
    """What a multiplication by one number, or a division by it, leaves in its place."""
    if step.operation.type not in ("Mul", "Div") or len(inputs) != 2:
        return None
    at = 1 if inputs[0] is not None else 0
    factor = step.inputs[at].constant
    one = factor is not None and factor.numel() == 1 and (at == 1 or step.operation.type == "Mul")
    return inputs[1 - at] if one else None


def _heads(numbers: Tensor) -> Tensor | None:
    """Distinct rows [heads, channels] of what is [..., tokens, channels]; None where tokens differ."""
    first = numbers[..., :1, :]
    if not bool((numbers == first).all()) or not bool(first.all()):
        return None
    return first.flatten(0, -2).unique(dim=0)
