"""The ablation: a row is what calibrate and evaluate give; variants, means, and the bits that hurt."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_stages
from tiny_quantized import RECIPES, write_recipe
from tiny_stages import run_stage

from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.plan import plan
from ptq2themoon.quantize.tensors import QuantizedTensor
from ptq2themoon.selection.subject import Subject
from ptq2themoon.study.ablation import KEYS, METRICS, RUN, in_order, lost, means, points, with_references
from ptq2themoon.study.ablation_tables import ablation_markdown
from ptq2themoon.study.names import Variant
from ptq2themoon.vocabulary.recipes import Recipe, load_recipe
from ptq2themoon.vocabulary.study_parameters import Study

PER_CHANNEL = {"granularity": "per-channel", "observer": "minmax"}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stages.chain(tmp_path_factory.getbasetemp())


@pytest.fixture
def copy(chain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(chain, tmp_path / "copy", symlinks=True)


@pytest.fixture(scope="module")
def subject(chain: Path) -> Subject:
    return Subject(FusedModel.open(chain / "out"), "cpu")


def recipe(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml")


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path)


# A row ----------------------------------------------------------------------------------------------


def test_a_row_is_what_the_pipeline_s_own_stages_give(copy: Path) -> None:
    """The same calibration images, all 31 evaluation images: to the last digit written."""
    ended = run_stage(copy, "study_ablation", images=99, recipes=["recipes/layernorm.yaml"])
    assert ended.status == 0, ended.err
    (row,) = table(copy / "out/study/ablation/wide.csv").to_dict("records")
    metrics = json.loads((copy / "out/q/metrics.json").read_text())
    assert {name: row[name] for name in METRICS} == pytest.approx(
        {name: metrics[name] for name in METRICS}, rel=1e-7
    )
    assert [row[name] for name in RUN[:6]] == ["layernorm", "w8a8", "input", 24, 3, 31]


def test_floating_point_is_that_of_the_reference(copy: Path) -> None:
    assert run_stage(copy, "study_bits", images=99, bits=["w6a6"]).status == 0
    found = json.loads((copy / "out/study/fp32.json").read_text())
    assert found == json.loads((copy / "out/fp32/metrics.json").read_text())


def test_a_part_of_the_images_is_that_part_of_the_reference(copy: Path) -> None:
    """Its own reference, of 10 images listed alone, gives the same figures."""
    assert run_stage(copy, "study_bits", images=10, bits=["w6a6"]).status == 0
    part = json.loads((copy / "out/study/fp32.json").read_text())
    rows = (copy / "out/evaluation.csv").read_text().splitlines()
    (copy / "out/evaluation.csv").write_text("\n".join([rows[0], *rows[1::3][:10]]) + "\n")
    assert run_stage(copy, "reference").status == 0
    alone = json.loads((copy / "out/fp32/metrics.json").read_text())
    assert part == {name: pytest.approx(value) for name, value in alone.items()}


@pytest.mark.parametrize("stage", ["study_ablation", "evaluate", "operator_errors", "verify_runtime"])
def test_a_reference_of_other_images_is_refused(copy: Path, stage: str) -> None:
    manifest = copy / "out/evaluation.csv"
    manifest.write_text("\n".join(manifest.read_text().splitlines()[:-1]) + "\n")
    ended = run_stage(copy, stage)
    assert ended.status == 2
    said = "out/fp32/reference.safetensors: was made for another manifest than is given; run the reference"
    assert said in ended.err


def test_a_reference_with_attention_of_another_block_is_refused(copy: Path) -> None:
    ended = run_stage(copy, "evaluate", block=0)
    said = "out/fp32/reference.safetensors: was made for another attention than is given; run the reference"
    assert said in ended.err


def test_a_recipe_for_a_deeper_model_is_named(copy: Path) -> None:
    ended = run_stage(copy, "study_ablation", recipes=["recipes/customized.yaml"])
    assert ended.status == 2
    assert "recipes/customized.yaml: rules[0].select.block: selects no operator with 5" in ended.err


def test_what_does_not_fit_is_named_before_anything_is_computed(copy: Path) -> None:
    """The first recipe would take its time."""
    recipes = ["recipes/layernorm.yaml", "recipes/customized.yaml"]
    ended = run_stage(copy, "study_ablation", recipes=recipes)
    assert ended.status == 2
    assert "calibrate" not in ended.err


def test_a_weight_s_channels_count_whatever_rule_gives_them(tmp_path: Path) -> None:
    """The axis may come from the defaults of what a recipe extends."""
    assert write_recipe(tmp_path, {"select": {"role": ["fc2"]}, **PER_CHANNEL}).has_weight_channels
    assert write_recipe(tmp_path, granularity="per-channel", observer="minmax").has_weight_channels
    assert not write_recipe(
        tmp_path, {"select": {"role": ["fc2"], "operand": ["input"]}, **PER_CHANNEL}
    ).has_weight_channels
    counted = {name for name in Study().recipes if recipe(name).has_weight_channels}
    assert counted == {*Study().recipes} - {"vanilla", "layernorm", "layernorm_all_activations"}


# Variants -------------------------------------------------------------------------------------------


def tensors(
    subject: Subject, name: str, variant: Variant
) -> dict[tuple[str | None, int | None, str, int], QuantizedTensor]:
    planned = plan(subject.fused.operators, subject.fused.nodes, subject.read_as(recipe(name), variant), 8, 8)
    return {
        (item.operator.name, item.operator.block, tensor.operand, tensor.position): tensor
        for item in planned
        for tensor in item.tensors
    }


def test_the_twin_differs_in_the_axis_of_linear_weights_alone(subject: Subject) -> None:
    ours, twin = (tensors(subject, "layernorm_all", variant) for variant in ("input", "output"))
    assert {tensor.spec.weight_axis for tensor in twin.values()} == {"output"}
    for tensor in twin.values():  # of a tensor without weights' channels it says nothing
        tensor.spec = replace(tensor.spec, weight_axis="input")
    changed = {key for key in ours if ours[key] != twin[key]}
    roles = {operator.name: operator.role for operator in subject.fused.operators}
    assert {roles[name] for name, *_ in changed} == {"qkv", "proj", "fc1", "fc2"}
    assert {operand for _, _, operand, _ in changed} == {"weight"}
    assert {(ours[key].axis, twin[key].axis) for key in changed} == {(0, 1)}


def test_once_leaves_every_output_but_the_model_s_to_its_readers(subject: Subject) -> None:
    before, once = (tensors(subject, "layernorm_all", variant) for variant in ("input", "once"))
    gone = before.keys() - once.keys()
    assert {key[2] for key in gone} == {"output"}
    assert {key for key in once if key[2] == "output"} == {("head", None, "output", 0)}
    assert all(once[key] == before[key] for key in once)


def test_only_the_model_s_output_is_last(subject: Subject) -> None:
    assert [name for name, node in subject.fused.nodes.items() if node.is_last] == ["head"]


# Points, means, order -------------------------------------------------------------------------------


def metrics_of(**known: float | None) -> Metrics:
    return Metrics(**{**dict.fromkeys(Metrics.model_fields), "version": 1, "images": 100, **known})


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"top1": 80.0, "agreement": 90.0, "output_cosine": 0.9}, ("top1", 10.0)),
        ({"top1": None, "agreement": 90.0, "output_cosine": 0.9}, ("agreement", 10.0)),
        ({"top1": None, "agreement": None, "output_cosine": 0.75}, ("output_cosine", 25.0)),
    ],
)
def test_points_are_lost_in_the_first_measure_that_there_is(
    metrics: dict[str, float | None], expected: tuple[str, float]
) -> None:
    full = metrics_of(top1=90.0 if metrics["top1"] is not None else None)
    assert lost(metrics_of(**metrics), full) == pytest.approx(expected)
    assert points(metrics_of(**metrics))[0] == expected[0]


def runs(**changes: list) -> pd.DataFrame:
    rows = {
        "recipe": ["b", "a", "b", "a"],
        "bits": ["w8a8"] * 4,
        "variant": ["input"] * 4,
        "calibration_images": [8] * 4,
        "seed": [0, 0, 1, 1],
        "images": [100] * 4,
        **{name: [1.0, 2.0, 3.0, 2.0] for name in METRICS},
    }
    return pd.DataFrame(rows | changes)


def test_means_and_deviations_are_over_seeds() -> None:
    found = means(runs()).set_index("recipe")
    assert found["top1"].to_dict() == {"b": 2.0, "a": 2.0}
    assert found["top1_std"].to_dict() == pytest.approx({"b": np.std([1, 3], ddof=1), "a": 0.0})
    assert found["seeds"].tolist() == [2, 2]


def test_what_a_model_has_no_figure_for_stays_empty() -> None:
    found = means(runs(top1=[np.nan] * 4))
    assert found[["top1", "top1_std"]].isna().all(axis=None)
    assert found["agreement"].notna().all()


def test_rows_come_in_the_order_asked_for_widest_bits_first() -> None:
    both = pd.concat([runs(), runs(bits=["w4a4"] * 4)])
    found = in_order(means(both), ["a", "b"])
    assert list(zip(found["bits"], found["recipe"], strict=True)) == [
        ("w8a8", "a"), ("w8a8", "b"), ("w4a4", "a"), ("w4a4", "b"),
    ]  # fmt: skip


def test_the_table_takes_unchanged_rows_from_the_plain_one(chain: Path) -> None:
    """layernorm and layernorm_fc2 of the runs; vanilla and auto of the plain ones, at their bits."""
    found = table(chain / "out/study/ablation_input.csv")
    assert list(zip(found["recipe"], found["bits"], strict=True)) == [
        ("layernorm", "w8a8"), ("layernorm_fc2", "w8a8"), ("fp32", "w8a8"),
        ("vanilla", "w3a3"), ("auto", "w3a3"), ("fp32", "w3a3"),
    ]  # fmt: skip
    wide = table(chain / "out/study/ablation/wide.csv").set_index("recipe")
    row = found.set_index("recipe").loc["layernorm_fc2"]
    assert row["output_cosine"] == wide.loc["layernorm_fc2", "output_cosine"]
    assert found["top1_std"].isna().all()  # one seed


def test_a_run_given_twice_is_refused(copy: Path) -> None:
    ended = run_stage(copy, "study_table", runs=["out/study/ablation/wide.csv"] * 2)
    assert ended.status == 2
    assert "--runs: layernorm, w8a8, seed 3: given twice" in ended.err


def test_the_published_figures_stand_beside_ours() -> None:
    published = pd.read_csv(tiny_stages.ROOT / "resources/study/ablation.csv")
    full = metrics_of(top1=93.21, top5=99.0, loss=0.3, agreement=100.0)
    rows = with_references(means(runs(recipe=["layernorm", "mine"] * 2)), full, published)
    assert rows["published_top1"].tolist() == pytest.approx([64.06, np.nan, 75.85], nan_ok=True)
    assert rows.iloc[-1][["recipe", "top1", "output_cosine"]].tolist() == ["fp32", 93.21, 1.0]
    text = ablation_markdown(rows, "tiny", "input")
    lines = text.splitlines()
    (ours,) = [line for line in lines if "`layernorm`" in line]
    assert ours.startswith("| LayerNorm | `layernorm` | 2.00 ± 1.41 |")
    assert ours.endswith("| 64.06 |")
    (mine,) = [line for line in lines if "`mine`" in line]
    assert mine.endswith("| – |")
    assert lines[-1].startswith("| full precision | `fp32` | 93.21 |")
    assert lines[-1].endswith("| 75.85 |")


def test_every_published_row_is_one_of_our_recipes() -> None:
    """By its description: what the study had per channel is what the recipe has."""
    for row in pd.read_csv(tiny_stages.ROOT / "resources/study/ablation.csv").itertuples():
        if row.recipe == "fp32":
            continue
        said = recipe(row.recipe)
        rules = [located.rule for located in said.rules if located.rule.granularity == "per-channel"]
        roles = {role for rule in rules for role in rule.select.role or ()}
        for layer in ("fc1", "fc2", "qkv", "proj"):
            assert (layer in roles) == getattr(row, layer).startswith("per-channel"), (row.recipe, layer)
        assert ("norm1" in roles) == (row.layernorm == "per-channel")
        blocks = [rule.select.block for rule in rules if rule.select.role == ["fc2"]]
        expected = {"layernorm_fc2_0_to_5": [0, 1, 2, 3, 4, 5], "customized": [5, 6]}
        assert (blocks[0] if blocks else None) == expected.get(row.recipe), row.recipe


# Bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "narrow", "more"), [(-1000, "w6a6", True), (200, "w3a3", False)])
def test_the_first_bits_that_lose_more_or_the_last(copy: Path, loss: float, narrow: str, more: bool) -> None:
    assert run_stage(copy, "study_bits", loss=float(loss)).status == 0
    found = json.loads((copy / "out/study/bits.json").read_text())
    assert (found["narrow"], found["loses_more"]) == (narrow, more)
    assert [entry["bits"] for entry in found["tried"]] == ["w6a6", "w3a3"][: 1 if more else 2]
    assert {entry["measure"] for entry in found["tried"]} == {"top1"}


def test_keys_tell_rows_apart(chain: Path) -> None:
    found = table(chain / "out/study/ablation_input.csv")
    assert not found.duplicated(list(KEYS)).any()
