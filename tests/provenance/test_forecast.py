"""What a plan says of a run, against what finished runs were."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ptq2themoon.provenance.expected import jobs_of
from ptq2themoon.provenance.forecast import Line, as_markdown, forecast
from ptq2themoon.vocabulary import cost_model
from ptq2themoon.vocabulary.parameters import Params
from ptq2themoon.vocabulary.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parents[2]
IMAGENET = ROOT / "workflow/costs/imagenet.yaml"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def planned(file: Path = ROOT / "params.yaml", **changes: Any) -> dict[str, Line]:
    mapping = read_yaml(file)
    params = Params.from_mapping({**mapping, **changes}, str(file))
    return {line.stage: line for line in forecast(params, jobs_of(params))}


def test_jobs_are_those_of_the_default_run() -> None:
    with open(ROOT / "results/example/timings.csv", newline="") as file:
        counted = {row["rule"]: int(row["jobs"]) for row in csv.DictReader(file)}
    lines = planned()
    assert {name: line.jobs for name, line in lines.items() if name != "all"} == {
        name: jobs for name, jobs in counted.items() if name != "from first to last"
    }
    assert lines["all"].jobs == counted["from first to last"]
    assert lines["all"].hours == pytest.approx(sum(line.hours for line in lines.values()) / 2)


def test_what_is_planned_is_what_two_runs_took_within_half() -> None:
    """The committed comparison, which `plan.py --against` wrote."""
    for name in ("plan_default", "plan_study"):
        table = pd.read_csv(ROOT / f"results/example/benchmarks/{name}.csv").set_index("stage")
        assert table.loc["all", "jobs"] > 25
        assert 0.67 < table.loc["all", "planned_s"] / table.loc["all", "measured_s"] < 1.5
        assert 0.67 < table.loc["all", "planned_mb"] / table.loc["all", "measured_mb"] < 1.5


def test_more_images_take_longer_and_shards_only_their_start() -> None:
    evaluation = {"images": 2000, "batch_size": 25}
    few, many = planned(), planned(evaluation={**evaluation, "images": 20_000})
    row = cost_model.row_of("reference")
    more = (many["reference"].hours - few["reference"].hours) * 3600
    assert more == pytest.approx(9 * (few["reference"].hours * 3600 - row.fixed_s), rel=1e-6)
    assert many["reference"].stored == pytest.approx(10 * few["reference"].stored)
    shared = planned(evaluation={**evaluation, "shards": 4})
    assert shared["evaluate_part"].jobs == 4 * few["evaluate"].jobs
    both = shared["evaluate_part"].hours + shared["evaluate"].hours
    start = cost_model.row_of("evaluate").fixed_s / 3600 * few["evaluate"].jobs
    assert both == pytest.approx(few["evaluate"].hours + 4 * start, rel=1e-6)
    assert shared["all"].stored == pytest.approx(few["all"].stored)


def test_an_unknown_recipe_or_architecture_is_dear() -> None:
    known = cost_model.row_of("calibrate", "vanilla")
    assert cost_model.row_of("calibrate", "mine").s_per_work > known.s_per_work
    mapping = read_yaml(IMAGENET)
    mapping["models"] = {
        "mine": {"source": "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k", "dataset": "imagenet"}
    }
    params = Params.from_mapping(mapping, "mine.yaml")
    assert cost_model.size_of(params, "mine") == cost_model._sizes()[cost_model.LARGEST]


def test_sizes_are_those_that_papers_print() -> None:
    params = Params.from_mapping(read_yaml(IMAGENET), "imagenet.yaml")
    printed = {"deit_tiny": (5.7, 1.25), "deit_base": (86.6, 17.5), "swin_tiny": (28.3, 4.5)}
    for model, (parameters, gmacs) in printed.items():
        size = cost_model.size_of(params, model)
        assert (size.parameters_m, size.gmacs) == pytest.approx((parameters, gmacs), rel=0.05)


def test_the_page_shows_the_plan_of_imagenet_as_the_tool_prints_it() -> None:
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- plan -->\n(.*?)\n<!-- end -->", page, re.S)
    lines = planned(IMAGENET)
    assert shown.strip().splitlines() == as_markdown(list(lines.values()))
    assert lines["calibrate"].jobs == 7 * 20 * 5 * 3


def test_memory_does_not_grow_with_the_images_as_the_page_says() -> None:
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    for _, rows in pd.read_csv(ROOT / "results/example/benchmarks/evaluation_memory.csv").groupby("stage"):
        assert rows["images"].tolist() == [100, 1000, 10_000]
        assert f"| {' | '.join(map(str, rows['memory_mb']))} |" in page
        assert rows["memory_mb"].max() < 1.05 * rows["memory_mb"].min()
