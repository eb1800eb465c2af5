"""What images made from a model are judged by: how unlike their patches are, and what models say to them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import onnx
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ptq2themoon.graph.editing.onnx_graph import tensor_shapes
from ptq2themoon.graph.meaning.attention_facts import attention_facts
from ptq2themoon.ppq_compat import quiet_ppq
from ptq2themoon.quantize.patch_entropy import differential_entropy, patch_similarity, total_variation
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.operators import Operator

# The batch for which the paper's code states total variation: 32 images of 3 x 224 x 224.
PIXELS_OF_THE_PAPER = 32 * 3 * 224 * 224
BANDWIDTH, POINTS = 0.01, 10  # of the paper's density
VARIATION = (2500.0, 3000.0)  # of a batch, between which its total variation is drawn


class Attended(NamedTuple):
    """The output of one block's self-attention, before its projection.

    Attributes:
        name: of the tensor, [..., tokens, channels].
        prefix: tokens before the patches.
    """

    name: str
    heads: int
    prefix: int


def attended(graph: onnx.ModelProto, operators: Sequence[Operator]) -> list[Attended]:
    """Those of all blocks in which two patches or more attend to each other, in graph order."""
    facts = attention_facts(graph, list(operators))["blocks"]
    products = {o.block: o.name for o in operators if o.role == "attn_context"}
    outputs = {node.name: node.output[0] for node in graph.graph.node}
    shapes = tensor_shapes(graph, batch=1)
    found = []
    for block, each in enumerate(facts):
        name = outputs[products[block]]
        tokens = shapes.get(name, ())[-2:-1]
        many = [size for size in tokens if isinstance(size, int) and size - each["prefix_tokens"] > 1]
        if many and each["heads"]:
            found.append(Attended(name, each["heads"], each["prefix_tokens"]))
    return found


@dataclass(frozen=True)
class Weights:
    """How the parts of the loss count, and the estimate of the density.

    Attributes:
        entropy: of the patches' similarities, which is maximised.
        output: of what the model's output is judged by.
        variation: of the distance of total variation from its target.
        points: at which the density is taken.
    """

    entropy: float
    output: float
    variation: float
    bandwidth: float
    points: int


class Judge(Protocol):
    """What an output of the model says against images.

    Attributes:
        name: in messages.
    """

    name: str

    def __call__(self, output: Tensor, images: Tensor, start: int) -> Tensor:
        """0-d, mean over images, with gradients of both.

        Args:
            output: of the model in floating point.
            start: index of the first of these images in the batch.
        """


class OneHot:
    """The cross entropy of logits with a class for each image of a batch, [B]."""

    name = "class"

    def __init__(self, targets: Tensor) -> None:
        self._targets = targets

    def __call__(self, output: Tensor, images: Tensor, start: int) -> Tensor:
        return cross_entropy(output, self._targets[start : start + len(images)])


@dataclass
class Loss:
    """The loss of images, and its gradient; in parts that fit in memory.

    Args:
        floating: a model without quantizers.
        judge: of its output; None: nothing.
        wanted_variation: total variation that the batch is led to, in the measure of the paper's batch.

    Attributes:
        values: of the last call, by part of the loss.
    """

    floating: SimulatedModel
    outputs: Sequence[Attended]
    weights: Weights
    judge: Judge | None
    wanted_variation: float
    values: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = [*self.floating.outputs, *(each.name for each in self.outputs)]
        self.program = self.floating.trainable(self.floating.order, wanted)

    def __call__(self, images: Tensor) -> tuple[float, Tensor]:
        """Loss and gradient, [B, C, H, W]; `images` gets no history."""
        name = "" if self.judge is None else self.judge.name
        values = {"entropy": 0.0, name: 0.0}
        gradients: list[Tensor] = []
        done = 0
        for part in self.floating.parts(images):
            part = part.detach().requires_grad_()
            with torch.enable_grad(), quiet_ppq():
                entropy, error = self.of_model(part, done)
                share = len(part) / len(images)
                loss = share * (self.weights.output * error - self.weights.entropy * entropy)
                gradients += torch.autograd.grad(loss, [part])
            values["entropy"] += share * float(entropy.detach())
            values[name] += share * float(error.detach())
            done += len(part)
        distance, gradient = self._of_variation(images)
        values["variation"] = distance
        weights = self.weights
        total = weights.output * values[name] - weights.entropy * values["entropy"]
        total += weights.variation * distance
        self.values = {name: value for name, value in values.items() if name}
        return total, torch.cat(gradients) + weights.variation * gradient

    def of_model(self, part: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Means over images from `start` on: the entropies' sum over blocks, and what the judge says."""
        output, *outputs = self.program.run({self.floating.input_name: part})
        entropy = part.new_zeros(())
        for each, context in zip(self.outputs, outputs, strict=True):
            similar = patch_similarity(context, len(part), each.heads, each.prefix)
            entropy = (
                entropy + differential_entropy(similar, self.weights.bandwidth, self.weights.points).mean()
            )
        if self.judge is None:
            return entropy, part.new_zeros(())
        return entropy, self.judge(output, part, start)

    def _of_variation(self, images: Tensor) -> tuple[float, Tensor]:
        """|V - wanted| with V in the measure of the paper's batch, and its gradient."""
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            measure = math.sqrt(PIXELS_OF_THE_PAPER / images.numel())
            distance = (measure * total_variation(images) - self.wanted_variation).abs()
            (gradient,) = torch.autograd.grad(distance, [images])
        return float(distance.detach()), gradient

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.3f}" for name, value in self.values.items())


def mean_entropy(floating: SimulatedModel, outputs: Sequence[Attended], batches: Iterable[Tensor]) -> float:
    """Entropy of patch similarity with the paper's density, summed over blocks, mean over images."""
    weights = Weights(entropy=1, output=0, variation=0, bandwidth=BANDWIDTH, points=POINTS)
    loss, total, count = Loss(floating, outputs, weights, None, 0.0), 0.0, 0
    with torch.no_grad(), quiet_ppq():
        for images in batches:
            total += len(images) * float(loss.of_model(images.to(floating.device), 0)[0])
            count += len(images)
    return total / count


def drawn_variation(generator: torch.Generator) -> float:
    """The total variation that a batch is led to, as in the paper's code."""
    low, high = VARIATION
    return low + (high - low) * float(torch.rand((), generator=generator))
