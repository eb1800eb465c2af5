"""Evol-Q (CPT-V): scales move by small random steps, kept where the model's outputs stay apart as they were.

Frumkin, Gope and Marculescu, "CPT-V: A Contrastive Approach to Post-Training Quantization of Vision
Transformers", arXiv 2211.09643, and "Jumping through Local Minima: Quantization in the Jagged Loss Landscape
of Vision Transformers", ICCV 2023, arXiv 2308.10814. A calibrated model's loss jumps when a scale moves a
little, so gradients lead nowhere, and the scales s of one transformer block at a time are searched by
evolution: of a population, the best of some drawn members is the parent of

    s' = s (1 + u), u uniform in -range to range, drawn for each scale by itself,

s' joins the population and its worst member leaves. What counts is the output of the whole model on the
calibration images. With q_i the quantized model's output for image i and k_j the floating-point model's for
image j of the same batch, each divided by its length, and T the temperature, that is InfoNCE:

    loss = 2T mean_i -log( exp(q_i k_i / T) / sum_j exp(q_i k_j / T) )

`mse` and `cosine` compare q_i with k_i alone. A block's best member replaces its scales only if its loss is
below theirs, so the loss on the calibration images never rises: not by a block, a pass or the whole search.

| | here, for a CPU | paper and released code |
| --- | --- | --- |
| passes, cycles, population | 3, 6, 4 | 10, 3, 15 |
| samples, temperature, batch | 3, 3, 32 | 10, 3, 100 |
| range | 0.03 of a scale | 0.0001 at 8 bits, 0.001 at 3 and 4 bits |
| images | those of the run | 1000 |

These take less than three minutes of one CPU core with 32 images on the embedded model. So few images are
fitted: while their loss falls, that of other images need not, and may rise a little.

Where this differs from the paper or its released code:
- No image but those of calibration is looked at. The released code measures top-1 on ImageNet's validation
  images after each block, and what it gives back is the model that was best there: chosen on the images that
  its accuracy is then reported for.
- It starts from plain calibration in the recipe, so that a row shows what this search adds and nothing else;
  the released code starts from FQ-ViT's, with all operators quantized. `methods: [repq_vit, evol_q]`, say,
  starts from another.
- A step is a share of its scale. The code's is absolute and depends on the bits; beside usual scales of
  weights both of its values are about 0.03.
- The population begins with the scales as they were and members one step from them; in the code, with copies
  of these scales.
- The scales of all linear layers of a block are searched; in the code, those of its attention.
- Blocks take turns from the first to the last, so that the images wait before the block that is searched and
  only what follows it is computed again. The code goes from the last to the first, and computes all.
- Each batch is as large as the others; a rest of one image would have nothing to be compared with.
- `activations` searches the scales of inputs and outputs too; a tensor that several operators read, all with
  one quantizer, keeps one. Zero points stay.

Scales of kind `uniform` alone are searched: values of other kinds are no multiples of one scale, and their
methods search what else they depend on. Biases, γ and β, and what lies outside the blocks (patch embedding,
head) stay as they are too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from ptq2themoon.methods.base import LAST_SCALES, Method
from ptq2themoon.progress import progress
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ptq2themoon.quantize.blocks import Passage
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.quantizers import Uniform
    from ptq2themoon.quantize.simulation import SimulatedModel
    from ptq2themoon.quantize.tensors import QuantizedTensor
    from ptq2themoon.quantize.tools import Tools

Member = tuple[float, list["Uniform"]]  # its loss, and a quantizer for each gene


class EvolQSettings(Strict):
    """How long it searches, how far it steps, and what it compares."""

    passes: Annotated[int, Field(ge=0)] = 3
    """How often each block has its turn; 0: nothing is searched."""
    cycles: Annotated[int, Field(ge=0)] = 6
    """Children of a turn."""
    population: Annotated[int, Field(ge=1)] = 4
    """Members that a turn begins with: the scales as they are, and steps from them."""
    samples: Annotated[int, Field(ge=1)] = 3
    """Members drawn for each child, with replacement; the best of them is its parent."""
    range: Annotated[float, Field(gt=0, lt=1)] = 0.03
    """The longest step, as a share of a scale."""
    loss: Literal["contrastive", "mse", "cosine"] = "contrastive"
    """What compares the outputs of the quantized model with those in floating point."""
    temperature: Annotated[float, Field(gt=0)] = 3.0
    """Of the contrastive loss."""
    batch: Annotated[int, Field(ge=2)] = 32
    """Images that the contrastive loss compares with each other."""
    weights: bool = True
    """Whether scales of weights are searched."""
    activations: bool = False
    """Whether scales of activations are searched."""

    @model_validator(mode="after")
    def _something_to_search(self) -> EvolQSettings:
        if not (self.weights or self.activations):
            raise ValueError("weights or activations must be true; passes 0 switches the search off")
        return self


class EvolQ(Method):
    """Needs a recipe that quantizes what it searches, with kind uniform, in transformer blocks."""

    Settings = EvolQSettings
    settings: EvolQSettings

    def decides(self) -> dict[str, str]:
        """Scales, which none may change that does not know the loss."""
        return {LAST_SCALES: "passes: 0"} if self.settings.passes else {}

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Search from the scales that calibration gave."""
        if not self.settings.passes:
            return
        with tools.without_gradients():
            Search(self.settings, model, tools).run()


