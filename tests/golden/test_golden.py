"""Quantization gives what it gave when the golden files were made.

To the bit where the machine computes as the one that made them. Elsewhere the last digits of floating
point differ, and where one of them tips a rounding, a value moves by a whole step: what holds then is
said beside each tolerance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from golden import cases, today
from golden.cases import ARRAYS, HERE, MODELS, RECIPES, TABLE, Case, Images, Names
from safetensors.numpy import load_file

GOLDEN: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
# One operator at a time takes most of the time; these recipes hold every way of quantizing.
QUICK = {"vanilla", "customized", "mixed", "output_axis"}
ERRORS = [
    pytest.param(name, marks=[] if Case.named(name).recipe in QUICK else pytest.mark.slow)
    for name in GOLDEN["cases"]
]
SEARCHES = {"observers", "mse"}  # kl and mse search among bins: where one tips, a scale jumps
# Of metrics on 16 images, of which two may tip; SQNR in dB.
TOLERANCES = {
    "images": 0, "top1": 12.5, "top5": 12.5, "agreement": 12.5, "loss": 0.1, "logits_sqnr_db": 1.5,
    "output_cosine": 0.05, "attention_cosine": 0.02, "attention_kl": 0.05,
}  # fmt: skip


class Run(NamedTuple):
    """A case, quantized anew, and what the golden files hold of it."""

    case: Case
    model: today.Quantized
    names: Names
    exact: bool
    stored: dict[str, np.ndarray]
    table: dict[str, Any]


@cache
def images() -> Images:
    return Images.read()


@cache
def stored() -> dict[str, np.ndarray]:
    return load_file(ARRAYS)


@cache
def exact(model: str) -> bool:
    """Whether this machine computes as the one that made the files."""
    return cases.fingerprint(model, images()) == GOLDEN["models"][model]["fingerprint"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads may share a sum out in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=GOLDEN["cases"])
def run(request: pytest.FixtureRequest, one_thread: None) -> Run:
    case = Case.named(request.param)
    facts = GOLDEN["models"][case.model]
    arrays = {name: stored()[f"{case}.{name}"] for name in ("tensors", "scales", "logits", "errors")}
    return Run(
        case,
        cases.quantized(case, images()),
        Names(facts["tensors"], facts["operators"]),
        exact(case.model),
        arrays,
        GOLDEN["cases"][str(case)],
    )


def equal(found: np.ndarray, wanted: np.ndarray) -> None:
    """To the bit."""
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def sqnr_db(found: np.ndarray, wanted: np.ndarray) -> float:
    """Median over images [B, classes]: one tipped rounding moves the logits of one image."""
    noise = np.square(np.float64(found) - wanted).sum(1)
    return float(np.median(10 * np.log10(np.square(np.float64(wanted)).sum(1) / (noise + 1e-12))))


@pytest.mark.parametrize("model", MODELS)
def test_machine_computes_as_the_one_that_made_the_files(model: str) -> None:
    """Skipped where it does not, so that a report says which comparison was made."""
    if not exact(model):
        pytest.skip("other last digits of floating point: compared within tolerances")


@pytest.mark.parametrize("model", MODELS)
def test_floating_point(model: str) -> None:
    found = today.floating(HERE / model, images().pixels)
    if exact(model):
        equal(found, stored()[model])
    np.testing.assert_allclose(found, stored()[model], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GOLDEN["refused"])
def test_refused(name: str) -> None:
    with pytest.raises(today.UserError, match=f"{Case.named(name).recipe}.yaml"):
        cases.quantized(Case.named(name), images())


def test_every_recipe_is_there() -> None:
    assert {Case.named(name).recipe for name in GOLDEN["cases"]} <= RECIPES.keys()


def test_scales(run: Run) -> None:
    tensors, scales = cases.scales(run.model, run.names)
    equal(tensors, run.stored["tensors"])
    if run.exact:
        equal(scales, run.stored["scales"])
    close = np.isclose(scales, run.stored["scales"], rtol=1e-4, atol=0)
    assert np.mean(~close) <= (0.01 if run.case.recipe in SEARCHES else 0)


def test_logits(run: Run) -> None:
    """Far nearer to the stored ones than quantization's own noise is to floating point."""
    found = today.logits(run.model, images().pixels)
    if run.exact:
        equal(found, run.stored["logits"])
    noise = sqnr_db(run.stored["logits"], stored()[run.case.model])
    assert sqnr_db(found, run.stored["logits"]) >= noise + (0 if run.case.recipe in SEARCHES else 6)


@pytest.mark.parametrize("run", ERRORS, indirect=True)
def test_errors(run: Run) -> None:
    found, wanted = cases.errors(run.model, images(), run.names), run.stored["errors"]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    if run.exact:
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    nsr = [10 * np.log10(errors[..., today.FIGURES.index("nsr")] + 1e-7) for errors in (found, wanted)]
    apart = np.abs(nsr[0] - nsr[1])
    assert (np.nanmedian(apart, axis=0) < 0.3).all()  # dB, of the operators, each way
    assert np.nanmax(apart) < 6


def test_metrics(run: Run) -> None:
    found, wanted = today.metrics(run.model, images().evaluation()), run.table["metrics"]
    if run.exact:
        assert found == pytest.approx(wanted, rel=1e-9)
    for name, tolerance in TOLERANCES.items():
        assert found[name] == pytest.approx(wanted[name], rel=0, abs=tolerance), name


def test_deployed(run: Run) -> None:
    """Where each operator runs and why hangs on no last digit; the files do."""
    found = cases.deployed(run.model)
    if run.exact:
        assert found == run.table["deployed"]
    for mode, wanted in run.table["deployed"].items():
        assert found[mode] | {"sha256": None} == wanted | {"sha256": None}
