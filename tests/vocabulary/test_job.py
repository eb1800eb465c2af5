"""The declarations of the stages: described, and read by the command line as the workflow gives them."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
import tyro

from ptq2themoon.provenance.expected import expected_results
from ptq2themoon.vocabulary import stages
from ptq2themoon.vocabulary.job import Input, Job, Output, Setting, words
from ptq2themoon.vocabulary.layout import Run, pipeline_files, runs_of
from ptq2themoon.vocabulary.parameters import Params, load_params
from ptq2themoon.vocabulary.stages.calibrate import Calibrate
from ptq2themoon.vocabulary.stages.evaluate import AttentionMaps, Evaluate, Summarize
from ptq2themoon.vocabulary.stages.figures import PlotAttention, PlotErrors
from ptq2themoon.vocabulary.stages.origin import Export, ListEvaluation

ROOT = Path(__file__).parents[2]
STAGES = (Export, ListEvaluation, Calibrate, Evaluate, AttentionMaps, Summarize, PlotErrors, PlotAttention)


def declared() -> list[type[Job]]:
    """Every class that stands for one stage."""
    modules = [
        importlib.import_module(f"{stages.__name__}.{module.name}")
        for module in pkgutil.iter_modules(stages.__path__)
    ]
    found = {each for module in modules for each in vars(module).values() if isinstance(each, type)}
    return sorted((each for each in found if hasattr(each, "stage")), key=lambda each: each.__name__)


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(ROOT)
    return load_params(Path("params.yaml"))


@pytest.mark.parametrize("stage", declared(), ids=lambda stage: stage.__name__)
def test_every_stage_and_every_option_is_described(stage: type[Job]) -> None:
    assert (stage.__doc__ or "").endswith(".")
    for name, field in stage.model_fields.items():
        assert (field.description or "").endswith("."), name


@pytest.mark.parametrize("stage", declared(), ids=lambda stage: stage.__name__)
def test_every_stage_has_a_script_of_its_name_and_writes_something(stage: type[Job]) -> None:
    assert len(list((ROOT / "workflow/scripts").glob(f"*/{stage.stage}.py"))) == 1
    assert stage.marked(Output)


@pytest.mark.parametrize("stage", declared(), ids=lambda stage: stage.__name__)
def test_every_stage_has_a_command_line(stage: type[Job], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        tyro.cli(stage, args=["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in said for name in stage.model_fields)


def as_typed(stage: type[Job], params: Params, wildcards: object) -> list[str]:
    """The options as the workflow's command has them."""
    typed = []
    for name in stage.marked((Input, Output, Setting)):
        given = stage.given(name, params, wildcards)
        if given is not None and given is not False and words(given):
            typed += [f"--{name.replace('_', '-')}", *([] if given is True else words(given))]
    return typed


@pytest.mark.parametrize(
    "stage",
    [Export, ListEvaluation, Calibrate, Evaluate, AttentionMaps, Summarize, PlotErrors, PlotAttention],
)
def test_the_command_line_reads_the_job_that_the_verifier_expects(stage: type[Job], params: Params) -> None:
    run = runs_of(params, "demo")[0]
    assert tyro.cli(stage, args=as_typed(stage, params, run)) == stage.of(params, run)


def test_floating_point_has_no_quantization_parameters(params: Params) -> None:
    assert AttentionMaps.of(params, Run("demo")).qparams is None


def test_every_kept_file_is_an_output_of_one_stage(params: Params) -> None:
    made = [path.as_posix() for result in expected_results(params) for path in result.outputs]
    assert len(made) == len(set(made))
    assert set(pipeline_files(params)) <= set(made)


def test_every_input_is_made_before_it_is_read(params: Params) -> None:
    made: set[Path] = set()
    for result in expected_results(params):
        assert not [path for path in result.inputs if path.parts[0] == "results" and path not in made]
        made |= set(result.outputs)


def test_each_seed_and_each_width_has_files_of_its_own(params: Params) -> None:
    calibration = params.calibration.model_copy(update={"seeds": [0, 1]})
    several = params.model_copy(update={"bits": ["w8a8", "w4a4"], "calibration": calibration})
    made = [path for result in expected_results(several) for path in result.outputs]
    assert len(made) == len(set(made))
    keys = {run.key for run in runs_of(several, "demo")}
    assert keys == {"w8a8-n256-s0", "w8a8-n256-s1", "w4a4-n256-s0", "w4a4-n256-s1"}