@dataclass
class Gene:
    """The quantizer of a weight, or of an activation wherever it is quantized alike.

    Attributes:
        segments: indices of those in which it is used.
    """

    tensors: list[QuantizedTensor] = field(default_factory=list)
    segments: set[int] = field(default_factory=set)

    @property
    def quantizer(self) -> Uniform:
        """That in force."""
        found: Uniform = self.tensors[0].ready()  # type: ignore[assignment]
        return found

    def put(self, quantizer: Uniform) -> None:
        """Put it in force."""
        for tensor in self.tensors:
            tensor.quantizer = quantizer


class Search:
    """Of one model.

    Attributes:
        losses: on the calibration images, before the search and after each turn of a block.
    """

    def __init__(self, settings: EvolQSettings, model: QuantizedModel, tools: Tools) -> None:
        import torch

        self.settings, self.model, self.tools = settings, model, tools
        self.losses: list[float] = []
        floating = tools.floating(model)
        self._wanted = torch.cat([floating(images).cpu() for images in tools.batches])
        if settings.loss == "contrastive" and len(self._wanted) < 2:
            raise UserError("evol_q: the contrastive loss compares images; calibrate on two at least")
        self._simulation = tools.simulation(model)
        self._generator = torch.Generator().manual_seed(tools.seed)

    def run(self) -> None:
        """All passes over the blocks, first to last."""
        for number in range(self.settings.passes):
            passage = self._passage()
            genes = genes_of(self.settings, self.model, self._simulation, passage)
            if not self.losses:
                self.losses.append(self._loss(passage))
            desc = f"evol_q, pass {number + 1} of {self.settings.passes}, loss {self.losses[-1]:.6g}, blocks"
            for index in progress(genes, desc=desc):
                while passage.at < index:
                    passage.advance()
                self.losses.append(self._turn(genes[index], passage, self.losses[-1]))

    def _passage(self) -> Passage:
        from ptq2themoon.quantize.blocks import Passage

        with self.tools.states(self._simulation) as states:
            return Passage(self._simulation, self.model.operators, list(states))

    def _turn(self, genes: list[Gene], passage: Passage, before: float) -> float:
        """Evolve the scales of one block, and put the best in force; its loss, at most `before`."""
        import torch

        settings, start = self.settings, [gene.quantizer for gene in genes]
        population: list[Member] = [(before, start)]

        def add_child(parent: list[Uniform]) -> None:
            child = [mutated(quantizer, settings.range, self._generator) for quantizer in parent]
            self._put(genes, child, passage)
            population.append((self._loss(passage), child))

        for _ in range(settings.population - 1):
            add_child(start)
        for _ in range(settings.cycles):
            drawn = torch.randint(len(population), (settings.samples,), generator=self._generator)
            add_child(min((population[i] for i in drawn.tolist()), key=_loss_of)[1])
            population.remove(max(population, key=_loss_of))
        best = min(population, key=_loss_of)
        loss, quantizers = best if best[0] < before else (before, start)
        self._put(genes, quantizers, passage)
        return loss

    def _put(self, genes: list[Gene], quantizers: list[Uniform], passage: Passage) -> None:
        for gene, quantizer in zip(genes, quantizers, strict=True):
            gene.put(quantizer)
        passage.renew({index for gene in genes for index in gene.segments})

    def _loss(self, passage: Passage) -> float:
        settings, output = self.settings, passage.output()
        return loss_of(output, self._wanted, settings.loss, settings.temperature, settings.batch)


