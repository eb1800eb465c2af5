"""A model in units that are trained one after another, each with what the images are before and after it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq2themoon.graph.meaning.roles import find_roles
from ptq2themoon.ppq_compat import quiet_ppq
from ptq2themoon.quantize.blocks import Segment, segments
from ptq2themoon.quantize.learning.store import Store
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.program import Hook
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError

CHUNK = 16  # images that go through a unit at once outside training


@dataclass
class Unit:
    """A segment of the quantized model that waits to be trained, everything before it as quantized.

    Attributes:
        name: for progress and messages.
        segment: quantized, trainable.
        outputs: names of what it gives, with the images on the first axis.
        floating: what the images are before and after it in floating point.
        quantized: what they are before it in the quantized model.
        exact: the same segment in floating point.
        rest: the segments after it, in floating point.
        logits: name of the model's output.
        head: name of the operator that classifies; None where there is none.
        memory: bytes of activations to keep at one place.
    """

    name: str
    segment: Segment
    outputs: list[str]
    floating: Store
    quantized: Store
    exact: Segment
    rest: Sequence[Segment]
    logits: str
    head: str | None
    memory: int

    @property
    def images(self) -> int:
        """How many there are."""
        return self.floating.images

    @property
    def device(self) -> str:
        """Where the segment computes."""
        return self.segment.program.device

    def chunks(self) -> Iterator[slice]:
        """All images, some at a time."""
        return _chunks(self.images)

    def wanted(self, index: Tensor | slice) -> dict[str, Tensor]:
        """What the outputs are in floating point, [images * indices of each, ...]."""
        return self.floating.get(self.outputs, index, self.device)

    def by_image(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its outputs, or tensors of their shape, as [images, indices of each, ...]."""
        return {name: self.floating.by_image(name, found[name]) for name in self.outputs}

    def off(self, found: Mapping[str, Tensor], index: Tensor | slice) -> dict[str, Tensor]:
        """How far outputs are from those in floating point, [images, indices of each, ...]."""
        wanted = self.wanted(index)
        return self.by_image({name: found[name] - wanted[name] for name in self.outputs})

    def inputs(self, index: Tensor | slice, *, quantized: bool) -> dict[str, Tensor]:
        """What the unit reads."""
        store = self.quantized if quantized else self.floating
        return store.get(self.segment.program.read, index, self.device)

    def to_logits(self, found: dict[str, Tensor], index: Tensor | slice) -> Tensor:
        """Logits [B, classes] for these outputs of the unit, with all after it in floating point."""
        return self._run_rest(found, index, {})[self.logits]

    def to_feature(self, found: dict[str, Tensor], index: Tensor | slice) -> Tensor:
        """What the classifier reads, [B, channels], likewise; logits where there is no classifier."""
        feature: list[Tensor] = []
        hooks: dict[str, Hook] = {}
        if self.head is not None:
            hooks = {self.head: lambda _, inputs, __: feature.append(inputs[0])}
        logits = self._run_rest(found, index, hooks)[self.logits]
        return feature[0] if feature else logits

    def _run_rest(
        self, found: dict[str, Tensor], index: Tensor | slice, hooks: Mapping[str, Hook]
    ) -> dict[str, Tensor]:
        made = {name for segment in self.rest for name in segment.program.wanted} | set(found)
        read = {name for segment in self.rest for name in segment.program.read} - made
        values = self.floating.get(read, index, self.device) | found
        for segment in self.rest:
            values |= segment(values, hooks)
        return values

    @property
    def others(self) -> list[str]:
        """Outputs without the images on the first axis, equal for all."""
        return [name for name in self.segment.program.wanted if name not in self.outputs]


def train_units(
    model: QuantizedModel,
    graphs: tuple[SimulatedModel, SimulatedModel],
    images: Tensor,
    learn: Callable[[Unit], None],
    memory: int,
    layers: Collection[str] | None = None,
) -> None:
    """Show `learn` each segment with a quantized weight, in graph order, and take the images through it.

    Args:
        graphs: the model in floating point, and quantized.
        images: [N, C, H, W].
        memory: bytes of activations to keep at one place.
        layers: units are these layers; None: transformer blocks, and what is between them.

    Raises:
        UserError: a graph that is not the floating-point one operator by operator, or cannot be cut.
    """
    floating, quantized = graphs
    operators = find_roles(model.rewritten)
    head = next((operator.name for operator in operators if operator.role == "head"), None)
    exact = segments(floating, operators, layers)
    found = segments(quantized, model.operators, layers)
    if [s.program.wanted for s in exact] != [s.program.wanted for s in found]:
        raise UserError("training needs the operators of floating point: put the method first in `methods`")
    per_image = _with_images_first(exact, floating.input_name, images)
    logits = floating.outputs[0]
    before = Store(len(images), per_image, memory // 2), Store(len(images), per_image, memory // 2)
    for store in before:
        store.put(0, {floating.input_name: images})
    for number, (segment, other) in enumerate(zip(found, exact, strict=True)):
        rest = exact[number + 1 :]
        outputs = [name for name in segment.program.wanted if name in per_image]
        _advance(before[0], other)
        if has_weights(segment):
            name = _name(segment, number, len(found))
            learn(Unit(name, segment, outputs, *before, other, rest, logits, head, memory))
        _advance(before[1], segment)
        for store in before:
            store.keep({name for later in rest for name in later.program.read})


def has_weights(segment: Segment) -> bool:
    """Whether it has a quantized weight."""
    items = (item for step in segment.program.steps for item in step.inputs)
    return any(item.parameter and item.quantizer is not None for item in items)


def _advance(store: Store, segment: Segment) -> None:
    program = segment.program
    with torch.no_grad():
        for index in _chunks(store.images):
            store.put(index.start, segment(store.get(program.read, index, program.device)))


def _chunks(images: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, images, CHUNK))


def _name(segment: Segment, number: int, count: int) -> str:
    if segment.layer is not None:
        return segment.layer
    if segment.block is not None:
        return f"block {segment.block}"
    if number == 0:
        return "before the blocks"
    return "after the blocks" if number == count - 1 else "between blocks"


def _with_images_first(exact: Iterable[Segment], name: str, images: Tensor) -> dict[str, int]:
    """How many indices of the first axis an image has, of tensors between segments with the images there."""
    with torch.no_grad(), quiet_ppq():
        one, two = {name: images[:1]}, {name: images[:2]}
        for segment in exact:
            device = segment.program.device
            one, two = ({key: value.to(device) for key, value in known.items()} for known in (one, two))
            one |= segment(one)
            two |= segment(two)
    found = {}
    for key, value in two.items():
        if value.shape == one[key].shape:
            continue
        first = one[key]
        if value.shape != (2 * len(first), *first.shape[1:]) or not torch.allclose(
            value[: len(first)], first, rtol=1e-3, atol=1e-4
        ):
            raise UserError(
                f"tensor {key!r}: the images are not on its first axis; it cannot be trained apart"
            )
        found[key] = len(first)
    return found
