"""The verifier on results of the leaderboard: whole they pass; what was changed or is gone is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ptq2themoon.provenance.expected import Result, expected_leaderboard, expected_results
from ptq2themoon.provenance.verification import Verifier
from ptq2themoon.stage import Stage
from ptq2themoon.vocabulary.job import ANY
from ptq2themoon.vocabulary.leaderboard_layout import leaderboard_files, rows_of
from ptq2themoon.vocabulary.parameters import Params, load_params

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "workflow/schemas/sidecar.schema.json").read_text())
ROW = "results/demo/leaderboard/papers/w4a4-n32.json"
BOARD = {"recipes": ["papers", "repq_vit"], "bases": ["papers"], "bits": ["w8a8", "w4a4"]}
ROWS, RUNS = 4, 12


def params(**changes: object) -> Params:
    found = load_params(ROOT / "params.yaml", ROOT / "recipes")
    board = found.leaderboard.model_copy(update=BOARD | changes)
    return found.model_copy(update={"leaderboard": board})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file of the leaderboard, of stages that do no more than read and write."""
    folder = tmp_path_factory.mktemp("leaderboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(ROOT / "recipes", "recipes")
        Path("resources").symlink_to(ROOT / "resources")
        for result in expected_leaderboard(params()):
            write(result)
    return folder


def write(result: Result) -> None:
    for path in result.inputs:
        if not path.exists():  # of a stage before the leaderboard's
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(path.name)
    stage = Stage(
        result.stage,
        inputs=result.inputs,
        outputs=result.outputs,
        parameters=result.parameters,
        seed=result.seed,
        device="cpu" if result.device is ANY else result.device,
    )
    stage.code = result.code
    with stage as running:
        for path in result.outputs:
            running.temporary(path).write_text(f"{path}: {result.stage}")


@pytest.fixture(autouse=True)
def tree(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the whole tree, as the working directory."""
    shutil.copytree(whole, tmp_path / "tree", symlinks=True)
    monkeypatch.chdir(tmp_path / "tree")


def problems(asked: Params | None = None) -> list[str]:
    return list(Verifier(SCHEMA, Path("results/models")).problems(expected_leaderboard(asked or params())))


def test_whole_results_pass() -> None:
    assert problems() == []


def test_every_promised_file_is_an_output_of_one_stage() -> None:
    outputs = [path for result in expected_leaderboard(params()) for path in result.outputs]
    assert len(outputs) == len(set(outputs))
    assert set(map(Path, leaderboard_files(params()))) <= set(outputs)
    assert len(rows_of(params(), "demo")) == ROWS


def test_the_pipeline_promises_none_of_them() -> None:
    board = {path for result in expected_leaderboard(params()) for path in result.outputs}
    assert not board & {path for result in expected_results(params()) for path in result.outputs}


def test_every_input_is_made_before_it_is_read() -> None:
    made = {path for result in expected_results(params()) for path in result.outputs}
    for result in expected_leaderboard(params()):
        assert not [path for path in result.inputs if path.parts[0] == "results" and path not in made]
        made |= set(result.outputs)


def test_a_changed_byte_is_named_once() -> None:
    Path(ROW).write_text("another")
    (said,) = problems()
    assert said.startswith(f"{ROW}: changed since it was made")


def test_a_result_of_another_graph_is_named() -> None:
    Path("results/models/demo/fused.onnx").write_text("another graph")
    said = [line for line in problems() if "input results/models/demo/fused.onnx: recorded" in line]
    assert len(said) == RUNS + ROWS + len(BOARD["recipes"])


@pytest.mark.parametrize(
    ("changes", "expected", "count"),
    [
        ({"images": 501}, "parameters.images: recorded 500, expected 501", ROWS),
        ({"bases": []}, 'parameters.bases: recorded ["papers"], expected []', 1),
        ({"seeds": [0, 1]}, "parameters.seeds: recorded [0, 1, 2], expected [0, 1]", ROWS + 2),
        ({"recipes": ["papers"]}, "parameters.rows: recorded [", 1),
    ],
)
def test_a_changed_parameter_is_caught_where_it_counts(
    changes: dict[str, object], expected: str, count: int
) -> None:
    assert sum(expected in line for line in problems(params(**changes))) == count


def test_one_recipe_more_needs_its_own_rows_and_the_table() -> None:
    said = problems(params(recipes=["papers", "repq_vit", "ship"]))
    named = {line.partition(": ")[0] for line in said}
    assert {"results/demo/leaderboard/ship/w8a8-n32.json", "results/demo/leaderboard/ship/cost.csv"} <= named
    others = {name for name in named if "/ship/" not in name}
    assert others == {"results/leaderboard/leaderboard.sidecar.json"}


def test_times_are_no_inputs_and_a_clone_without_them_passes() -> None:
    assert not any(
        path.parts[0] == "benchmarks" for result in expected_leaderboard(params()) for path in result.inputs
    )
    assert not Path("benchmarks").exists()
