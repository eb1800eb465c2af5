"""docs/recipes.md, "From a recipe to a result", as printed: a recipe is added, changed and compared."""

from __future__ import annotations

import re
from pathlib import Path

import finished_run
import pandas as pd
import pytest
import yaml
from clones import ROOT, run
from tiny_run import snakemake

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")


def test_a_researcher_adds_a_recipe_changes_it_and_compares(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = finished_run.copy(finished_run.finished(tmp_path_factory.getbasetemp()), tmp_path / "clone")
    mine = folder / "recipes/mine.yaml"
    mine.write_text(re.findall(r"```yaml\n(.*?)```", PAGE, re.S)[0])
    params = yaml.safe_load((folder / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump({**params, "recipes": ["papers", "mine"]}))
    said = snakemake(folder)
    assert "papers: calibrate" not in said, "only what belongs to the new recipe is made"
    assert pd.read_csv(folder / "results/summary.csv")["recipe"].tolist() == ["fp32", "papers", "mine"]

    keep, again, compare = re.findall(r"```\n(mkdir before.*)\n(snakemake .*?) +#.*\n(.*)\n```", PAGE)[0]
    run(folder, "bash", "-c", keep)
    assert "no difference beyond noise" in run(folder, *compare.split())
    mine.write_text(mine.read_text().replace("percentile: 99.99", "percentile: 90"))
    run(folder, *again.split())
    said = run(folder, *compare.split(), status=1)
    assert re.search(r"mine.*percentile", said)
    assert "the results differ" in said
    assert "papers" not in said
