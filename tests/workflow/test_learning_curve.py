"""`snakemake learning_curve` on a tiny model: whole, verified, and nothing runs that need not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_run
import yaml
from clones import run
from PIL import Image
from tiny_run import snakemake, tiny_clone

pytestmark = pytest.mark.slow

PARAMS: dict[str, Any] = {
    **tiny_run.PARAMS,
    "learning_curve": {
        "recipes": ["adaround", "qdrop_searched"], "bits": "w3a3", "iterations": [0, 2, 5], "seeds": [0, 1],
        "calibration_images": 5, "images": 30,
    },
}  # fmt: skip
FOLDER = "results/tiny/learning_curve"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone after one whole run."""
    folder = tiny_clone(tmp_path_factory.mktemp("clone"))
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    snakemake(folder, "learning_curve")
    return folder


def test_each_recipe_has_a_row_for_each_number_of_iterations(tree: Path) -> None:
    tables = [pd.read_csv(path) for path in sorted((tree / FOLDER).glob("*.csv"))]
    assert [(t["recipe"].unique().tolist(), t["seed"].unique().tolist()) for t in tables] == [
        ([recipe], [seed]) for recipe in ("adaround", "qdrop_searched") for seed in (0, 1)
    ]
    for table in tables:
        assert table["iterations"].tolist() == [0, 2, 5]
        assert table["logits_sqnr_db"].nunique() == 3


def test_the_figure_is_there(tree: Path) -> None:
    image = Image.open(tree / FOLDER / "accuracy_by_iterations.png").convert("RGB")
    assert len(image.getcolors(maxcolors=1 << 24)) > 20


def test_a_second_run_changes_nothing(tree: Path) -> None:
    assert "Nothing to be done" in snakemake(tree, "learning_curve")


def test_the_verifier_passes_and_then_catches_another_table(tree: Path) -> None:
    verify = ("python", "workflow/scripts/tools/verify.py", "--learning-curve")
    run(tree, "snakemake", "--cores", "2")
    assert run(tree, *verify).endswith(" results verified\n")
    path = min((tree / FOLDER).glob("*.csv"))
    before = path.read_text()
    path.write_text(before.replace(",5,", ",6,", 1))
    said = run(tree, *verify, status=2)
    path.write_text(before)
    assert f"{path.name}: changed since it was made" in said
