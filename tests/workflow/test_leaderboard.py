"""`snakemake leaderboard` on a tiny model: whole, verified, and nothing runs that need not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_run
import yaml
from clones import ROOT, clone, run
from PIL import Image
from tiny_run import snakemake, tiny_clone
from tiny_stages import write_weights

pytestmark = pytest.mark.slow

BOARD: dict[str, Any] = {
    "recipes": ["papers", "vanilla"], "bases": ["papers"], "bits": ["w8a8", "w3a3"], "seeds": [0, 1],
    "calibration_images": 4, "images": 30,
}  # fmt: skip
PARAMS: dict[str, Any] = {
    **tiny_run.PARAMS,
    "leaderboard": BOARD,
}
ROWS = [f"results/tiny/leaderboard/{r}/{bits}-n4.json" for r in BOARD["recipes"] for bits in BOARD["bits"]]
TABLE = "results/leaderboard/leaderboard.csv"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone after one whole run."""
    folder = tiny_clone(tmp_path_factory.mktemp("clone"))
    write_params(folder)
    snakemake(folder, "all", "leaderboard")
    return folder


def write_params(folder: Path, **changes: Any) -> None:
    params = {**PARAMS, "leaderboard": {**BOARD, **changes}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def planned(folder: Path, *options: str) -> dict[str, int]:
    """Jobs by rule that a dry run would start."""
    table = snakemake(folder, "--dry-run", *options).rpartition("Job stats:")[2].partition("\n\n")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def test_every_row_is_there_and_judged(tree: Path) -> None:
    table = pd.read_csv(tree / TABLE)
    rows = [(r, bits) for r in BOARD["recipes"] for bits in BOARD["bits"]]
    assert list(zip(table["recipe"], table["bits"], strict=True)) == [("fp32", "fp32"), *rows]
    quantized = table[1:]
    assert set(quantized["protocol"]) == {"products", "all-operators"}
    assert (quantized["seeds"].unique(), quantized["images"].unique()) == ([2], [30])
    assert quantized[["top1_std", "logits_sqnr_db", "attention_cosine", "fp32_p"]].notna().all(axis=None)
    assert quantized["runs_on"].str.startswith("integer kernels").all()
    text = (tree / "results/leaderboard/leaderboard.md").read_text()
    assert text.index("### tiny, protocol `products`") < text.index("### tiny, protocol `all-operators`")


def test_what_calibration_took_is_kept_apart(tree: Path) -> None:
    costs = pd.read_csv(tree / "results/leaderboard/cost.csv")
    assert len(costs) == len(ROWS) * len(BOARD["seeds"])
    assert (costs["seconds"] > 0).all()
    assert "seconds" not in pd.read_csv(tree / TABLE).columns


def test_figures_and_published_figures_are_there(tree: Path) -> None:
    for name in ("accuracy_by_bits", "accuracy_by_size", "accuracy_by_cost"):
        image = Image.open(tree / f"results/tiny/leaderboard/{name}.png").convert("RGB")
        assert len(image.getcolors(maxcolors=1 << 24)) > 20
        assert (tree / f"results/tiny/leaderboard/{name}.svg").read_text().rstrip().endswith("</svg>")
    assert "## W8A8" in (tree / "results/leaderboard/published.md").read_text()


def test_the_run_without_a_target_makes_none_of_it(tree: Path, tmp_path: Path) -> None:
    fresh = clone(tmp_path)
    write_weights(fresh / "weights")
    (fresh / "resources").symlink_to(ROOT / "resources")
    write_params(fresh)
    jobs = planned(fresh)
    assert not [rule for rule in jobs if rule.startswith("leaderboard") or "accuracy" in rule]
    assert jobs["calibrate"] == 1


def test_a_second_run_changes_nothing_with_times_or_without(tree: Path) -> None:
    assert "Nothing to be done" in snakemake(tree, "all", "leaderboard")
    (tree / "benchmarks").rename(tree / "moved")  # as in a clone
    assert "Nothing to be done" in snakemake(tree, "all", "leaderboard")
    (tree / "moved").rename(tree / "benchmarks")


def test_one_recipe_added_runs_its_own_rows_and_the_table(tree: Path) -> None:
    write_params(tree, recipes=[*BOARD["recipes"], "repq_vit"])
    jobs = planned(tree, "leaderboard")
    write_params(tree)
    own = {"calibrate": 4, "leaderboard_row": 2, "leaderboard_kernels": 1, "leaderboard_cost": 1}
    shared = dict.fromkeys(
        (
            *("leaderboard_tables", "leaderboard"),
            *("plot_accuracy_by_bits", "plot_accuracy_by_size", "plot_accuracy_by_cost"),
        ),
        1,
    )
    assert jobs == {**own, **shared, "total": 13}


def test_a_changed_method_runs_its_own_rows(tree: Path) -> None:
    path = tree / "recipes/vanilla.yaml"
    before = path.read_text()
    path.write_text(before.replace("percentile: 99.99 ", "percentile: 99.9  "))
    jobs = planned(tree, "leaderboard")
    path.write_text(before)
    assert (jobs["calibrate"], jobs["leaderboard_row"]) == (4, 2)


def test_the_verifier_passes_and_then_catches_a_changed_row(tree: Path) -> None:
    verify = ("python", "workflow/scripts/tools/verify.py", "--leaderboard")
    assert run(tree, *verify).endswith(" results verified\n")
    path = tree / ROWS[0]
    before = path.read_text()
    row = json.loads(before)
    row["draws"][0]["metrics"]["top1"] += 1
    path.write_text(json.dumps(row))
    said = run(tree, *verify, status=2)
    path.write_text(before)
    assert f"{ROWS[0]}: changed since it was made" in said


def test_the_report_leads_to_the_leaderboard(tree: Path) -> None:
    snakemake(tree, "leaderboard", "--report", "report.html")
    page = (tree / "report.html").read_text()
    assert "Accuracy by bits of tiny." in page
    assert "Accuracy by seconds of calibration of tiny." in page
    assert "Leaderboard: tiny" in page


def test_the_same_seeds_give_the_same_bits(tree: Path, tmp_path: Path) -> None:
    """Made again from the images on, beside times that differ."""
    again = shutil.copytree(tree, tmp_path / "again", symlinks=True)
    snakemake(again, "leaderboard", "--forcerun", "draw_calibration", "calibrate", "leaderboard_row")
    for name in (*ROWS, TABLE, "results/tiny/leaderboard/accuracy_by_bits.png"):
        assert (again / name).read_bytes() == (tree / name).read_bytes(), name
    assert (again / ROWS[0]).stat().st_mtime > (tree / ROWS[0]).stat().st_mtime
    costs = "results/leaderboard/cost.csv"
    assert (again / costs).read_bytes() != (tree / costs).read_bytes()
