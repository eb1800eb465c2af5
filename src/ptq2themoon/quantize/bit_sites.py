"""Where bits can be chosen: the weight, or one input, of the products of one role in one block; and costs."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

from ptq2themoon.graph.editing.operator_types import WEIGHTED_TYPES
from ptq2themoon.graph.meaning.work import multiply_accumulates
from ptq2themoon.quantize.calibration import fit
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.plan import plan
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor, Slot
from ptq2themoon.quantize.tools import Tools

Cost = Literal["size", "operations"]
FLOATING = 32  # bits of a factor that the recipe leaves in floating point
FACTORS = ("weight", "input")
Key = tuple[str, int | None, str, int]  # role, block, operand, position


@dataclass
class Site:
    """A weight or an input of the products of one role in one block.

    Attributes:
        size: elements of the weight; 0 of an input.
        bits: that the recipe gives it.
        errors: its sensitivity at each choice of bits.
    """

    role: str
    block: int | None
    operand: str
    position: int
    bits: int
    slots: dict[Slot, QuantizedTensor] = field(default_factory=dict)
    size: int = 0
    errors: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, item: QuantizedOperator, tensor: QuantizedTensor) -> Site:
        """Where an operator's tensor belongs."""
        role = item.operator.role or ""
        return cls(role, item.operator.block, tensor.operand, tensor.position, tensor.spec.bits)

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.role, self.block, self.operand, self.position

    @property
    def select(self) -> dict[str, Any]:
        """As a rule of a recipe selects it."""
        block = {} if self.block is None else {"block": self.block}
        return {"role": self.role, **block, "operand": self.operand, "position": self.position}


@dataclass
class Products:
    """The products of one role in one block.

    Attributes:
        sites: factors whose bits can be chosen.
        work: multiply-accumulates of one image.
        others: product of the bits of their other factors.
    """

    sites: list[Site]
    work: int
    others: int

    def cost(self, kind: Cost, bits: Sequence[int]) -> int:
        """With these bits of its sites."""
        if kind == "operations":
            return self.work * self.others * prod(bits)
        return sum(site.size * each for site, each in zip(self.sites, bits, strict=True))

    def unit(self, kind: Cost) -> int:
        """What a budget of 1 allows."""
        return self.work if kind == "operations" else sum(site.size for site in self.sites)


def sites_of(places: Sequence[Products]) -> Iterator[Site]:
    """All of them, in graph order."""
    return (site for place in places for site in place.sites)


def places_of(model: QuantizedModel, tools: Tools, *, with_inputs: bool) -> list[Products]:
    """Products with a weight whose bits can be chosen, or any factor, in graph order."""
    blocks = {operator.role for operator in model.operators if operator.block is not None}
    found: dict[tuple[str, int | None], list[QuantizedOperator]] = {}
    for item in tools.plan(model):
        role, block = item.operator.role, item.operator.block
        # Without a block a rule selects the role wherever it is.
        if item.operator.type in WEIGHTED_TYPES and role and (block is not None or role not in blocks):
            found.setdefault((role, block), []).append(item)
    free, work, sizes = _free_slots(model, tools), multiply_accumulates(model.edited), _sizes(model)
    places = []
    for items in found.values():
        factors = [(item.slot(t), t, item) for item in items for t in item.tensors if t.operand in FACTORS]
        sites: dict[Key, Site] = {}
        for slot, tensor, item in factors:
            if slot in free and (tensor.is_parameter or with_inputs):
                site = Site.of(item, tensor)
                site = sites.setdefault(site.key, site)
                site.slots[slot] = tensor
                site.size += sizes.get(slot, 0)
        if sites:
            count = sum(work[item.operator.name] for item in items)
            places.append(Products(list(sites.values()), count, _other_bits(sites, factors)))
    return places


def _sizes(model: QuantizedModel) -> dict[Slot, int]:
    """Elements of every parameter that could be a weight, by slot."""
    graph = model.graph()
    return {
        Slot(node.name, "weight", position): graph.constants[name].size
        for node in graph.nodes
        for position, name in enumerate(node.input)
        if name in graph.constants
    }


def _other_bits(
    sites: Container[Key], factors: Sequence[tuple[Slot, QuantizedTensor, QuantizedOperator]]
) -> int:
    """The product of the bits of those of two factors that are no sites."""
    bits = {Site.of(item, tensor).key: tensor.spec.bits for _, tensor, item in factors}
    return prod(b for key, b in bits.items() if key not in sites) * FLOATING ** (2 - len(bits))


def _free_slots(model: QuantizedModel, tools: Tools) -> set[Slot]:
    """Weights and inputs that have the bits of the run, whatever these are: no rule gives them others."""
    found = []
    for bits in (7, 8):
        planned = plan(model.operators, model.nodes(), tools.recipe, bits, bits)
        found.append({item.slot(t): t.spec.bits for item in planned for t in item.tensors})
    return {
        slot
        for slot, bits in found[0].items()
        if bits != found[1][slot] and slot.operand in FACTORS and slot not in model.fixed
    }


def quantizers(
    model: QuantizedModel, tools: Tools, places: Sequence[Products], choices: Sequence[int]
) -> dict[Slot, list[Quantizer]]:
    """Of each slot of each site, at each choice of bits, as calibration in floating point finds them."""
    floating = tools.floating(model)
    found: dict[Slot, list[Quantizer]] = {slot: [] for site in sites_of(places) for slot in site.slots}
    for bits in choices:
        tensors = {slot: at_bits(t, bits) for site in sites_of(places) for slot, t in site.slots.items()}
        inputs = {slot: tensor for slot, tensor in tensors.items() if not tensor.is_parameter}
        seen = tools.observe(model, inputs) if inputs else {}
        for slot, tensor in tensors.items():
            if tensor.is_parameter:
                seen[slot] = fit(slot, tensor, floating.parameter(slot.operator, slot.position))
            found[slot].append(seen[slot])
    return found


def at_bits(tensor: QuantizedTensor, bits: int) -> QuantizedTensor:
    """The same with other bits, and no quantizer yet."""
    return replace(tensor, spec=replace(tensor.spec, bits=bits), quantizer=None)
