"""The README's worked example, run by Snakemake as a user does: a model and images of their own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import timm
import torch
import yaml
from clones import ROOT, clone, run
from PIL import Image
from safetensors.torch import save_file

pytestmark = pytest.mark.slow

KEYS = ("w8a8-n4-s0", "w6a6-n4-s0")
# Fewer blocks, recipes and images than in the README; `customized` names blocks 5 and 6.
SMALL = {
    "recipes": ["vanilla", "customized"],
    "calibration": {"images": 4, "batch_size": 2, "seeds": [0]},
    "evaluation": {"images": None, "batch_size": 4},
    "errors": {"images": 2, "logits_images": 1},
    "attention": {"images": 2},
    "plots": {"dpi": 60},
}


def example() -> dict:
    """flowers.yaml of the README."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (found,) = [yaml.safe_load(block) for block in blocks if "models:" in block]
    return found


def snakemake(folder: Path, *options: str, status: int = 0) -> str:
    return run(folder, "snakemake", "--configfile", "flowers.yaml", "--cores", "2", *options, status=status)


def planned(folder: Path, *options: str) -> dict[str, int]:
    """Jobs by rule that a dry run would start."""
    said = snakemake(folder, "--dry-run", *options)
    table = said.rpartition("Job stats:")[2].partition("\n\n")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def make_images(folder: Path, a_class: int) -> None:
    generator = np.random.default_rng(len(folder.name))
    for name in ("daisy", "rose", "tulip"):
        (folder / name).mkdir(parents=True)
        for index in range(a_class):
            pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((320, 240)).save(folder / name / f"{index}.jpg")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the user's weights and images, after one whole run."""
    folder = clone(tmp_path_factory.mktemp("clone"))
    params = {**example(), **SMALL}
    params["models"]["flowers"]["arguments"]["depth"] = 7
    (folder / "flowers.yaml").write_text(yaml.safe_dump(params))
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **params["models"]["flowers"]["arguments"])
    save_file(model.state_dict(), folder / "flowers.safetensors")
    make_images(folder / "flowers/train", 2)
    make_images(folder / "flowers/val", 2)
    snakemake(folder)
    return folder


def test_what_needs_no_failed_job_goes_on(tree: Path) -> None:
    """`wrong` fails when it meets the model; one core, so it comes first."""
    wrong = "extends: vanilla\nrules: [{select: {role: fc2, block: 9}, bits: 4}]\n"
    (tree / "recipes/wrong.yaml").write_text(wrong)
    made = [tree / f"results/models/flowers/{name}/{KEYS[0]}/qparams.json" for name in ("wrong", "layernorm")]
    targets = [path.relative_to(tree).as_posix() for path in made]
    recipes = ("--config", "recipes=[wrong,layernorm]", "--cores", "1", "--prioritize", targets[0])
    said = snakemake(tree, *recipes, "--", *targets, status=1)
    assert "wrong.yaml: rules[0].select.block: selects no operator with 9" in said
    assert [path.is_file() for path in made] == [False, True]
    (tree / "recipes/wrong.yaml").unlink()
    for name in ("wrong", "layernorm"):  # no later test counts these
        for folder in ("results/models", "benchmarks", "logs"):
            shutil.rmtree(tree / folder / "flowers" / name, ignore_errors=True)


def test_the_int8_model_names_the_classes_as_their_folders_are_called(tree: Path) -> None:
    names = ["daisy", "rose", "tulip"]
    assert json.loads((tree / "results/models/flowers/model.json").read_text())["label_names"] == names
    for mode in ("faithful", "fast"):
        model = onnx.load(tree / f"results/models/flowers/vanilla/{KEYS[0]}/{mode}/int8.onnx")
        about = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(about["label_names"]) == names


def edit(folder: Path, file: str, old: str, new: str) -> str:
    """Replace text in a file; the text before."""
    before = (folder / file).read_text()
    assert old in before
    (folder / file).write_text(before.replace(old, new))
    return before


def test_every_model_and_recipe_is_in_the_summary(tree: Path) -> None:
    table = pd.read_csv(tree / "results/summary.csv")
    recipes = SMALL["recipes"]
    rows = [(recipe, key.split("-")[0]) for recipe in recipes for key in KEYS]
    assert list(zip(table["recipe"], table["bits"], strict=True)) == [("fp32", "fp32"), *rows]
    assert set(table["images"]) == {6}
    by_bits = table.groupby("bits")["logits_sqnr_db"].mean()
    assert by_bits["w8a8"] > by_bits["w6a6"] + 6


def test_each_run_has_its_tables_and_parameters(tree: Path) -> None:
    for recipe in SMALL["recipes"]:
        for key in KEYS:
            small = tree / "results/flowers" / recipe / key
            assert {path.name for path in small.iterdir() if ".sidecar" not in path.name} == {
                "metrics.json", "attention.csv", "operators.csv", "ranking.json", "runtime.json",
                "runtime_operators.csv",
            }  # fmt: skip
            heavy = tree / "results/models/flowers" / recipe / key
            assert json.loads((heavy / "qparams.json").read_text())["recipe"] == recipe


