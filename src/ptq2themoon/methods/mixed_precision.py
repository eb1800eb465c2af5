"""Mixed precision: bits for each role of each block, from what each does to the model's output.

No one paper: what is common to post-training methods that choose bits by measured sensitivity, such as Nagel
et al., "A White Paper on Neural Network Quantization", arXiv 2106.08295 (the sensitivity of one layer at a
time), Yao et al. (HAWQ-V3), arXiv 2011.10680, section 3.4 (an integer program over sensitivities, within a
budget of size or of bit operations), and Pandey et al., arXiv 2302.05397, section 3 (bits lowered one step
after another while a measured accuracy holds).

A site is the weight, or one input, of the products of one role in one block. With f the model in floating
point and f_s,b the same with site s alone at b bits, its sensitivity on calibration images is

    S_s(b) = sum over images of loss(f_s,b(x), f(x))       squared error of the output, or KL divergence

Costs are of one of two kinds:

    size          sum over weights of  elements * bits                         inputs keep the recipe's bits
    operations    sum over products of  multiply-accumulates * bits * bits     of weights and of inputs

Without a target the bits are those of the least sum of sensitivities whose cost is within the budget, found
exactly (`quantize/allocation.py`). The budget is that of the recipe's own bits unless it is given.

With a target, all sites begin at the most bits. Again and again the site with the least added sensitivity for
each unit of cost saved goes one choice down, and the quantized model is run on the calibration images: where
its top-1 class is floating point's on fewer of them than the target, the step is taken back and the site
stays.

What to know:
- Sensitivities add up only roughly: errors of two sites can cancel or feed each other. The program is exact,
  its objective is a model.
- Time is not measured: the runtimes here have kernels of 8 bits, and fewer bits gain no time there. Bit
  operations are a model of hardware whose time falls with bits.
- What a rule of the recipe gives bits of its own, and what a method before this one fixed, keeps its bits.
- A target is met as calibration leaves the model, before methods that come later, and on the images that
  chose the bits: on others the agreement is likely a little lower.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from ptq2themoon.methods.base import BITS, Method, refuse_fixed
from ptq2themoon.progress import progress
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from ptq2themoon.quantize.bit_sites import Cost, Key, Products
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.quantizers import Quantizer
    from ptq2themoon.quantize.simulation import SimulatedModel
    from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor, Slot
    from ptq2themoon.quantize.tools import Tools

Found = dict["Key", int]  # index of the choice, by site


class MixedPrecisionSettings(Strict):
    """What may be chosen, and within what."""

    choices: Annotated[list[Annotated[int, Field(ge=2, le=16)]], Field(min_length=1)] = [2, 3, 4, 5, 6, 8]
    """Bits that a site may have."""
    cost: Literal["size", "operations"] = "size"
    """Of weights, by their size; or of weights and inputs, by the bit operations of their products."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """Mean bits of a weight, or bit operations of a multiply-accumulate; null: those of the recipe's bits."""
    target: Annotated[float, Field(gt=0, le=100)] | None = None
    """In the place of a budget: percent of images whose top-1 class is floating point's."""
    images: Annotated[int, Field(ge=1)] = 16
    """Calibration images that sensitivities are measured on, at most; a target is measured on all."""
    loss: Literal["squared", "kl"] = "squared"
    """Of the output: squared error, or the KL divergence of the classes' probabilities."""

    @model_validator(mode="after")
    def _one_goal(self) -> MixedPrecisionSettings:
        if self.budget is not None and self.target is not None:
            raise ValueError("budget and target do not go together: give one of them")
        return self


