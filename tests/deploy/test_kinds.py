"""How the INT8 models express kinds of quantizers other than symmetric integers of one scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_deployed import Quantized, constants, kernels, of_type, sqnr
from tiny_quantized import Tiny, images, write_recipe

from ptq2themoon.deploy import kinds
from ptq2themoon.deploy.compare import compare
from ptq2themoon.graph.editing.onnx_run import FLOAT_KERNELS, INTEGER_KERNELS
from ptq2themoon.quantize.quantizers import LogSqrt2
from ptq2themoon.vocabulary.recipes import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SOFTMAX = {"role": "softmax", "operand": "output"}
ATTENTION = {"role": ["attn_scores", "softmax", "attn_context"], "operand": ["input", "output"]}
LEFT = {"role": "attn_context", "operand": "input", "position": 0}
TWIN = {"kind": "twin_uniform"}
LOG = {"kind": "log_sqrt2"}
UNSIGNED = {"codes": "unsigned"}
ASYMMETRIC = {"symmetry": "asymmetric"}
CHANNELS = {"granularity": "per-channel", "observer": "minmax"}
HEADS = {"granularity": "per-head", "observer": "minmax"}
PRODUCTS = ("PPQBiasFusedMatMul", "Gemm", "MatMul", "Conv")


def made(tiny: Tiny, folder: Path, *rules: dict[str, Any]) -> Quantized:
    return Quantized.of(tiny, write_recipe(folder, *rules), (8, 8), images(12))


@pytest.mark.parametrize(
    "rules",
    [
        [{"select": SOFTMAX, **LOG}, {"select": LEFT, **LOG}],
        [{"select": LEFT, **LOG}],
        [{"select": SOFTMAX, **TWIN}, {"select": {"role": "fc2", "operand": "input"}, **TWIN}],
        [{"select": LEFT, "kind": "log2"}],
        [{"select": LEFT, "kind": "adalog"}],
        [{"select": {"operand": ["input", "output"]}, **ASYMMETRIC}],
        [{"select": {"operand": ["input", "output"]}, **ASYMMETRIC, **UNSIGNED}],
        [{"select": {"operand": "weight"}, **ASYMMETRIC}],
        [{"select": {"operand": ["input", "output"]}, **ASYMMETRIC, **CHANNELS}],
        [{"select": {"operand": "weight"}, **ASYMMETRIC, **CHANNELS, "weight_axis": "output"}],
        [
            {
                "select": ATTENTION,
                **HEADS,
            }
        ],
        [
            {
                "select": ATTENTION,
                **HEADS,
                **ASYMMETRIC,
            }
        ],
        [{"select": {"operand": ["input", "output"]}, **ASYMMETRIC, "bits": 4}],
        [{"select": {"role": ["qkv", "fc1", "fc2"], "operand": "weight"}, "kind": "apot"}],
    ],
    ids=[
        *(
            "log twice",
            "log read",
            "twin",
            "log2 read",
            "adalog read",
            "asymmetric",
            "unsigned",
            "weights",
            "channels",
            "channels of weights",
        ),
        *("heads", "heads asymmetric", "4 bits", "levels"),
    ],
)
@pytest.mark.parametrize("profile", ["onnxruntime", "tensorrt"])
def test_faithful_is_the_simulation(
    tiny: Tiny, tmp_path: Path, rules: list[dict[str, Any]], profile: str
) -> None:
    found = made(tiny, tmp_path, *rules)
    differences = compare(found.model, found.quantized, found.simulated, found.images)
    assert len(differences) == len(found.quantized)
    assert [d for d in differences if d.departs] == []
    simulated = found.simulated(found.images).numpy()
    deployed = found.deployed("faithful", profile)  # type: ignore[arg-type]
    # ONNX Runtime's optimiser joins two quantizations of one type, of which TensorRT has no more.
    output = found.run(deployed, optimise=profile == "onnxruntime")
    # One value on the other side of a tie weighs much in models as small as these.
    assert sqnr(output, simulated) > sqnr(simulated, found.floating()) + 3


def test_log_sqrt2_leaves_its_product_in_floating_point_and_says_what_that_costs(
    tiny: Tiny, tmp_path: Path
) -> None:
    found = made(tiny, tmp_path, {"select": LEFT, **LOG})
    deployed = found.deployed("fast")
    report = deployed.report(item.operator for item in found.quantized)
    products = report["products"]
    context = [tiny.role("attn_context", block) for block in (0, 1)]
    assert products["float_by_kind"]["log_sqrt2"]["products"] == len(context) == products["float"]
    assert products["integer"] + products["float"] == len(of_type(found.model, *PRODUCTS))
    cost = products["float_by_kind"]["log_sqrt2"]["share"]
    assert products["integer_share"] == pytest.approx(1 - cost, abs=2e-4)
    assert 0 < cost < 0.2
    for name in context:
        assert deployed.placements[name].runs == "float"
        assert "log_sqrt2: powers of the square root of two are no integers" in deployed.placements[name].why
    assert kernels(deployed.model, tmp_path)["MatMul"] == len(context)
    assert sqnr(found.run(deployed), found.floating()) > 25


def test_multiply_accumulates(tiny: Tiny, tmp_path: Path) -> None:
    """Of a Conv of patches, layers and attention products, counted by hand from shapes of the weights."""
    deployed = made(tiny, tmp_path).deployed("fast")
    values = constants(tiny_model := made(tiny, tmp_path).model)
    fc1 = next(node for node in tiny_model.graph.node if node.name == tiny.role("fc1", 0))
    tokens = deployed.work[fc1.name] / values[fc1.input[1]].size
    assert tokens == int(tokens) > 1
    patches = next(node for node in tiny_model.graph.node if node.op_type == "Conv")
    assert deployed.work[patches.name] == (tokens - 1) * values[patches.input[1]].size
    assert all(deployed.work.values())


def test_a_kind_without_a_row_stays_in_floating_point(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(kinds.ROWS, LogSqrt2.kind)
    found = made(tiny, tmp_path, {"select": LEFT, **LOG})
    name = tiny.role("attn_context", 0)
    for mode in ("faithful", "fast"):
        deployed = found.deployed(mode)  # type: ignore[arg-type]
        assert deployed.placements[name].runs == "float"
        assert "kind 'log_sqrt2' has no expression" in deployed.placements[name].why
        assert sqnr(found.run(deployed), found.floating()) > 25


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"select": {"role": "attn_scores", "operand": "input"}, **HEADS}, "a scale for each head"),
        ({"select": {"role": "attn_scores", "operand": "input"}, **CHANNELS}, "a scale for each channel"),
        (
            {"select": {"role": ["attn_scores", "fc1"], "operand": "input"}, **CHANNELS, **ASYMMETRIC},
            "zero points of their own",
        ),
    ],
)
def test_what_one_scale_cannot_express(tiny: Tiny, tmp_path: Path, rule: dict[str, Any], why: str) -> None:
    found = made(tiny, tmp_path, rule)
    place = found.deployed("fast").placements[tiny.role("attn_scores", 1)]
    assert place.runs == "float"
    assert why in place.why
    assert sqnr(found.run(found.deployed("fast")), found.floating()) > 25


# What ships ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["vit", "swin", "deit_distilled"])
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    recipe = load_recipe(RECIPES / "papers.yaml")
    return Quantized.make(tmp_path_factory.mktemp(request.param), request.param, recipe)


def test_asymmetric_activations_run_on_product_kernels(once: Quantized, tmp_path: Path) -> None:
    deployed = once.deployed("fast")
    found = kernels(deployed.model, tmp_path)
    planned = {item.operator.name for item in once.quantized}
    wanted = [node for node in of_type(once.model, *PRODUCTS) if node.name in planned]
    products = deployed.products()
    assert sum(found[kernel] for kernel in INTEGER_KERNELS) == products["integer"] == len(wanted)
    assert sum(found[kernel] for kernel in FLOAT_KERNELS) == products["float"]  # Swin's patch merging
    onnx.checker.check_model(deployed.model, full_check=True)


@pytest.mark.parametrize("mode", ["faithful", "fast"])
def test_where_nothing_else_is_quantized_both_are_the_simulation(once: Quantized, mode: str) -> None:
    simulated = once.simulated(once.images).numpy()
    error = sqnr(simulated, once.floating())
    # One value on the other side of a tie weighs much in models as small as these.
    assert sqnr(once.run(once.deployed(mode)), simulated) > error + 3  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["faithful", "fast"])
def test_each_operator_is_compared_whose_output_is_not_quantized(once: Quantized, mode: str) -> None:
    """And in neither mode is anything but ties left: both have the simulation's codes."""
    found = compare(once.model, once.quantized, once.simulated, once.images, mode)  # type: ignore[arg-type]
    assert [d.operator for d in found] == [item.operator.name for item in once.quantized]
    assert not any(d.departs or d.largest > 1 or d.from_tie > 0.01 for d in found)