def test_figures_are_whole(tree: Path) -> None:
    figures = tree / "results/flowers/figures"
    names = ("top1", "errors_along_network", "attention_overview", "attention_heads")
    for name in names:
        assert Image.open(figures / f"{name}.png").size > (200, 200)
        assert (figures / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_jobs_leave_logs_and_benchmarks(tree: Path) -> None:
    log = tree / "logs/flowers/vanilla/w6a6-n4-s0/calibrate.log"
    assert "calibrate: 2 in " in log.read_text()
    run(tree, "python", "workflow/scripts/tools/timings.py")
    table = pd.read_csv(tree / "results/timings.csv", index_col="rule")
    assert table.loc["calibrate", "jobs"] == 4
    assert 0 < table.loc["calibrate", "seconds"] < 4 * table.loc["from first to last", "seconds"]


def test_a_second_run_does_nothing_and_says_so(tree: Path) -> None:
    assert "Nothing to be done" in snakemake(tree)


def test_a_changed_plot_parameter_runs_only_the_plots(tree: Path) -> None:
    before = edit(tree, "flowers.yaml", "dpi: 60", "dpi: 61")
    assert planned(tree) == {"plot_errors": 1, "plot_top1": 1, "plot_attention": 1, "all": 1, "total": 4}
    (tree / "flowers.yaml").write_text(before)


def test_a_changed_recipe_runs_only_its_branch(tree: Path) -> None:
    before = edit(tree, "recipes/customized.yaml", "[5, 6]", "[4, 6]")
    jobs = planned(tree)
    (tree / "recipes/customized.yaml").write_text(before)
    branch = ("calibrate", "evaluate_quantized", "operator_errors", "attention_maps", "verify_runtime")
    shared = ("summarize", "plot_errors", "plot_top1", "plot_attention", "all")
    assert jobs == {**dict.fromkeys(branch, 2), "deploy": 4, **dict.fromkeys(shared, 1), "total": 19}


def test_changed_code_runs_what_uses_it(tree: Path) -> None:
    before = edit(tree, "src/ptq2themoon/plots/network.py", "import", "import  ")
    jobs = planned(tree)
    (tree / "src/ptq2themoon/plots/network.py").write_text(before)
    assert set(jobs) == {"plot_errors", "all", "total"}


def test_a_deleted_heavy_result_is_made_again(tree: Path) -> None:
    path = tree / "results/models/flowers/fusion.json"
    moved = path.rename(tree / "fusion.json")
    assert planned(tree)["fuse"] == 1
    moved.rename(path)


def test_the_verifier_passes_and_then_catches_a_changed_value(tree: Path) -> None:
    verify = ("python", "workflow/scripts/tools/verify.py", "--params", "flowers.yaml")
    assert run(tree, *verify).endswith(" results verified\n")
    before = edit(tree, "flowers.yaml", "logits_images: 1", "logits_images: 2")
    said = run(tree, *verify, status=2)
    (tree / "flowers.yaml").write_text(before)
    assert "parameters.logits_images: recorded 1, expected 2" in said


def test_the_report_is_one_file_with_figures_and_captions(tree: Path) -> None:
    snakemake(tree, "--report", "report.html")
    page = (tree / "report.html").read_text()
    assert "Where flowers looks." in page
    assert len(re.findall(r"data:image/png;[^,]{0,90}base64,", page)) == 4
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=.https?://", page)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("bitz=[w8a8]", "bitz: unknown key; did you mean 'bits'?"),
        ("recipes=[vanila]", "recipes[0]: unknown recipe 'vanila' in recipes; did you mean 'vanilla'?"),
        ("bits=[w9a8]", "bits[0]: bits 'w9a8': must lie in w2a2 to w8a8; nearest valid: 'w8a8'"),
        ("device=cuda0", "device: unknown value 'cuda0'; did you mean 'cuda'?"),
    ],
)
def test_bad_parameters_are_named_before_anything_runs(tree: Path, change: str, message: str) -> None:
    assert message in snakemake(tree, "--dry-run", "--config", change, status=1)


def test_the_example_runs_as_printed_with_sixty_test_images(tmp_path: Path) -> None:
    """But for a narrower model. There are fewer images than operators are measured on by default."""
    readme = (ROOT / "README.md").read_text()
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL) if "models:" in block]
    (printed,) = re.findall(
        r"^(snakemake --configfile flowers.yaml --dry-run.*\nsnakemake .*)$", readme, re.M
    )
    folder = clone(tmp_path)
    narrower = {"num_classes": 3, "embed_dim": 24, "depth": 7}
    assert "{num_classes: 3}" in text
    (folder / "flowers.yaml").write_text(text.replace("{num_classes: 3}", json.dumps(narrower)))
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **narrower)
    save_file(model.state_dict(), folder / "flowers.safetensors")
    make_images(folder / "flowers/train", 86)
    make_images(folder / "flowers/val", 20)
    for command in printed.splitlines():
        run(folder, *command.split(" #")[0].split())
    table = pd.read_csv(folder / "results/summary.csv")
    assert len(table) == 1 + 2 * 2
    assert set(table["images"]) == {60}
    sidecar = json.loads((folder / "results/flowers/vanilla/w8a8-n256-s0/operators.sidecar.json").read_text())
    assert (sidecar["parameters"]["images"], sidecar["parameters"]["logits_images"]) == (60, 32)
    run(folder, "python", "workflow/scripts/tools/verify.py", "--params", "flowers.yaml")
