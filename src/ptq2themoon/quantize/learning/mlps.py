"""MLPs whose GELU becomes a ReLU: fc1 and fc2 are trained to give what they gave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from onnx import helper
from torch import Tensor
from torch.nn import functional as F

from ptq2themoon.graph.editing.operator_types import BIAS
from ptq2themoon.graph.forms.linear import Linear, linear_layers
from ptq2themoon.quantize.learning.loop import Draws, Group, train
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.observers.percentile import largest
from ptq2themoon.quantize.program import Hook
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.training_settings import TrainingSettings


@dataclass(frozen=True)
class MLP:
    """One block's fc2(gelu(fc1(x))).

    Attributes:
        gelu: name of the operator between.
    """

    block: int | None
    fc1: Linear
    gelu: str
    fc2: Linear


def gelu_mlps(model: QuantizedModel) -> list[MLP]:
    """Those whose GELU one layer makes and one reads, in graph order."""
    graph = model.graph()
    layers = {layer.name: layer for layer in linear_layers(graph)}
    blocks = {operator.name: operator.block for operator in model.operators}
    found = []
    for node in graph.nodes:
        if node.op_type != "Gelu":
            continue
        maker, readers = graph.producer(node.input[0]), graph.consumers(node.output[0])
        if maker is None or len(readers) != 1 or len(graph.consumers(node.input[0])) != 1:
            continue
        fc1, fc2 = layers.get(maker.name), layers.get(readers[0].name)
        if fc1 is not None and fc2 is not None and fc2.x == node.output[0]:
            found.append(MLP(blocks.get(node.name), fc1, node.name, fc2))
    return found


def put_relu(model: QuantizedModel, mlps: list[MLP]) -> None:
    """A ReLU in the place of each GELU, under the same name."""
    nodes = {node.name: node for node in model.graph().nodes}
    relus = {
        mlp.gelu: [helper.make_node("Relu", nodes[mlp.gelu].input, nodes[mlp.gelu].output, name=mlp.gelu)]
        for mlp in mlps
    }
    model.replace_operators(relus, {}, equal=False)


@dataclass
class Trained:
    """What training made of one MLP.

    Attributes:
        values: of fc1's and fc2's weights and biases, by operator and position.
        before, after: squared error of its output over the output's squares, with ReLU alone and trained.
    """

    values: dict[tuple[str, int], np.ndarray]
    before: float
    after: float


def trained_mlps(
    mlps: list[MLP],
    floating: SimulatedModel,
    images: Tensor,
    settings: TrainingSettings,
    rate: float,
    clipped: tuple[float, float],
    seed: int,
    state: State | None,
) -> Iterator[Trained]:
    """Each MLP trained by itself, on what it reads in floating point.

    min |fc2(relu(fc1(x))) - y|^2 + w |fc2(min(relu(fc1(x)), c)) - y|^2, y what the MLP gave with its GELU,
    c a quantile of the positive values that fc2 reads: APHQ-ViT's loss without its weights.

    Args:
        images: [N, C, H, W].
        rate: of Adam, falling along half a cosine.
        clipped: w, and the quantile in percent.
    """
    for number, mlp in enumerate(mlps, start=1):
        seen = _seen(mlp, floating, images)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        where = f"block {mlp.block}" if mlp.block is not None else mlp.fc1.name
        draws = Draws(len(images), generator, state, f"mlp-{number}", f"MLP of {where}")
        yield _trained(mlp, seen, settings, rate, clipped, draws, state)


def _seen(mlp: MLP, floating: SimulatedModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """What fc1 reads and what fc2 gives for all images, each [N, tokens, channels]."""
    read: list[Tensor] = []
    given: list[Tensor] = []
    hooks: dict[str, Hook] = {
        mlp.fc1.name: lambda _, inputs, __: read.append(inputs[0].cpu()),
        mlp.fc2.name: lambda _, __, outputs: given.append(outputs[0].cpu()),
    }
    for part in floating.parts(images):
        floating(part, hooks)
    x, y = torch.cat(read), torch.cat(given)
    return x.reshape(len(images), -1, x.shape[-1]), y.reshape(len(images), -1, y.shape[-1])


def _trained(
    mlp: MLP,
    seen: tuple[Tensor, Tensor],
    settings: TrainingSettings,
    rate: float,
    clipped: tuple[float, float],
    draws: Draws,
    state: State | None,
) -> Trained:
    x, y = seen
    first = [_tensor(each) for each in (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)]
    learned = [value.clone().requires_grad_() for value in first]

    with torch.no_grad():
        hidden = F.relu(x @ first[0] + first[1])
        end = _quantile(hidden[hidden > 0], clipped[1])

    def loss(_: int, index: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(x[index] @ learned[0] + learned[1])
        plain, cut = (h @ learned[2] + learned[3] - y[index] for h in (hidden, hidden.clamp(max=end)))
        found = plain.square().mean() + clipped[0] * cut.square().mean()
        return found, found

    def error(of: list[Tensor]) -> float:
        with torch.no_grad():
            found = F.relu(x @ of[0] + of[1]) @ of[2] + of[3]
            return float((found - y).square().sum() / y.square().sum())

    saved = state.load(f"{draws.name}-whole") if state is not None else None
    if saved is not None:
        learned = [saved[0][str(i)] for i in range(4)]
    else:
        train([Group(learned, rate, cosine=True)], loss, settings, draws)
        if state is not None:
            state.save(f"{draws.name}-whole", {str(i): v for i, v in enumerate(learned)}, {})
    slots = [(mlp.fc1.name, 1), (mlp.fc1.name, BIAS), (mlp.fc2.name, 1), (mlp.fc2.name, BIAS)]
    arrays = [value.detach().numpy() for value in learned]
    arrays[0], arrays[2] = mlp.fc1.stored(arrays[0]), mlp.fc2.stored(arrays[2])
    return Trained(dict(zip(slots, arrays, strict=True)), error(first), error(learned))


def _quantile(values: Tensor, percent: float) -> float:
    """An order statistic: torch.quantile takes 16 million values at most."""
    n = len(values)
    return float(largest(values, n - min(n - 1, int(n * percent / 100)))) if n else 0.0


def _tensor(value: np.ndarray | None) -> Tensor:
    return torch.tensor(0.0 if value is None else value, dtype=torch.float32)