def test_softmax_has_unsigned_codes_without_a_zero_point(once: Quantized) -> None:
    """The one form of them that OpenVINO's attention takes."""
    model = once.deployed("fast").model
    values, producers = constants(model), {name: n for n in model.graph.node for name in n.output}
    readers = [n for n in of_type(model, "QuantizeLinear") if producers[n.input[0]].op_type == "Softmax"]
    assert len(readers) == len(of_type(model, "Softmax"))
    assert all(values[n.input[2]].dtype == np.uint8 and values[n.input[2]] == 0 for n in readers)


def test_zero_points_of_queries_are_reported(once: Quantized) -> None:
    placements = once.deployed("fast").placements
    by_role = {i.operator.role: placements[i.operator.name].why for i in once.quantized}
    assert "zero points of queries, keys or values cost time" in by_role["attn_scores"]


def test_tensorrt_has_no_zero_points(once: Quantized) -> None:
    for mode in ("faithful", "fast"):
        deployed = once.deployed(mode, "tensorrt")  # type: ignore[arg-type]
        values = constants(deployed.model)
        quantized = of_type(deployed.model, "QuantizeLinear", "DequantizeLinear")
        assert not any(values[node.input[2]].any() for node in quantized)
        assert any("TensorRT has no zero points" in place.why for place in deployed.placements.values())
        assert sqnr(once.run(deployed), once.floating()) > 25
