"""The verifier on results of the study: whole they pass; a byte, a parameter or a file changed is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptq2themoon.config import Params
from ptq2themoon.errors import UserError
from ptq2themoon.provenance.study import decided, study_results
from ptq2themoon.provenance.verification import Verifier
from ptq2themoon.stage import Stage
from ptq2themoon.validation import read_yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "workflow/schemas/sidecar.schema.json").read_text())
PARAMS = Params.from_mapping(read_yaml(ROOT / "params.yaml"), "params.yaml", ROOT / "recipes")
HEAVY, LIGHT = "results/models/demo/study", "results/demo/study"


def made(stage: str, output: str, inputs: list[str], **parameters: Any) -> None:
    path = Path(output)
    with Stage(stage, inputs=[*map(Path, inputs)], outputs=[path], parameters=parameters) as running:
        running.temporary(path).write_text(f"{stage}: {inputs}\n")


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference, a run of the ablation and the figure drawn of it; the last sorts first by name."""
    monkeypatch.chdir(tmp_path)
    Path("fused.onnx").write_text("a graph")
    known = decided(PARAMS)
    made("study_reference", f"{HEAVY}/reference.safetensors", ["fused.onnx"], **known["study_reference"])
    inputs = ["fused.onnx", f"{HEAVY}/reference.safetensors"]
    made("study_ablation", f"{LIGHT}/z.csv", inputs, **known["study_ablation"], bits="w8a8")
    made("plot_study_ablation", f"{LIGHT}/a.png", [f"{LIGHT}/z.csv"], **known["plot_study_ablation"])


def problems(params: Params = PARAMS) -> list[str]:
    return list(Verifier(SCHEMA, Path("results/models")).problems(study_results(params, Path("results"))))


def changed(key: str, **values: Any) -> Params:
    return PARAMS.model_copy(update={key: getattr(PARAMS, key).model_copy(update=values)})


def test_whole_results_pass_in_the_order_in_which_they_are_made() -> None:
    assert problems() == []
    found = [result.stage for result in study_results(PARAMS, Path("results"))]
    assert found == ["study_reference", "study_ablation", "plot_study_ablation"]


def test_a_changed_byte_is_named_once() -> None:
    path = Path(f"{LIGHT}/z.csv")
    path.write_text(path.read_text().replace("s", "S"))
    (said,) = problems()
    assert said.startswith(f"{LIGHT}/z.csv: changed since it was made")


def test_a_result_of_another_input_is_named() -> None:
    Path("fused.onnx").write_text("another graph")
    assert [said.partition(": input ")[0] for said in problems()] == [
        f"{HEAVY}/reference.sidecar.json",
        f"{LIGHT}/z.sidecar.json",
    ]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (changed("study", images=601), ["images: recorded 600, expected 601"] * 2),
        (changed("plots", dpi=99), ["dpi: recorded 150, expected 99"]),
        (changed("attention", block=2), ["block: recorded -1, expected 2"] * 2),
    ],
)
def test_a_changed_parameter_is_caught_where_it_counts(params: Params, expected: list[str]) -> None:
    found = problems(params)
    assert len(found) == len(expected)
    for said, text in zip(found, expected, strict=True):
        assert f"parameters.{text}" in said


def test_without_results_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results of the study; run `snakemake study`"):
        study_results(PARAMS, tmp_path / "elsewhere")


@pytest.fixture(params=["{}", "[]", "not json"])
def broken(request: pytest.FixtureRequest) -> Iterator[Path]:
    path = Path(f"{LIGHT}/z.sidecar.json")
    path.write_text(request.param)
    return path


def test_a_broken_sidecar_is_named(broken: Path) -> None:
    with pytest.raises(UserError, match=f"{broken}: no sidecar of a stage"):
        problems()
