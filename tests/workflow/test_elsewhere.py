"""The workflow run in another folder, and as a module of another workflow."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from clones import ROOT, clone, environment, run
from your_model import prepare

from ptq2themoon.vocabulary.elsewhere import bring

HEAD = "An ONNX file of somebody else"
MADE = "results/models/encoder/vanilla/w8a8-n4-s0/qparams.json"
OTHER = """
configfile: "mine.yaml"

module moon:
    snakefile: "{snakefile}"
    config: config

use rule * from moon as moon_*

rule counted:
    default_target: True
    input: "{made}"
    output: "size.txt"
    shell: "wc -c < {{input}} > {{output}}"
"""


def test_only_what_a_folder_lacks_is_brought(tmp_path: Path) -> None:
    own = tmp_path / "recipes/vanilla.yaml"
    own.parent.mkdir()
    own.write_text("mine")
    bring(ROOT, tmp_path)
    assert own.read_text() == "mine"
    there = {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    assert {path.name for path in (tmp_path / "recipes").iterdir()} == there
    assert (tmp_path / "resources/published/imagenet.csv").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["--directory", "module"])
def test_results_lie_where_the_user_is_and_nothing_in_the_repository(tmp_path: Path, way: str) -> None:
    inputs, repository, mine = (tmp_path / name for name in ("inputs", "the repository", "mine"))
    for folder in (inputs, repository, mine):
        folder.mkdir()
    _, _, params = prepare(HEAD, inputs)
    clone(repository)
    before = sorted(repository.rglob("*"))
    (inputs / "photos").rename(mine / "photos")
    (inputs / "encoder.onnx").rename(mine / "encoder.onnx")
    (mine / "mine.yaml").write_text(yaml.safe_dump(params))
    snakefile, target = repository / "Snakefile", MADE
    if way == "module":
        (mine / "Snakefile").write_text(OTHER.format(snakefile=snakefile, made=MADE))
        words = ["--cores", "1"]
    else:
        words = ["--snakefile", str(snakefile), "--directory", ".", "--configfile", "mine.yaml", "--", target]
    seen = environment(mine, PYTHONPATH=str(repository / "src"))
    run(mine, "snakemake", *words, env=seen)
    assert (mine / MADE).is_file()
    assert (mine / "size.txt").is_file() == (way == "module")
    assert "Nothing to be done" in run(mine, "snakemake", *words, env=seen)
    made = [path for path in sorted(repository.rglob("*")) if path not in before]
    assert [path for path in made if "__pycache__" not in path.parts] == []
