"""Error of each operator, three ways, against the definition of each; and the ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_quantized import Reference, Tiny, images
from torch import Tensor

from ptq2themoon.evaluate.error_meter import FIGURES, ErrorMeter, per_image
from ptq2themoon.evaluate.operator_errors import (
    Meters,
    error_table,
    logits_errors,
    output_errors,
    ranking,
)
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator

PIXELS = images(10, seed=8)
Calibrated = tuple[SimulatedModel, list[QuantizedOperator]]


@pytest.fixture(scope="module")
def calibrated(tiny: Tiny) -> Calibrated:
    return tiny.calibrated("layernorm", (6, 6))


@pytest.fixture(scope="module")
def unquantized(tiny: Tiny) -> SimulatedModel:
    return SimulatedModel(tiny.graph, "cpu")


@pytest.fixture(scope="module")
def outputs(calibrated: Calibrated, unquantized: SimulatedModel) -> tuple[Meters, Meters]:
    """Accumulated and local; the last batch is smaller."""
    return output_errors(calibrated[0], unquantized, PIXELS.split(4))


def effects(model: SimulatedModel, unquantized: SimulatedModel, batches: Sequence[Tensor]) -> Meters:
    return logits_errors(model, unquantized, batches, [unquantized(part) for part in batches])


@pytest.fixture(scope="module")
def logits(calibrated: Calibrated, unquantized: SimulatedModel) -> Meters:
    return effects(calibrated[0], unquantized, PIXELS.split(4))


@pytest.fixture(scope="module")
def reference(tiny: Tiny, calibrated: Calibrated) -> Reference:
    return Reference(tiny.path, calibrated[1])


@pytest.fixture(scope="module")
def floating(reference: Reference) -> dict[str, np.ndarray]:
    return reference.run(PIXELS, active=())


def assert_close(meter: ErrorMeter, quantized: np.ndarray, floating: np.ndarray, name: str) -> None:
    """Up to values on the edge of two integers, which fall either way."""
    wanted = per_image(torch.from_numpy(quantized), torch.from_numpy(floating))
    for figure in ("nsr", "mse", "mae", "cosine"):
        assert meter.images(figure).tolist() == pytest.approx(wanted[figure].tolist(), rel=0.05), (
            name,
            figure,
        )


# Three ways against their definitions -------------------------------------------------------------


def test_accumulated_is_the_quantized_graph_against_floating_point(
    outputs: tuple[Meters, Meters], reference: Reference, floating: dict[str, np.ndarray]
) -> None:
    quantized = reference.run(PIXELS)
    for name, meter in outputs[0].items():
        assert_close(meter, quantized[name], floating[name], name)


def test_local_is_one_operator_on_floating_point_inputs(
    outputs: tuple[Meters, Meters], reference: Reference, floating: dict[str, np.ndarray]
) -> None:
    quantized = reference.local(PIXELS)
    for name, meter in outputs[1].items():
        assert_close(meter, quantized[name], floating[name], name)


def test_logits_is_one_operator_and_the_end_of_the_graph(
    tiny: Tiny, logits: Meters, reference: Reference, floating: dict[str, np.ndarray]
) -> None:
    for name in (tiny.role("norm1", 0), tiny.role("softmax", 1), tiny.role("fc2", 0)):
        quantized = reference.run(PIXELS, active={name})["head"]
        assert_close(logits[name], quantized, floating["head"], name)


# What must hold between them ----------------------------------------------------------------------


def test_every_quantized_operator_has_all_three(
    calibrated: Calibrated, outputs: tuple[Meters, Meters], logits: Meters
) -> None:
    for meters in (*outputs, logits):
        assert list(meters) == calibrated[0].quantized_operators
        assert {len(meter.images("nsr")) for meter in meters.values()} == {len(PIXELS)}


def test_before_the_first_operator_nothing_has_accumulated(outputs: tuple[Meters, Meters]) -> None:
    accumulated, local = (meters["patch_embed"].summary() for meters in outputs)
    assert accumulated == local
    assert accumulated["nsr"] > 0


def test_after_the_last_operator_come_the_logits(outputs: tuple[Meters, Meters], logits: Meters) -> None:
    local, effect = outputs[1]["head"], logits["head"]
    for figure in ("nsr", "mse", "cosine"):
        assert effect.images(figure).tolist() == pytest.approx(local.images(figure).tolist(), rel=1e-4)


def test_errors_accumulate(outputs: tuple[Meters, Meters]) -> None:
    accumulated, local = ({name: m.summary()["nsr"] for name, m in meters.items()} for meters in outputs)
    assert accumulated["head"] > 3 * local["head"]
    assert np.mean([accumulated[name] > local[name] for name in local]) > 0.9


def test_what_precedes_an_operator_may_be_shared(calibrated: Calibrated, unquantized: SimulatedModel) -> None:
    """Bit-equal to whole runs with only that operator quantized."""
    model, _ = calibrated
    with model.only(()):
        floating = model(PIXELS)
    for name, meter in effects(model, unquantized, [PIXELS]).items():
        with model.only({name}):
            assert torch.equal(meter.images("mse"), per_image(model(PIXELS), floating)["mse"]), name


def test_measuring_leaves_the_model_as_it_was(calibrated: Calibrated, unquantized: SimulatedModel) -> None:
    model, _ = calibrated
    before = model(PIXELS)
    output_errors(model, unquantized, [PIXELS[:2]])
    effects(model, unquantized, [PIXELS[:1]])
    assert torch.equal(model(PIXELS), before)


def test_four_bits_are_worse_than_eight_in_every_operator_and_way(
    tiny: Tiny, unquantized: SimulatedModel
) -> None:
    def summaries(bits: int) -> list[dict[str, dict[str, float]]]:
        model, _ = tiny.calibrated("vanilla", (bits, bits))
        ways = (
            *output_errors(model, unquantized, [PIXELS]),
            effects(model, unquantized, [PIXELS]),
        )
        return [{name: meter.summary() for name, meter in meters.items()} for meters in ways]

    for fine, rough in zip(summaries(8), summaries(4), strict=True):
        for name in fine:
            assert fine[name]["nsr"] < rough[name]["nsr"], name
            assert fine[name]["sqnr_db"] > rough[name]["sqnr_db"], name
            assert fine[name]["cosine"] > rough[name]["cosine"], name


# Ranking, table, images ---------------------------------------------------------------------------


def meters_of(nsr: Callable[[int, int], float], operators: int, count: int) -> Meters:
    """Meters whose nsr of image i at operator k is given."""
    meters = {f"op{k}": ErrorMeter() for k in range(operators)}
    for k, meter in enumerate(meters.values()):
        values = [nsr(i, k) for i in range(count)]
        meter.values = dict.fromkeys(FIGURES, values)
    return meters


def test_two_equal_halves_rank_alike(
    logits: Meters, calibrated: Calibrated, unquantized: SimulatedModel
) -> None:
    twice = effects(calibrated[0], unquantized, [PIXELS[:3].repeat(2, 1, 1, 1)])
    found = ranking(twice)
    assert (found["images"], found["images_a_half"], found["operators"]) == (6, 3, len(logits))
    assert found["spearman"] == pytest.approx(1)
    assert found["top_shared"] == found["top"] == 10


def test_opposite_halves_rank_opposite() -> None:
    found = ranking(meters_of(lambda i, k: 1 + k if i < 4 else 31 - k, operators=30, count=8))
    assert found["spearman"] == pytest.approx(-1)
    assert found["top_shared"] == 0


def test_one_wild_image_does_not_rule_the_ranking() -> None:
    """Its nsr is 30 times that of the others, in the wrong order; by the mean nsr it would decide."""
    found = ranking(meters_of(lambda i, k: 30 * 2.0**-k if i == 0 else 2.0 ** (k - 20), 20, count=8), top=5)
    assert found["spearman"] == pytest.approx(1)
    assert (found["top"], found["top_shared"]) == (5, 5)


def test_the_worst_operator_comes_first() -> None:
    """The larger the noise, the lower the SQNR; without noise it ends at 120 dB."""
    found = ranking(meters_of(lambda i, k: [1e-3, 0.0, 1e-1][k], operators=3, count=2))["mean_sqnr_db"]
    assert list(found) == ["op2", "op0", "op1"]
    assert list(found.values()) == pytest.approx([10, 30, 120])


def test_an_odd_image_is_left_out() -> None:
    found = ranking(meters_of(lambda i, k: 1 + k if i < 6 else 99 - k, operators=12, count=7))
    assert (found["images"], found["images_a_half"]) == (7, 3)
    assert found["spearman"] == pytest.approx(1)


@pytest.mark.parametrize(("operators", "count"), [(12, 1), (1, 8)])
def test_with_too_little_to_rank_there_is_no_number(operators: int, count: int) -> None:
    """NaN has no place in JSON."""
    assert ranking(meters_of(lambda i, k: 1 + i + k, operators, count))["spearman"] is None


def test_the_table_has_the_places_and_their_order(tiny: Tiny, logits: Meters) -> None:
    places = pd.DataFrame(tiny.operators).rename(columns={"name": "operator"})
    table = error_table(dict(reversed(logits.items())), "logits", places)
    header = "operator,type,role,block,mode,nsr,sqnr_db,relative_error,mse,mae,cosine"
    assert ",".join(table.columns) == header
    assert table["operator"].tolist() == list(logits)
    assert set(table["mode"]) == {"logits"}
    row = table.set_index("operator").loc[tiny.role("fc1", 1)]
    assert (row["type"], row["role"], row["block"]) == ("PPQBiasFusedMatMul", "fc1", 1)
    assert row["nsr"] == logits[tiny.role("fc1", 1)].summary()["nsr"]
