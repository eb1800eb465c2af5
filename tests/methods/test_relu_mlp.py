"""MLP reconstruction: ReLUs in the place of GELUs, nearly the same outputs, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_methods import Case, recipe, sqnr
from tiny_models import tiny_module
from torch.nn import functional as F

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.graph.editing.onnx_run import session
from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.quantize.learning import mlps as training
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.vocabulary.errors import UserError

FLOATING: dict[str, Any] = {"select": {}, "quantize": False}


def relu(*rules: Any, **settings: Any) -> Any:
    plain = {"name": "relu_mlp", "iterations": 150, "bound": 10.0}
    return recipe("relu_mlp", *rules, methods=[{**plain, **settings}])


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of(tiny_module(), (1, 16, 16))


@pytest.fixture(scope="module")
def trained(case: Case) -> QuantizedModel:
    return case.quantized(relu())


def types(model: QuantizedModel) -> list[str]:
    return [node.op_type for node in model.edited.graph.node]


def test_each_gelu_is_a_relu_and_the_reference_keeps_its_own(case: Case, trained: QuantizedModel) -> None:
    assert types(trained).count("Relu") == 2
    assert "Gelu" not in types(trained)
    assert [n.op_type for n in trained.rewritten.graph.node].count("Gelu") == 2
    roles = [operator.role for operator in trained.operators]
    assert roles.count("fc1") == roles.count("fc2") == 2


def test_training_brings_the_model_back_to_what_it_was(case: Case) -> None:
    """In floating point, against ReLUs with the weights of before."""
    found = []
    for iterations in (1, 300):
        model = case.quantized(relu(iterations=iterations, rate=1e-9 if iterations == 1 else 1e-2))
        logits = SimulatedModel(model.edited, "cpu")(case.images)
        found.append(sqnr(logits, case.floating()))
    assert found[1] > found[0] + 5


def test_the_loss_is_the_paper_s(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first step, with the weights of before, written out in numpy."""
    losses: list[float] = []
    plain = training.train

    def noted(groups: Any, loss: Any, settings: Any, draws: Any) -> list[float]:
        with torch.no_grad():
            losses.append(float(loss(0, torch.arange(draws.images))[0]))
        return plain(groups, loss, settings, draws)

    monkeypatch.setattr(training, "train", noted)
    base = case.quantized(recipe("papers"))
    case.quantized(relu(iterations=1))
    layers = {layer.name: layer for layer in linear_layers(base.graph())}
    floating, seen = SimulatedModel(case.reference, "cpu"), {}
    for number in (0, 1):
        fc1, fc2 = (layers[f"blocks.{number}.{role}"] for role in ("fc1", "fc2"))
        floating(case.images, {fc1.name: lambda _, inputs, __: seen.update(x=inputs[0].numpy().copy())})
        hidden = seen["x"] @ fc1.weight + fc1.bias
        y = F.gelu(torch.tensor(hidden)).numpy() @ fc2.weight + fc2.bias
        positive = np.maximum(hidden, 0)
        ordered = np.sort(positive[positive > 0])
        end = ordered[int(len(ordered) * 0.99)]
        off = [h @ fc2.weight + fc2.bias - y for h in (positive, np.minimum(positive, end))]
        wanted = (off[0] ** 2).mean() + 2 * (off[1] ** 2).mean()
        assert losses[number] == pytest.approx(float(wanted), rel=1e-3)


def test_the_int8_model_has_relus_and_gives_what_the_simulation_gives(
    case: Case, trained: QuantizedModel
) -> None:
    deployed = deploy(trained.edited, trained.quantized, "fast")
    running = session(deployed.model, quantized=True)
    found = running.run(None, {running.get_inputs()[0].name: case.images.numpy()})[0]
    assert "Relu" in {node.op_type for node in deployed.model.graph.node}
    assert sqnr(torch.tensor(found), simulated(trained, "cpu")(case.images)) > 20


def test_without_iterations_it_is_its_base_to_the_bit(case: Case) -> None:
    found, base = (case.quantized(r, (4, 4)) for r in (relu(iterations=0), recipe("papers")))
    assert found.edited == base.edited


def test_an_mlp_that_was_not_trained_enough_is_refused_with_its_error(case: Case) -> None:
    with pytest.raises(UserError, match=r"^relu_mlp: operator 'blocks\.0\.fc2': .* more than bound: 1e-06"):
        case.quantized(relu(iterations=1, bound=1e-6))


def test_a_model_without_gelu_is_refused_in_one_line() -> None:
    module = tiny_module(act_layer=torch.nn.ReLU)
    with pytest.raises(UserError, match=r"^relu_mlp: no GELU between two linear layers"):
        Case.of(module, (1, 16, 16)).quantized(relu())