def _loss_of(member: Member) -> float:
    return member[0]


def genes_of(
    settings: EvolQSettings, model: QuantizedModel, simulation: SimulatedModel, passage: Passage
) -> dict[int, list[Gene]]:
    """What is searched, by the segment of a block in which it first is quantized; never empty."""
    from ptq2themoon.graph.editing.operator_types import WEIGHTED_TYPES

    places = {step.name: index for index, one in enumerate(passage.segments) for step in one.program.steps}
    found: dict[object, Gene] = {}
    for item in model.quantized:
        for tensor in item.tensors:
            slot, quantizer = item.slot(tensor), tensor.ready()
            is_weight = slot.operand == "weight" and item.operator.type in WEIGHTED_TYPES
            wanted = settings.activations if not tensor.is_parameter else settings.weights and is_weight
            if wanted and quantizer.kind == "uniform":
                gene = found.setdefault((simulation.tensor_name(slot), quantizer), Gene())
                gene.tensors.append(tensor)
                gene.segments.add(places[slot.operator])
    genes: dict[int, list[Gene]] = {}
    for gene in found.values():
        if passage.segments[min(gene.segments)].block is not None:
            genes.setdefault(min(gene.segments), []).append(gene)
    if not genes:
        what = [word for word in ("weights", "activations") if getattr(settings, word)]
        raise UserError(
            f"evol_q: the recipe quantizes no {' or '.join(what)} of transformer blocks with kind uniform; "
            "leave the method out"
        )
    return dict(sorted(genes.items()))


def mutated(quantizer: Uniform, longest: float, generator: torch.Generator) -> Uniform:
    """Each of its scales times its own draw from 1 - longest to 1 + longest."""
    import torch

    with torch.inference_mode(False):  # a method after this one may train the scale
        draw = torch.rand(quantizer.scale.shape, generator=generator, dtype=torch.float64)
        return quantizer.with_scale((quantizer.scale.double() * (1 + longest * (2 * draw - 1))).float())


def loss_of(found: Tensor, wanted: Tensor, loss: str, temperature: float, batch: int) -> float:
    """Mean over images of what `loss` makes of outputs [images, ...]; infinite where it is not a number."""
    found, wanted = found.flatten(1).double(), wanted.flatten(1).double()
    if loss == "contrastive":
        count = -(-len(found) // batch)
        pairs = zip(found.tensor_split(count), wanted.tensor_split(count), strict=True)
        total = sum(len(one) * contrastive(one, other, temperature) for one, other in pairs)
    else:
        total = (squared if loss == "mse" else one_less_cosine)(found, wanted) * len(found)
    value = float(total) / len(found)
    return value if value == value else float("inf")


def contrastive(found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """InfoNCE of outputs [images, values], each to be nearest to its own among `wanted`."""
    import torch

    alike = _of_length_one(found) @ _of_length_one(wanted).T / temperature
    return 2 * temperature * (torch.logsumexp(alike, 1) - alike.diagonal()).mean()


def squared(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference."""
    return (found - wanted).square().mean()


def one_less_cosine(found: Tensor, wanted: Tensor) -> Tensor:
    """1 less the cosine of each image's outputs, mean over images."""
    return 1 - (_of_length_one(found) * _of_length_one(wanted)).sum(1).mean()


def _of_length_one(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


METHOD = EvolQ