class MixedPrecision(Method):
    """Needs a recipe that quantizes matrix products."""

    Settings = MixedPrecisionSettings
    settings: MixedPrecisionSettings

    def decides(self) -> dict[str, str]:
        """Bits of all that it finds."""
        return {BITS: ""}

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Measure, choose, and say it in rules."""
        from ptq2themoon.quantize.bit_sites import places_of, quantizers, sites_of

        settings, choices = self.settings, sorted(set(self.settings.choices))
        places = places_of(model, tools, with_inputs=settings.cost == "operations")
        if not places:
            raise UserError(
                "mixed_precision: the recipe quantizes nothing whose bits can be chosen; leave it out"
            )
        read = {slot.operator for site in sites_of(places) for slot in site.slots if slot.operand == "input"}
        refuse_fixed("mixed_precision", tools, read, "whose bits it would choose")
        tried = quantizers(model, tools, places, choices)
        measure(model, tools, places, tried, settings)
        if settings.target is None:
            found = within_budget(places, choices, settings.cost, settings.budget)
        else:
            found = by_target(places, choices, settings, Trials(model, tools, tried, settings))
        for site in sites_of(places):
            tools.add_rule("mixed_precision", {"select": site.select, "bits": choices[found[site.key]]})


def measure(
    model: QuantizedModel,
    tools: Tools,
    places: Sequence[Products],
    tried: Mapping[Slot, Sequence[Quantizer]],
    settings: MixedPrecisionSettings,
) -> None:
    """Give every site its sensitivities; of several operators at one site they are added up."""
    from ptq2themoon.quantize.bit_sites import sites_of
    from ptq2themoon.quantize.sensitivity import LOSSES, first_images, output_errors

    images = first_images(tools.batches, settings.images)
    with tools.without_gradients():
        errors = output_errors(tools.floating(model), tried, images, LOSSES[settings.loss])
    for site in sites_of(places):
        site.errors = [sum(each) for each in zip(*(errors[slot] for slot in site.slots), strict=True)]


# The choice -----------------------------------------------------------------------------------------


def within_budget(
    places: Sequence[Products], choices: Sequence[int], cost: Cost, budget: float | None
) -> Found:
    """The bits of the least sum of sensitivities.

    Args:
        budget: for each unit of cost; None: what the recipe's bits cost.
    """
    from ptq2themoon.quantize.allocation import allocate

    options = [list(product(range(len(choices)), repeat=len(place.sites))) for place in places]
    costs = [
        [place.cost(cost, [choices[index] for index in option]) for option in own]
        for place, own in zip(places, options, strict=True)
    ]
    losses = [
        [sum(site.errors[index] for site, index in zip(place.sites, option, strict=True)) for option in own]
        for place, own in zip(places, options, strict=True)
    ]
    given = sum(place.cost(cost, [site.bits for site in place.sites]) for place in places)
    units = sum(place.unit(cost) for place in places)
    limit = given if budget is None else budget * units
    least = sum(map(min, costs))
    if least > limit:
        raise UserError(
            f"mixed_precision: budget {limit / units:g} is below what the fewest bits of choices cost, "
            f"{least / units:g}"
        )
    taken = allocate(costs, losses, limit)
    return {
        site.key: index
        for place, own, number in zip(places, options, taken, strict=True)
        for site, index in zip(place.sites, own[number], strict=True)
    }


def by_target(
    places: Sequence[Products], choices: Sequence[int], settings: MixedPrecisionSettings, trials: Trials
) -> Found:
    """As little cost as the target allows, by the cheapest step first."""
    from ptq2themoon.quantize.bit_sites import sites_of

    target, found = settings.target or 0.0, {site.key: len(choices) - 1 for site in sites_of(places)}
    reached = trials.agreement(found)
    steps: list[Key] = []
    stays: set[Key] = set()
    # Each turn takes a step, or leaves a site where it is.
    for _ in progress(range(len(found) * len(choices)), desc="one step of bits at a time"):
        key = cheapest_step(places, choices, settings.cost, found, stays) if reached >= target else None
        if key is None:
            break
        found[key] -= 1
        if trials.agreement(found) >= target:
            steps.append(key)
        else:
            found[key] += 1
            stays.add(key)
    while (reached := trials.agreement(found, calibrated=True)) < target:
        if not steps:
            raise UserError(
                f"mixed_precision: target {target:g} is out of reach: with {choices[-1]} bits at all sites "
                f"{reached:.2f} % of the calibration images agree, the best found"
            )
        found[steps.pop()] += 1
    return found


def cheapest_step(
    places: Sequence[Products], choices: Sequence[int], cost: Cost, found: Found, stays: Container[Key]
) -> Key | None:
    """The site that gains the least sensitivity for each unit of cost saved by its next bits.

    Args:
        stays: sites that take no step.
    """
    steps: list[tuple[float, Key]] = []
    for place in places:
        bits = [choices[found[site.key]] for site in place.sites]
        for number, site in enumerate(place.sites):
            at = found[site.key]
            if at == 0 or site.key in stays:
                continue
            lower = [*bits[:number], choices[at - 1], *bits[number + 1 :]]
            saved = place.cost(cost, bits) - place.cost(cost, lower)
            if saved > 0:
                steps.append(((site.errors[at - 1] - site.errors[at]) / saved, site.key))
    return min(steps, key=lambda step: step[0])[1] if steps else None


class Trials:
    """The quantized model with any bits at its sites, on the calibration images."""

    def __init__(
        self,
        model: QuantizedModel,
        tools: Tools,
        tried: Mapping[Slot, Sequence[Quantizer]],
        settings: MixedPrecisionSettings,
    ) -> None:
        self._model, self._tools, self._tried = model, tools, tried
        self._choices = sorted(set(settings.choices))
        floating = tools.floating(model)
        logits = [floating(images) for images in tools.batches]
        if logits[0].ndim != 2:
            raise UserError("mixed_precision: target needs a classifier; give a budget")
        self._wanted = [each.argmax(1) for each in logits]
        self._quick = self._calibrated({})

    def agreement(self, found: Found, *, calibrated: bool = False) -> float:
        """Percent of images whose top-1 class is floating point's.

        Args:
            calibrated: find all quantizers as the run will; else those at sites are what sensitivities
                were measured with, and the others those beside the most bits.
        """
        if calibrated:
            return self._measured(self._calibrated(found)[1])
        planned, simulation = self._quick
        for slot, tensor, index in self._at(planned, found):
            tensor.quantizer = self._tried[slot][index]
        return self._measured(simulation)

    def _at(
        self, planned: Sequence[QuantizedOperator], found: Found
    ) -> Iterator[tuple[Slot, QuantizedTensor, int]]:
        """What is at sites, with the index of its choice; the last where `found` has none."""
        from ptq2themoon.quantize.bit_sites import Site

        for item in planned:
            for tensor in item.tensors:
                if item.slot(tensor) in self._tried:
                    yield item.slot(tensor), tensor, found.get(Site.of(item, tensor).key, -1)

    def _calibrated(self, found: Found) -> tuple[list[QuantizedOperator], SimulatedModel]:
        from ptq2themoon.quantize.calibration import calibrate
        from ptq2themoon.quantize.simulation import SimulatedModel

        planned = self._tools.plan(self._model)
        for _, tensor, index in self._at(planned, found):
            tensor.spec = replace(tensor.spec, bits=self._choices[index])
        for item in planned:
            for tensor in item.tensors:
                tensor.quantizer = self._model.fixed.get(item.slot(tensor))
        simulation = SimulatedModel(self._model.edited, self._tools.device, planned)
        calibrate(simulation, planned, self._tools.batches)
        return planned, simulation

    def _measured(self, simulation: SimulatedModel) -> float:
        agreeing = [
            simulation(images).argmax(1) == wanted
            for images, wanted in zip(self._tools.batches, self._wanted, strict=True)
        ]
        return 100 * sum(int(each.sum()) for each in agreeing) / sum(map(len, agreeing))


METHOD = MixedPrecision
