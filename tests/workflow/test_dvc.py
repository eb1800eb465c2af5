"""DVC around the workflow: a run is recorded, pushed and pulled; its metrics; an experiment with a list."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from clones import ROOT, run
from your_model import prepare

HEAD = "An ONNX file of somebody else"
METRICS = ("top1", "fast_top1", "agreement", "logits_sqnr_db")


def git(folder: Path, *words: str) -> str:
    name = ["-c", "user.name=test", "-c", "user.email=test", "-c", "commit.gpgsign=false"]
    return run(folder, "git", *name, *words)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose run is recorded and lies in a remote: a folder."""
    folder = tmp_path_factory.mktemp("recorded") / "repository"
    folder.mkdir()
    _, _, params = prepare(HEAD, folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "Makefile"):
        shutil.copy(ROOT / name, folder)
    (folder / "resources/demo").mkdir(parents=True)
    (folder / "resources/demo/README.md").write_text("a dependency of the stage")
    git(folder, "init", "-q", "-b", "main")
    run(folder, "dvc", "init", "-q")
    run(folder, "dvc", "remote", "add", "--default", "store", str(folder.parent / "store"))
    run(folder, "dvc", "repro")
    run(folder, "dvc", "push")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "recorded")
    return folder


@pytest.fixture(scope="module", autouse=True)
def words_for_snakemake() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNAKEMAKE_ARGS", "--cores 1")
        yield


@pytest.fixture(scope="module")
def pulled(recorded: Path) -> Path:
    """A clone after the commands of `make pull`."""
    clone = recorded.parent / "clone"
    git(recorded, "clone", "-q", str(recorded), str(clone))
    git(clone, "config", "user.name", "test")
    git(clone, "config", "user.email", "test")
    recipe = re.search(r"^pull:.*\n((?:\t.*\n)+)", (clone / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    for line in recipe[1].splitlines():
        run(clone, *line.replace("$(ARGS)", "").split())
    return clone


@pytest.mark.slow
def test_results_are_outside_of_git_and_come_back_by_a_pull(recorded: Path, pulled: Path) -> None:
    assert git(recorded, "ls-files", "results") == ""
    made = [path.relative_to(recorded) for path in (recorded / "results").rglob("*") if path.is_file()]
    assert Path("results/models/encoder/fused.onnx") in made
    for path in made:
        assert (pulled / path).read_bytes() == (recorded / path).read_bytes()


@pytest.mark.slow
def test_snakemake_takes_what_was_pulled_as_current_and_no_job_has_a_false_time(pulled: Path) -> None:
    assert "Nothing to be done" in run(pulled, "snakemake", "-n", "--cores", "1")
    assert not [path for path in (pulled / ".snakemake/metadata").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_metrics_are_printed(pulled: Path) -> None:
    found = json.loads((pulled / "results/logits_sqnr_db.json").read_text())["encoder"]
    shown = run(pulled, "dvc", "metrics", "show", "--md", "--precision", "4")
    for name, value in found.items():
        assert name in shown
        assert f"| {round(value, 4)} " in shown
    assert all(f"results/{name}.json" in shown for name in METRICS)


@pytest.mark.slow
def test_another_number_of_images_is_not_believed(pulled: Path) -> None:
    before = (pulled / "params.yaml").read_text()
    params = yaml.safe_load(before)
    params["evaluation"]["images"] = 5
    (pulled / "params.yaml").write_text(yaml.safe_dump(params))
    said = run(pulled, "python", "workflow/scripts/tools/verify.py", "--current", status=2)
    (pulled / "params.yaml").write_text(before)
    assert "evaluation.sidecar.json: parameters.images: recorded null, expected 5" in said


@pytest.mark.slow
def test_an_experiment_may_set_a_list(recorded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(recorded, tmp_path / "copy", symlinks=True)
    for key in ("name", "email"):
        git(folder, "config", f"user.{key}", "test")
    run(folder, "dvc", "exp", "run", "--name", "fewer", "-S", "recipes=[vanilla]")
    assert yaml.safe_load((folder / "params.yaml").read_text())["recipes"] == ["vanilla"]
    table = pd.read_csv(folder / "results/summary.csv")
    assert table["recipe"].tolist() == ["fp32", "vanilla"]
    shown = pd.read_csv(io.StringIO(run(folder, "dvc", "exp", "show", "--csv")))
    (column,) = [name for name in shown if "encoder.vanilla/" in name]  # of the one figure that features have
    assert shown[column].dropna().round(4).tolist()[0] == pytest.approx(table["logits_sqnr_db"][1], abs=1e-3)
