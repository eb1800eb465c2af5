"""Accuracy, agreement and fidelity over an evaluation set, against a recount with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_quantized import Tiny, images
from torch import Tensor

from ptq2themoon.evaluate.accuracy import Evaluation, evaluate_float, evaluate_quantized
from ptq2themoon.evaluate.attention import AttentionSpec, fidelity
from ptq2themoon.evaluate.errors import per_image, sqnr_db
from ptq2themoon.graph.runtime import run_onnx
from ptq2themoon.quantize.simulation import SimulatedModel

COUNT = 23
PIXELS = images(COUNT, seed=5)
# Every third label is the model's own answer, below: else hardly any would be right.
LABELS = torch.randint(0, 10, (COUNT,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def coarse(tiny: Tiny) -> SimulatedModel:
    """Four bits: answers change."""
    return tiny.calibrated("vanilla", (4, 4))[0]


@pytest.fixture(scope="module")
def labels(tiny: Tiny) -> Tensor:
    answers = torch.from_numpy(run_onnx(tiny.path, PIXELS.numpy())).argmax(1)
    return torch.where(torch.arange(COUNT) % 3 == 0, answers, LABELS)


def batches(labels: Tensor, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    """The last one is smaller."""
    return list(zip(PIXELS.split(size), labels.split(size), strict=True))


def spec(tiny: Tiny, block: int = 1) -> AttentionSpec:
    return AttentionSpec(tiny.role("softmax", block), block, prefix_tokens=1, grid=(4, 4))


def recount(logits: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    order = np.argsort(-logits, axis=1)
    log_sum = np.log(np.exp(logits.astype(np.float64)).sum(1))
    return {
        "images": len(labels),
        "top1": 100 * float(np.mean(order[:, 0] == labels)),
        "top5": 100 * float(np.mean([label in row for label, row in zip(labels, order[:, :5], strict=True)])),
        "loss": float(np.mean(log_sum - logits[np.arange(len(labels)), labels])),
        "agreement": 100 * float(np.mean(order[:, 0] == reference.argmax(1))),
    }


def measured(found: Evaluation, absent: int) -> dict[str, float]:
    """The metrics that have a number; so many have none."""
    numbers = {name: value for name, value in found.metrics.items() if value is not None}
    assert len(found.metrics) - len(numbers) == absent
    return numbers


def test_floating_point_is_onnx_runtime_recounted(tiny: Tiny, labels: Tensor) -> None:
    found = evaluate_float(SimulatedModel(tiny.path, "cpu"), batches(labels))
    logits = run_onnx(tiny.path, PIXELS.numpy())
    assert measured(found, absent=4) == pytest.approx(recount(logits, logits, labels.numpy()), rel=1e-5)
    assert found.metrics["agreement"] == 100
    assert 30 < found.metrics["top1"] < found.metrics["top5"] < 100  # or the test would show little
    assert found.attention.empty


def test_floating_point_of_a_quantized_model_is_not_quantized(
    tiny: Tiny, coarse: SimulatedModel, labels: Tensor
) -> None:
    plain = evaluate_float(SimulatedModel(tiny.path, "cpu"), batches(labels))
    assert evaluate_float(coarse, batches(labels)).metrics == plain.metrics


def test_quantized_is_recounted(tiny: Tiny, coarse: SimulatedModel, labels: Tensor) -> None:
    found = evaluate_quantized(coarse, batches(labels), None)
    logits = torch.cat([coarse(part) for part in PIXELS.split(8)])
    reference = torch.from_numpy(run_onnx(tiny.path, PIXELS.numpy()))
    wanted = recount(logits.numpy(), reference.numpy(), labels.numpy())
    nsr = per_image(logits, reference)["nsr"].mean().item()
    wanted |= {"logits_nsr": nsr, "logits_sqnr_db": sqnr_db(nsr)}
    assert measured(found, absent=2) == pytest.approx(wanted, rel=1e-4)
    assert found.metrics["agreement"] < 100
    assert list(found.attention.columns) == ["image", "label", "cosine", "kl"]
    assert found.attention.empty


@pytest.mark.parametrize("size", [1, 5, COUNT])
def test_the_size_of_batches_changes_nothing(
    tiny: Tiny, coarse: SimulatedModel, labels: Tensor, size: int
) -> None:
    wanted = evaluate_quantized(coarse, batches(labels), spec(tiny))
    found = evaluate_quantized(coarse, batches(labels, size), spec(tiny))
    assert found.metrics == pytest.approx(wanted.metrics, rel=0.01)
    assert len(found.attention) == COUNT
    assert found.metrics["images"] == COUNT


def attention(model: SimulatedModel, operator: str) -> Tensor:
    seen: list[Tensor] = []
    for part in PIXELS.split(8):
        model(part, {operator: lambda _name, _inputs, outputs: seen.append(outputs[0])})
    return torch.cat(seen)


@pytest.mark.parametrize("block", [0, 1])
def test_attention_is_one_row_an_image_of_the_graphs_evaluated(
    tiny: Tiny, coarse: SimulatedModel, labels: Tensor, block: int
) -> None:
    place = spec(tiny, block)
    found = evaluate_quantized(coarse, batches(labels), place)
    quantized = attention(coarse, place.operator)
    reference = attention(SimulatedModel(tiny.path, "cpu"), place.operator)
    assert quantized.shape == (COUNT, 2, 17, 17)
    cosine, kl = fidelity(quantized[:, :, 0, 1:], reference[:, :, 0, 1:])
    table = found.attention
    assert table["image"].tolist() == list(range(COUNT))
    assert table["label"].tolist() == labels.tolist()
    assert table["cosine"].tolist() == pytest.approx(cosine.tolist())
    assert table["kl"].tolist() == pytest.approx(kl.tolist())
    assert found.metrics["attention_cosine"] == pytest.approx(cosine.mean().item())
    assert found.metrics["attention_kl"] == pytest.approx(kl.mean().item())
    assert table["kl"].min() > 0


def test_more_bits_are_closer_to_floating_point(tiny: Tiny, coarse: SimulatedModel, labels: Tensor) -> None:
    fine = evaluate_quantized(tiny.calibrated("vanilla")[0], batches(labels), spec(tiny)).metrics
    rough = evaluate_quantized(coarse, batches(labels), spec(tiny)).metrics
    assert fine["logits_nsr"] < rough["logits_nsr"]
    assert fine["logits_sqnr_db"] > rough["logits_sqnr_db"] + 10
    assert fine["attention_cosine"] > rough["attention_cosine"]
    assert fine["attention_kl"] < rough["attention_kl"]
    assert fine["agreement"] >= rough["agreement"]


def test_without_any_error_the_decibels_have_no_number(tiny: Tiny, labels: Tensor) -> None:
    """Infinity has no place in JSON."""
    metrics = evaluate_quantized(SimulatedModel(tiny.path, "cpu"), batches(labels), spec(tiny)).metrics
    assert (metrics["logits_nsr"], metrics["logits_sqnr_db"]) == (0, None)
    assert (metrics["agreement"], metrics["attention_kl"]) == (100, 0)
    assert metrics["attention_cosine"] == pytest.approx(1)


def test_fewer_than_five_classes(tmp_path_factory: pytest.TempPathFactory) -> None:
    few = Tiny.make(tmp_path_factory.mktemp("few"), num_classes=3)
    metrics = evaluate_float(
        SimulatedModel(few.path, "cpu"), [(images(4), torch.tensor([0, 1, 2, 0]))]
    ).metrics
    assert metrics["top5"] == 100
    assert metrics["top1"] in (0, 25, 50, 75, 100)
