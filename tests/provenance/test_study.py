"""The verifier on results of the study: whole they pass; what was changed or is gone is named."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ptq2themoon.provenance.study import decided, study_results
from ptq2themoon.provenance.verification import Verifier
from ptq2themoon.stage import Stage
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.parameters import Params
from ptq2themoon.vocabulary.study_layout import PARTS, study_files, table_rows
from ptq2themoon.vocabulary.validation import read_yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "workflow/schemas/sidecar.schema.json").read_text())
PARAMS = Params.from_mapping(read_yaml(ROOT / "params.yaml"), "params.yaml", ROOT / "recipes")
LIGHT = "results/demo/study"
RUN, FIGURE = f"{LIGHT}/ablation/wide-input-s0.csv", f"{LIGHT}/ablation_input.png"
RUNS = 21  # of the ablation: three seeds of three and of four parts


def made(
    stage: str, outputs: list[str], inputs: list[str], seed: int | None = None, **parameters: Any
) -> None:
    paths, read = [Path(output) for output in outputs], [Path(path) for path in inputs]
    with Stage(stage, inputs=read, outputs=paths, parameters=parameters, seed=seed) as running:
        for path in paths:
            running.temporary(path).write_text(f"{stage}: {inputs}\n")


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of the study, of stages that do no more than read and write."""
    monkeypatch.chdir(tmp_path)
    Path("fused.onnx").write_text("a graph")
    known, study = decided(PARAMS), PARAMS.study
    reference, table = "reference.safetensors", f"{LIGHT}/ablation_input.csv"
    Path(reference).write_text("of the pipeline")
    Path("results/models/demo").mkdir(parents=True)
    for width, part, seed in product(PARTS, PARTS["narrow"], study.seeds):
        if part in PARTS[width]:
            drawn = f"results/models/demo/calibration-n{study.calibration_images}-s{seed}.safetensors"
            Path(drawn).touch()
            recipes = study.recipes if part in ("input", "once") else ["some"]
            more = {"recipes": recipes, "bits": "w8a8" if width == "wide" else "w4a4"}
            outputs = [f"{LIGHT}/ablation/{width}-{part}-s{seed}.csv"]
            inputs = ["fused.onnx", reference, drawn]
            made("study_ablation", outputs, inputs, seed, **known["study_ablation"], **more)
    made("study_table", [table], [RUN], recipes=table_rows(study, "input"))
    others = [path.as_posix() for path in study_files(["demo"]) if path.as_posix() not in (table, FIGURE)]
    others.sort(key=lambda path: not path.endswith(".png"))  # whose sidecars are called like no other's
    made("others", others, [table])
    made("plot_study_ablation", [FIGURE], [table], **known["plot_study_ablation"])


def problems(params: Params = PARAMS) -> list[str]:
    return list(Verifier(SCHEMA, Path("results/models")).problems(study_results(params, Path("results"))))


def changed(key: str, **values: Any) -> Params:
    return PARAMS.model_copy(update={key: getattr(PARAMS, key).model_copy(update=values)})


def test_whole_results_pass_in_the_order_in_which_they_are_made() -> None:
    assert problems() == []
    found = [result.stage for result in study_results(PARAMS, Path("results"))]
    assert found.count("study_ablation") == RUNS
    assert found.index("study_ablation") < found.index("study_table")
    assert found[-1] in ("others", "plot_study_ablation")


def test_a_changed_byte_is_named_once() -> None:
    path = Path(RUN)
    path.write_text(path.read_text().replace("s", "S"))
    (said,) = problems()
    assert said.startswith(f"{RUN}: changed since it was made")


def test_a_result_of_another_input_is_named() -> None:
    Path("fused.onnx").write_text("another graph")
    said = [line.partition(": input ")[0] for line in problems()]
    assert said[0].startswith(f"{LIGHT}/ablation/")
    assert len(said) == RUNS


@pytest.mark.parametrize(
    ("params", "expected", "count"),
    [
        (changed("study", images=501), "parameters.images: recorded 500, expected 501", RUNS),
        (changed("study", bits=["w7a7", "w4a4"]), 'parameters.bits: recorded "w8a8", expected "w7a7"', 9),
        (changed("study", recipes=["vanilla"]), "parameters.recipes: recorded [", 9 + 1),
        (changed("study", calibration_images=65), "calibration-n65-s1.safetensors expected, not recorded", 7),
        (changed("plots", dpi=99), "parameters.dpi: recorded 150, expected 99", 1),
        (changed("attention", block=2), "parameters.block: recorded -1, expected 2", RUNS),
    ],
)
def test_a_changed_parameter_is_caught_where_it_counts(params: Params, expected: str, count: int) -> None:
    assert sum(expected in line for line in problems(params)) == count


def test_a_seed_more_needs_its_runs() -> None:
    with pytest.raises(UserError, match=r"ablation/wide-input-s3\.csv: no stage's sidecar tells of it"):
        problems(changed("study", seeds=[0, 1, 2, 3]))


def test_a_file_that_was_never_made_is_named() -> None:
    for path in (Path(FIGURE), Path(f"{FIGURE}.sidecar.json")):
        path.unlink()
    with pytest.raises(UserError, match=f"{FIGURE}: no stage's sidecar tells of it"):
        problems()


def test_without_results_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results of the study; run `snakemake study`"):
        study_results(PARAMS, tmp_path / "elsewhere")


@pytest.mark.parametrize("text", ["{}", "[]", "not json"])
def test_a_broken_sidecar_is_named(text: str) -> None:
    path = Path(RUN).with_suffix(".sidecar.json")
    path.write_text(text)
    with pytest.raises(UserError, match=f"{path}: no sidecar of a stage"):
        problems()
