"""The verifier on results of the study: whole they pass; what was changed or is gone is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ptq2themoon.provenance.expected import expected_study
from ptq2themoon.provenance.verification import Verifier
from ptq2themoon.stage import Stage
from ptq2themoon.vocabulary.job import ANY
from ptq2themoon.vocabulary.parameters import Params, load_params
from ptq2themoon.vocabulary.study_layout import study_files

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "workflow/schemas/sidecar.schema.json").read_text())
LIGHT = "results/demo/study"
RUN, FIGURE = f"{LIGHT}/ablation/wide-input-s0.csv", f"{LIGHT}/ablation_input.png"
RUNS = 21  # of the ablation: three seeds of three and of four parts
SEEN_LATER = {"bits": "w4a4", "machine": {}}  # parameters that only show while a stage runs
AUTO = (ROOT / "recipes/vanilla.yaml").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file of the study, of stages that do no more than read and write."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(ROOT / "recipes", "recipes")
        shutil.copyfile(ROOT / "params.yaml", "params.yaml")
        Path("resources").symlink_to(ROOT / "resources")
        Path(LIGHT).mkdir(parents=True)
        Path(LIGHT, "auto.yaml").write_text(AUTO)
        for result in expected_study(load_params(Path("params.yaml"))):
            for path in result.inputs:
                if not path.exists():  # of a stage before the study's
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(path.name)
            known = {k: SEEN_LATER[k] if v is ANY else v for k, v in result.parameters.items()}
            device = "cpu" if result.device is ANY else result.device
            stage = Stage(
                result.stage,
                inputs=result.inputs,
                outputs=result.outputs,
                parameters=known,
                seed=result.seed,
                device=device,
            )
            with stage as running:
                for path in result.outputs:
                    text = AUTO if path.suffix == ".yaml" else f"{path}: {result.stage}"
                    running.temporary(path).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def tree(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the whole tree, as the working directory."""
    shutil.copytree(whole, tmp_path / "tree", symlinks=True)
    monkeypatch.chdir(tmp_path / "tree")


def problems(params: Params | None = None) -> list[str]:
    results = expected_study(params or load_params(Path("params.yaml")))
    return list(Verifier(SCHEMA, Path("results/models")).problems(results))


def changed(key: str, **values: object) -> Params:
    params = load_params(ROOT / "params.yaml", ROOT / "recipes")
    return params.model_copy(update={key: getattr(params, key).model_copy(update=values)})


def test_whole_results_pass() -> None:
    assert problems() == []


def test_every_promised_file_is_an_output_of_one_stage() -> None:
    outputs = [path for result in expected_study(load_params(Path("params.yaml"))) for path in result.outputs]
    assert len(outputs) == len(set(outputs))
    assert set(study_files(["demo"])) <= set(outputs)


def test_a_changed_byte_is_named_once() -> None:
    path = Path(RUN)
    path.write_text(path.read_text().replace("s", "S"))
    (said,) = problems()
    assert said.startswith(f"{RUN}: changed since it was made")


def test_a_result_of_another_input_is_named() -> None:
    Path("results/models/demo/fused.onnx").write_text("another graph")
    said = [line.partition(": input ")[0] for line in problems()]
    assert sum(line.startswith(f"{LIGHT}/ablation/") for line in said) == RUNS


@pytest.mark.parametrize(
    ("params", "expected", "count"),
    [
        (changed("study", images=501), "parameters.images: recorded 500, expected 501", RUNS + 1),
        (changed("study", bits=["w7a7", "w4a4"]), 'parameters.bits: recorded "w8a8", expected "w7a7"', 9 + 2),
        (changed("study", recipes=["vanilla", "layernorm_fc1"]), "parameters.recipes: recorded [", 19),
        (changed("study", calibration_images=65), "calibration-n65-s1.safetensors expected, not recorded", 7),
        (changed("study", share=0.5), "parameters.share: recorded 0.9, expected 0.5", 2),
        (changed("plots", dpi=99), "parameters.dpi: recorded 150, expected 99", 11),
        (changed("attention", block=2), "parameters.block: recorded -1, expected 2", RUNS + 1 + 5 + 1),
    ],
)
def test_a_changed_parameter_is_caught_where_it_counts(params: Params, expected: str, count: int) -> None:
    assert sum(expected in line for line in problems(params)) == count


def test_a_seed_more_needs_its_runs() -> None:
    said = problems(changed("study", seeds=[0, 1, 2, 3]))
    assert any(line.startswith(f"{LIGHT}/ablation/wide-input-s3.csv: missing") for line in said)


def test_a_file_that_was_never_made_is_named() -> None:
    for path in (Path(FIGURE), Path(f"{FIGURE}.sidecar.json")):
        path.unlink()
    (said,) = problems()
    assert said == f"{FIGURE}: missing; run `snakemake {FIGURE}`"


@pytest.mark.parametrize("text", ["{}", "[]", "not json"])
def test_a_broken_sidecar_is_named(text: str) -> None:
    path = Path(RUN).with_suffix(".sidecar.json")
    path.write_text(text)
    assert any(line.startswith(f"{path}: ") for line in problems())
