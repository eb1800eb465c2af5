"""The verifier's list of what `snakemake data_free` makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptq2themoon.provenance.expected import expected_data_free, expected_results
from ptq2themoon.vocabulary.data_free_layout import data_free_files
from ptq2themoon.vocabulary.parameters import Params, load_params

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def params() -> Params:
    return load_params(ROOT / "params.yaml", ROOT / "recipes")


def test_every_promised_file_is_an_output_of_one_stage() -> None:
    outputs = [path for result in expected_data_free(params()) for path in result.outputs]
    assert len(outputs) == len(set(outputs))
    assert set(map(Path, data_free_files(params()))) <= set(outputs)


def test_every_input_is_made_before_it_is_read() -> None:
    made = {path for result in expected_results(params()) for path in result.outputs}
    for result in expected_data_free(params()):
        assert not [path for path in result.inputs if path.parts[0] == "results" and path not in made]
        made |= set(result.outputs)


def test_a_recipe_is_recorded_with_its_methods() -> None:
    runs = [result for result in expected_data_free(params()) if result.stage == "data_free_run"]
    assert len(runs) == len(params().data_free.sources) * len(params().data_free.seeds)
    methods = {result.parameters["recipe"]: result.parameters["methods"] for result in runs}
    assert methods["papers"] == []
    assert methods["psaq_vit_noise"] == [{"name": "psaq_vit", "source": "noise"}]
