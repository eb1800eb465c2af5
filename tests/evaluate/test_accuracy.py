"""Accuracy, agreement and fidelity over an evaluation set, against a recount with numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_quantized import Tiny, images, references
from torch import Tensor

from ptq2themoon.evaluate.accuracy import Evaluation, are_labelled, evaluate_quantized, floating_metrics
from ptq2themoon.evaluate.attention import AttentionSpec, fidelity
from ptq2themoon.evaluate.error_meter import per_image
from ptq2themoon.evaluate.metrics import sqnr_db
from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.graph.editing.onnx_run import run_onnx
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError

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
    return AttentionSpec(
        tiny.role("softmax", block), block, groups=1, prefix_tokens=1, grid=(4, 4), class_token=True, note=""
    )


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


def measured(metrics: Metrics, absent: int) -> dict[str, float]:
    """The metrics that have a number; so many have none."""
    known = metrics.model_dump(exclude={"version", "protocol"})
    numbers = {name: value for name, value in known.items() if value is not None}
    assert len(known) - len(numbers) == absent
    return numbers


def evaluated(
    tiny: Tiny, model: SimulatedModel, data: list[tuple[Tensor, Tensor]], spec: AttentionSpec, **kind: bool
) -> Evaluation:
    return evaluate_quantized(model, data, references(tiny, data, spec), spec, **kind)


def test_floating_point_is_onnx_runtime_recounted(tiny: Tiny, labels: Tensor) -> None:
    found = floating_metrics([(SimulatedModel(tiny.graph, "cpu")(PIXELS), labels)])
    logits = run_onnx(tiny.path, PIXELS.numpy())
    assert measured(found, absent=5) == pytest.approx(recount(logits, logits, labels.numpy()), rel=1e-5)
    assert found.agreement == 100
    assert 30 < found.top1 < found.top5 < 100  # or the test would show little


def test_quantized_is_recounted(tiny: Tiny, coarse: SimulatedModel, labels: Tensor) -> None:
    found = evaluated(tiny, coarse, batches(labels), spec(tiny))
    logits = torch.cat([coarse(part) for part in PIXELS.split(8)])
    reference = torch.from_numpy(run_onnx(tiny.path, PIXELS.numpy()))
    wanted = recount(logits.numpy(), reference.numpy(), labels.numpy())
    error = {name: values.mean().item() for name, values in per_image(logits, reference).items()}
    wanted |= {
        "logits_nsr": error["noise"] / error["signal"],
        "logits_sqnr_db": sqnr_db(error["noise"] / error["signal"]),
        "output_cosine": error["cosine"],
    }
    numbers = measured(found.metrics, absent=0)
    assert {name: numbers[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
    assert numbers.keys() - wanted.keys() == {"attention_cosine", "attention_kl"}
    assert found.metrics.agreement < 100


@pytest.mark.parametrize("size", [1, 5, COUNT])
def test_the_size_of_batches_changes_nothing(
    tiny: Tiny, coarse: SimulatedModel, labels: Tensor, size: int
) -> None:
    wanted = evaluated(tiny, coarse, batches(labels), spec(tiny))
    found = evaluated(tiny, coarse, batches(labels, size), spec(tiny))
    numbers = (measured(each.metrics, absent=0) for each in (found, wanted))
    assert next(numbers) == pytest.approx(next(numbers), rel=0.01)
    assert torch.equal(found.output, torch.cat([coarse(part) for part in PIXELS.split(size)]))
    assert len(found.attention) == COUNT
    assert found.metrics.images == COUNT


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
    found = evaluated(tiny, coarse, batches(labels), place)
    quantized = attention(coarse, place.operator)
    reference = attention(SimulatedModel(tiny.graph, "cpu"), place.operator)
    assert quantized.shape == (COUNT, 2, 17, 17)
    cosine, kl = fidelity(quantized[:, None, :, 0, 1:], reference[:, None, :, 0, 1:])
    table = found.attention
    assert list(table.columns) == ["image", "label", "query", "cosine", "kl"]
    assert set(table["query"]) == {"class token"}
    assert table["image"].tolist() == list(range(COUNT))
    assert table["label"].tolist() == labels.tolist()
    assert table["cosine"].tolist() == pytest.approx(cosine.tolist())
    assert table["kl"].tolist() == pytest.approx(kl.tolist())
    assert found.metrics.attention_cosine == pytest.approx(cosine.mean().item())
    assert found.metrics.attention_kl == pytest.approx(kl.mean().item())
    assert table["kl"].min() > 0


def test_more_bits_are_closer_to_floating_point(tiny: Tiny, coarse: SimulatedModel, labels: Tensor) -> None:
    fine = evaluated(tiny, tiny.calibrated("vanilla")[0], batches(labels), spec(tiny)).metrics
    rough = evaluated(tiny, coarse, batches(labels), spec(tiny)).metrics
    assert fine.logits_nsr < rough.logits_nsr
    assert fine.logits_sqnr_db > rough.logits_sqnr_db + 10
    assert fine.attention_cosine > rough.attention_cosine
    assert fine.attention_kl < rough.attention_kl
    assert fine.agreement >= rough.agreement


def test_without_any_error_the_decibels_have_no_number(tiny: Tiny, labels: Tensor) -> None:
    """Infinity has no place in JSON."""
    metrics = evaluated(tiny, SimulatedModel(tiny.graph, "cpu"), batches(labels), spec(tiny)).metrics
    assert (metrics.logits_nsr, metrics.logits_sqnr_db) == (0, None)
    assert (metrics.agreement, metrics.attention_kl) == (100, 0)
    assert metrics.attention_cosine == pytest.approx(1)


def test_without_class_token_it_is_the_mean_of_all_tokens(
    tiny: Tiny, coarse: SimulatedModel, labels: Tensor
) -> None:
    everything = replace(spec(tiny), class_token=False)
    found = evaluated(tiny, coarse, batches(labels), everything)
    quantized = attention(coarse, everything.operator).mean(2)[:, None, :, 1:]
    reference = attention(SimulatedModel(tiny.graph, "cpu"), everything.operator).mean(2)[:, None, :, 1:]
    assert set(found.attention["query"]) == {"mean of tokens"}
    assert found.attention["kl"].tolist() == pytest.approx(fidelity(quantized, reference)[1].tolist())


NO_ACCURACY = ("top1", "top5", "loss", "agreement")


def test_without_labels_there_is_agreement_but_no_accuracy(
    tiny: Tiny, coarse: SimulatedModel, labels: Tensor
) -> None:
    unknown = torch.full_like(labels, -1)
    known = evaluated(tiny, coarse, batches(labels), spec(tiny))
    found = evaluated(tiny, coarse, batches(unknown), spec(tiny), labelled=False)
    assert found.metrics == known.metrics.model_copy(update=dict.fromkeys(("top1", "top5", "loss")))
    assert set(found.attention["label"]) == {-1}
    plain = floating_metrics([(SimulatedModel(tiny.graph, "cpu")(PIXELS), unknown)], labelled=False)
    assert measured(plain, absent=8) == {"images": COUNT, "agreement": 100}


@pytest.mark.parametrize(
    ("overrides", "shape"), [({"num_classes": 0}, (32,)), ({"num_classes": 0, "global_pool": ""}, (17, 32))]
)
def test_features_are_measured_by_the_error_of_the_output(
    tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, object], shape: tuple[int, ...]
) -> None:
    """One vector per image, or one per token."""
    plain = Tiny.make(tmp_path_factory.mktemp("features"), **overrides)
    model = plain.calibrated("vanilla")[0]
    data = [(part, torch.full((len(part),), -1)) for part in PIXELS.split(8)]
    metrics = evaluated(plain, model, data, spec(plain), classifier=False).metrics
    assert [getattr(metrics, name) for name in NO_ACCURACY] == [None] * 4
    quantized = torch.cat([model(part) for part, _ in data])
    assert quantized.shape == (COUNT, *shape)
    wanted = per_image(quantized, torch.from_numpy(run_onnx(plain.path, PIXELS.numpy())))
    assert metrics.logits_nsr == pytest.approx(
        (wanted["noise"].sum() / wanted["signal"].sum()).item(), rel=1e-4
    )
    assert metrics.output_cosine == pytest.approx(wanted["cosine"].mean().item(), rel=1e-6)
    assert metrics.logits_sqnr_db > 5


def test_features_given_as_logits_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    dense = Tiny.make(tmp_path_factory.mktemp("dense"), num_classes=0, global_pool="")
    with pytest.raises(UserError, match=r"gives \[17, 32\] per image, .*classifier: false"):
        floating_metrics([(SimulatedModel(dense.graph, "cpu")(images(2)), torch.tensor([0, 1]))])


def test_labels_are_there_or_not() -> None:
    manifest = Path("evaluation.csv")
    assert are_labelled([0, 3, 1], manifest)
    assert not are_labelled([-1, -1], manifest)
    with pytest.raises(
        UserError, match=r"evaluation\.csv: 2 of 3 images have no label; give all of them one"
    ):
        are_labelled([-1, 0, -1], manifest)


def test_fewer_than_five_classes(tmp_path_factory: pytest.TempPathFactory) -> None:
    few = Tiny.make(tmp_path_factory.mktemp("few"), num_classes=3)
    metrics = floating_metrics([(SimulatedModel(few.graph, "cpu")(images(4)), torch.tensor([0, 1, 2, 0]))])
    assert metrics.top5 == 100
    assert metrics.top1 in (0, 25, 50, 75, 100)
