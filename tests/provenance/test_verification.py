"""The verifier on a tree as the pipeline writes it: untouched it passes, each kind of change is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from onnx import helper, numpy_helper

from ptq2themoon.data import FolderSource
from ptq2themoon.graph.editing.model_files import write_model
from ptq2themoon.provenance.expected import expected_results
from ptq2themoon.provenance.verification import Verifier
from ptq2themoon.safety.sidecars import sha256, sidecar_path
from ptq2themoon.stage import Stage
from ptq2themoon.vocabulary import layout, onnx_data
from ptq2themoon.vocabulary.onnx_data import data_beside
from ptq2themoon.vocabulary.parameters import load_params
from ptq2themoon.vocabulary.records import write_json

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "workflow/schemas/sidecar.schema.json").read_text())
HEAVY, LIGHT, KEY = "results/models/tiny", "results/tiny", "w8a8-n8-s0"
RECIPES = ("plain", "finer")
PARAMS: dict[str, Any] = {
    "models": {"tiny": {"source": "local-dir:weights", "dataset": "few"}},
    "datasets": {
        "few": {"kind": "arrays", "calibration": "train.safetensors", "evaluation": "test.safetensors"}
    },
    "recipes": list(RECIPES),
    "bits": ["w8a8"],
    "calibration": {"images": 8, "batch_size": 4, "seeds": [0]},
    "evaluation": {"images": None, "batch_size": 5},
    "errors": {"images": 6, "logits_images": 3},
    "attention": {"images": 2, "block": -2},
    "deploy": {"modes": ["fast"]},
    "plots": {"dpi": 90, "colormap": "magma"},
}
DEFAULTS = {"granularity": "per-tensor", "observer": "percentile", "percentile": 99.9, "weight_axis": "input"}
RULE = {"select": {"role": ["fc2"]}, "granularity": "per-channel", "observer": "minmax"}


def made(
    stage: str,
    outputs: list[str],
    inputs: list[str],
    parameters: dict[str, Any],
    text: str = "made",
    **more: Any,
) -> None:
    """Run a stage that writes `text` and its name to each output."""
    paths = [Path(output) for output in outputs]
    with Stage(stage, inputs=[*map(Path, inputs)], outputs=paths, parameters=parameters, **more) as running:
        for path in paths:
            running.temporary(path).write_text(f"{text}: {path}\n")


def make_inputs() -> None:
    Path("weights").mkdir()
    for name in ("weights/config.json", "weights/model.safetensors", "train.safetensors", "test.safetensors"):
        Path(name).write_text(name)
    Path("weights/config.json").write_text("{}")
    Path("recipes").mkdir()
    Path("recipes/plain.yaml").write_text(yaml.dump({"description": "p", "defaults": DEFAULTS}))
    finer = {"description": "f", "extends": "plain", "rules": [RULE]}
    Path("recipes/finer.yaml").write_text(yaml.dump(finer))
    Path("params.yaml").write_text(yaml.dump(PARAMS))


def make_model() -> None:
    weights = ["weights/model.safetensors", "weights/config.json"]
    parameters = {
        "source": "local-dir:weights",
        "arguments": {},
        "exporter": "torchscript",
        "opset": 13,
        "preprocessing": {},
        "classifier": True,
    }
    made("export", [f"{HEAVY}/model.onnx", f"{HEAVY}/model.json"], weights, parameters)
    info, images = f"{HEAVY}/model.json", f"{HEAVY}/calibration-n8-s0.safetensors"
    parameters = {"kind": "arrays", "source": "train.safetensors", "images": 8, "seed": 0}
    made("draw_calibration", [images], [info, "train.safetensors"], parameters, seed=0)
    fused = [f"{HEAVY}/fused.onnx", f"{HEAVY}/fusion.json"]
    made("fuse", fused, [f"{HEAVY}/model.onnx", info, images], {"check_images": 16})
    parameters = {"kind": "arrays", "source": "test.safetensors", "images": None}
    made("list_evaluation", [f"{LIGHT}/evaluation.csv"], [info, "test.safetensors"], parameters, seed=0)


def make_run(recipe: str, text: str = "made") -> None:
    """All that is made of one recipe, or of floating point."""
    more: dict[str, Any] = {"device": "cpu", "text": text}
    fused = [f"{HEAVY}/{name}" for name in ("fused.onnx", "fusion.json", "model.json")]
    test = {"kind": "arrays", "source": "test.safetensors"}
    folder, qparams = "fp32", []
    if recipe != "fp32":
        folder = f"{recipe}/{KEY}"
        qparams = [f"{HEAVY}/{folder}/qparams.{suffix}" for suffix in ("json", "safetensors")]
        rules = {"plain": [], "finer": [RULE]}[recipe]
        usual = {"quantize": True, "kind": "uniform", "symmetry": "symmetric", "codes": "signed"}
        parameters = {
            "recipe": recipe,
            "activations": "twice",
            "defaults": {**usual, **DEFAULTS},
            "rules": rules,
            "methods": [],
        }
        sources = [f"recipes/{name}.yaml" for name in RECIPES[: RECIPES.index(recipe) + 1]]
        inputs = [*fused, f"{HEAVY}/calibration-n8-s0.safetensors", *sources]
        parameters |= {"bits": "w8a8", "batch_size": 4}
        made("calibrate", qparams, inputs, parameters, seed=0, **more)
    inputs = [*fused, f"{LIGHT}/evaluation.csv", "test.safetensors", *qparams]
    outputs, reference = [f"{LIGHT}/{folder}/metrics.json"], f"{HEAVY}/fp32/reference.safetensors"
    parameters = {**test, "batch_size": 5, "block": -2}
    if qparams:
        simulated = f"{HEAVY}/{folder}/simulated.safetensors"
        outputs += [f"{LIGHT}/{folder}/attention.csv", simulated]
        made("evaluate", outputs, [*inputs, reference], parameters, **more)
    else:
        made("reference", [*outputs, reference], inputs, parameters, **more)
    outputs = [f"{HEAVY}/{folder}/attention_maps.safetensors"]
    parameters = {"recipe": recipe, **test, "images": 2, "block": -2}
    made("attention_maps", outputs, inputs, parameters, **more)
    if qparams:
        outputs = [f"{LIGHT}/{folder}/operators.csv", f"{LIGHT}/{folder}/ranking.json"]
        parameters = {**test, "images": 6, "logits_images": 3, "batch_size": 16}
        made("operator_errors", outputs, [*inputs, reference], parameters, **more)
        int8 = [f"{HEAVY}/{folder}/fast/{name}" for name in ("int8.onnx", "deploy.json")]
        made("deploy", int8, [*fused, *qparams], {"mode": "fast", "profile": "onnxruntime"}, text=text)
        outputs = [f"{LIGHT}/{folder}/{name}" for name in ("runtime.json", "runtime_operators.csv")]
        parameters = {**test, "batch_size": 5, "operator_images": 4}
        made("verify_runtime", outputs, [*inputs, *int8, reference, simulated], parameters, **more)


def make_figures() -> None:
    folders = ["fp32", *(f"{recipe}/{KEY}" for recipe in RECIPES)]
    quantized = [["tiny", name, "w8a8", 8, 0] for name in RECIPES]
    parameters = {"entries": [["tiny", "fp32", "fp32", None, None], *quantized]}
    outputs = [*layout.SUMMARY, *layout.HEADLINE_FILES]
    metrics = [f"{HEAVY}/{f}/fast/deploy.json" for f in folders[1:]]
    metrics += [f"{LIGHT}/{f}/metrics.json" for f in folders]
    metrics += [f"{LIGHT}/{f}/runtime.json" for f in folders[1:]]
    made("summarize", outputs, metrics, parameters)

    def files(*names: str) -> list[str]:
        return [f"{LIGHT}/figures/{name}.{kind}" for name in names for kind in ("png", "svg")]

    modes = {"accumulated": 6, "local": 6, "logits": 3}
    parameters = {"recipes": list(RECIPES), "mode_images": modes, "worst": 3, "dpi": 90}
    tables = [f"{LIGHT}/{folder}/operators.csv" for folder in folders[1:]]
    made("plot_errors", files("errors_along_network"), tables, parameters)
    made("plot_top1", files("top1"), outputs[:1], {"model": "tiny", "dpi": 90})
    maps = [f"{HEAVY}/{folder}/attention_maps.safetensors" for folder in folders]
    parameters = {"graphs": ["fp32", *RECIPES], "image_index": 0, "rows": 2, "colormap": "magma", "dpi": 90}
    outputs = files("attention_overview", "attention_heads")
    made("plot_attention", outputs, [*maps, f"{HEAVY}/model.json"], parameters)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_inputs()
        make_model()
        for recipe in ("fp32", *RECIPES):
            make_run(recipe)
        make_figures()
    return folder


@pytest.fixture(autouse=True)
def tree(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the whole tree, as the working directory."""
    shutil.copytree(whole, tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")
    return tmp_path / "tree"


def problems() -> list[str]:
    results = expected_results(load_params(Path("params.yaml")))
    return list(Verifier(SCHEMA, Path("results/models")).problems(results))


def only_problem() -> str:
    (found,) = problems()
    return found


def set_param(key: str, value: Any) -> None:
    """`set_param("errors.images", 7)` changes params.yaml."""
    data = yaml.safe_load(Path("params.yaml").read_text())
    *parents, name = key.split(".")
    node = data
    for parent in parents:
        node = node[parent]
    node[name] = value
    Path("params.yaml").write_text(yaml.dump(data))


def edit_sidecar(path: str, **changes: Any) -> None:
    sidecar = sidecar_path(Path(path))
    write_json(sidecar, {**json.loads(sidecar.read_text()), **changes})


def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "workflow/scripts/tools/verify.py"), *arguments]
    return subprocess.run(script, capture_output=True, text=True)


def test_an_untouched_tree_passes() -> None:
    assert problems() == []


def test_the_script_says_how_many_results_it_verified() -> None:
    done = verify()
    assert (done.returncode, done.stdout, done.stderr) == (0, "22 results verified\n", "")


def test_the_script_fails_with_a_line_for_each_problem() -> None:
    set_param("calibration.batch_size", 2)
    done = verify()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"{HEAVY}/{recipe}/{KEY}/qparams.sidecar.json: parameters.batch_size: recorded 4, expected 2; "
        f"run `snakemake --forcerun {HEAVY}/{recipe}/{KEY}/qparams.json`"
        for recipe in RECIPES
    ]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("models.tiny.opset", 12, ["model: parameters.opset: recorded 13, expected 12"]),
        (
            "models.tiny.arguments",
            {"img_size": 8},
            ["model: parameters.arguments.img_size: recorded nothing, "],
        ),
        ("evaluation.images", 7, ["evaluation: parameters.images: recorded null, expected 7"]),
        ("evaluation.batch_size", 2, 3 * ["metrics: parameters.batch_size: recorded 5, expected 2"]),
        (
            "errors.logits_images",
            2,
            [
                *2 * ["operators: parameters.logits_images: recorded 3, expected 2"],
                "errors_along_network.png: parameters.mode_images.logits: recorded 3, expected 2",
            ],
        ),
        (
            "attention.block",
            0,
            [
                "metrics: parameters.block: recorded -2, expected 0",
                "attention_maps: parameters.block: recorded",
            ],
        ),
        (
            "plots.colormap",
            "gray",
            ['attention_overview.png: parameters.colormap: recorded "magma", expected "gray"'],
        ),
        ("plots.dpi", 91, 3 * ["parameters.dpi: recorded 90, expected 91"]),
        ("device", "cuda", ['qparams: device: recorded "cpu", expected "cuda"']),
        ("device", "cpu", []),
        ("recipes", ["plain"], ["summary: parameters.entries: recorded ["]),
    ],
)
def test_a_changed_parameter_is_caught_where_it_counts(
    key: str, value: Any, expected: list[str] | None
) -> None:
    set_param(key, value)
    found = [line.replace(".sidecar.json", "") for line in problems()]
    assert bool(found) == bool(expected)
    for text in expected:
        assert sum(text in line for line in found) >= expected.count(text), found


def test_a_folder_of_images_is_known_by_its_listing() -> None:
    for name in ("train", "test"):
        Path(f"{name}/class").mkdir(parents=True)
        Path(f"{name}/class/a.png").touch()
        set_param(f"datasets.few.{'calibration' if name == 'train' else 'evaluation'}", name)
    set_param("datasets.few.kind", "folder")
    listing = FolderSource(Path("train")).listing_sha256()
    info, images = f"{HEAVY}/model.json", f"{HEAVY}/calibration-n8-s0.safetensors"
    parameters = {"kind": "folder", "source": "train", "images": 8, "seed": 0, "listing_sha256": listing}
    made("draw_calibration", [images], [info], parameters, seed=0)
    assert not [line for line in problems() if "calibration-n8-s0" in line]
    Path("train/class/b.png").touch()
    assert [line.partition(" recorded")[0] for line in problems() if "calibration-n8-s0" in line] == [
        f"{HEAVY}/calibration-n8-s0.sidecar.json: parameters.listing_sha256:"
    ]


@pytest.mark.parametrize(
    ("key", "value", "folder"),
    [
        ("bits", ["w8a8", "w4a8"], "w4a8-n8-s0"),
        ("calibration.images", 9, "w8a8-n9-s0"),
        ("calibration.seeds", [0, 3], "w8a8-n8-s3"),
    ],
)
def test_a_parameter_in_the_path_asks_for_other_files(key: str, value: Any, folder: str) -> None:
    set_param(key, value)
    path = f"{HEAVY}/plain/{folder}/qparams.json"
    assert f"{path}: missing, DVC keeps it; run `dvc pull` or `snakemake {path}`" in problems()


def test_a_changed_recipe_is_caught_in_all_that_extend_it() -> None:
    text = Path("recipes/plain.yaml").read_text()
    Path("recipes/plain.yaml").write_text(text.replace("99.9", "99.99"))
    found = problems()
    for recipe in RECIPES:
        sidecar = f"{HEAVY}/{recipe}/{KEY}/qparams.sidecar.json"
        assert any(
            line.startswith(f"{sidecar}: parameters.defaults.percentile: recorded 99.9, expected 99.99; ")
            for line in found
        )
        assert any(
            line.startswith(f"{sidecar}: input recipes/plain.yaml: recorded sha256 ") for line in found
        )
    assert len(found) == 4


def test_a_changed_rule_is_named_by_its_key() -> None:
    text = Path("recipes/finer.yaml").read_text()
    Path("recipes/finer.yaml").write_text(text.replace("fc2", "fc1"))
    assert any('parameters.rules[0].select.role[0]: recorded "fc2", expected "fc1"' in p for p in problems())


def test_another_chain_of_recipes_is_caught() -> None:
    alone = {"description": "f", "defaults": DEFAULTS, "rules": [RULE]}
    Path("recipes/finer.yaml").write_text(yaml.dump(alone))
    sidecar = f"{HEAVY}/finer/{KEY}/qparams.sidecar.json: "
    assert any(
        p.startswith(f"{sidecar}inputs: recipes/plain.yaml recorded, not expected") for p in problems()
    )


@pytest.mark.parametrize(
    "path",
    [
        f"{HEAVY}/fused.onnx",
        f"{HEAVY}/plain/{KEY}/qparams.safetensors",
        f"{LIGHT}/fp32/metrics.json",
        f"{LIGHT}/figures/attention_heads.svg",
        "results/summary.md",
    ],
)
def test_a_changed_byte_of_a_result_is_one_problem(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[3] ^= 1
    Path(path).write_bytes(data)
    assert only_problem().startswith(f"{path}: changed since it was made: sha256 ")


@pytest.mark.parametrize(
    ("path", "result"),
    [
        ("weights/model.safetensors", f"{HEAVY}/model"),
        ("train.safetensors", f"{HEAVY}/calibration-n8-s0"),
        ("test.safetensors", f"{LIGHT}/evaluation"),
    ],
)
def test_a_changed_input_is_caught(path: str, result: str) -> None:
    Path(path).write_text("other")
    found = problems()
    assert found[0].startswith(f"{result}.sidecar.json: input {path}: recorded sha256 ")
    # Test images are read by their list; for each variant by evaluation and maps; for each run by two more.
    assert len(found) == (1 + 3 * 2 + 2 * 2 if path.startswith("test") else 1)
    assert all(f"input {path}: recorded sha256 " in line for line in found)


def test_a_missing_input_is_caught() -> None:
    Path("test.safetensors").unlink()
    assert only_problem() == (
        f"test.safetensors: missing, and {LIGHT}/evaluation.csv is made from it; put it back"
    )


def test_another_set_of_weights_is_caught() -> None:
    Path("weights/more.safetensors").touch()
    assert "inputs: weights/more.safetensors expected, not recorded" in only_problem()


def test_a_result_of_older_inputs_is_caught() -> None:
    make_run("fp32", text="other")
    stages = ("metrics", "operators", "runtime")
    readers = [f"{LIGHT}/{recipe}/{KEY}/{stage}" for recipe in sorted(RECIPES) for stage in stages]
    assert sorted(line.partition(": recorded")[0] for line in problems()) == [
        f"results/summary.sidecar.json: input {LIGHT}/fp32/metrics.json",
        f"{LIGHT}/figures/attention_overview.png.sidecar.json: input {HEAVY}/fp32/attention_maps.safetensors",
        *(f"{path}.sidecar.json: input {HEAVY}/fp32/reference.safetensors" for path in readers),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "0"}, "seed: '0' is not of type 'integer', 'null'"),
        ({"versions": {"python": "3.11"}}, "versions: 'ptq2themoon' is a required property"),
        ({"more": 1}, "Additional properties are not allowed ('more' was unexpected)"),
        ({"outputs": {"a": "0"}}, "outputs.a: '0' does not match"),
        ({"stage": "evaluate"}, 'stage: recorded "evaluate", expected "list_evaluation"'),
        ({"seed": 1}, "seed: recorded 1, expected 0"),
        ({"device": "cpu"}, 'device: recorded "cpu", expected null'),
    ],
)
def test_a_false_sidecar_is_caught(changes: dict[str, Any], message: str) -> None:
    edit_sidecar(f"{LIGHT}/evaluation.csv", **changes)
    found = problems()
    assert all(line.startswith(f"{LIGHT}/evaluation.sidecar.json: ") for line in found)
    assert any(message in line for line in found)


def test_a_sidecar_that_is_no_json_is_caught() -> None:
    Path(f"{LIGHT}/evaluation.sidecar.json").write_text('{"stage": ')
    assert "evaluation.sidecar.json: not readable as JSON" in only_problem()


def test_a_parameter_that_nobody_expects_is_caught() -> None:
    record = json.loads(Path(f"{HEAVY}/fused.sidecar.json").read_text())
    edit_sidecar(f"{HEAVY}/fused.onnx", parameters={**record["parameters"], "trick": True})
    assert "parameters.trick: recorded true, expected nothing" in only_problem()
    edit_sidecar(f"{HEAVY}/fused.onnx", parameters={})
    assert "parameters.check_images: recorded nothing, expected 16" in only_problem()


def test_missing_results_are_named_with_what_to_do() -> None:
    Path("results/summary.md").unlink()
    assert only_problem() == "results/summary.md: missing; run `snakemake results/summary.md`"
    shutil.rmtree("results")
    found = problems()
    assert len(found) == len(set(found)) == 48
    assert all(": missing" in line for line in found)


def test_a_missing_sidecar_is_caught() -> None:
    Path("results/summary.sidecar.json").unlink()
    assert only_problem() == (
        "results/summary.sidecar.json: missing beside summary.csv; "
        "run `snakemake --forcerun results/summary.csv`"
    )


def test_a_clone_without_heavy_files_is_told_to_pull() -> None:
    shutil.rmtree("results/models")
    found = problems()
    assert all(line.startswith(f"{HEAVY}/") and "run `dvc pull` or" in line for line in found)
    assert len(found) == 5 + 2 * 2 + 3 + 2 * 2 + 1 + 2


def test_results_that_params_does_not_name_are_ignored() -> None:
    shutil.copytree(f"{LIGHT}/plain", f"{LIGHT}/older")
    Path(f"{LIGHT}/older/{KEY}/metrics.json").write_text("anything")
    assert problems() == []


def test_bad_params_are_one_error() -> None:
    set_param("errors.imagse", 3)
    done = verify()
    assert done.returncode == 2
    assert done.stderr == "error: params.yaml: errors.imagse: unknown key; did you mean 'images'?\n"


# Weights in a file beside their ONNX file -------------------------------------------------------------------


@pytest.fixture
def large(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The INT8 model of a recipe as two files, recorded as the stages do."""
    monkeypatch.setattr(onnx_data, "MOST_BYTES", 100)
    path = Path(f"{HEAVY}/plain/{KEY}/fast/int8.onnx")
    weight = numpy_helper.from_array(np.ones(2000, np.float32), "weight")
    write_model(helper.make_model(helper.make_graph([], "large", [], [], [weight])), path)
    sums = {str(file): sha256(file) for file in (data_beside(path), path)}
    for where, kind, found in (
        (str(path), "outputs", sums),
        (f"{LIGHT}/plain/{KEY}/runtime.json", "inputs", {str(path): sums[str(path)]}),
    ):
        record = json.loads(sidecar_path(Path(where)).read_text())
        edit_sidecar(where, **{kind: record[kind] | found})
    return data_beside(path)


def test_weights_beside_a_model_are_an_output_like_it(large: Path) -> None:
    assert problems() == []


def test_weights_that_are_missing_are_named_with_the_model_to_make(large: Path) -> None:
    large.unlink()
    path = large.with_suffix("")
    assert only_problem() == f"{large}: missing, DVC keeps it; run `dvc pull` or `snakemake {path}`"


@pytest.mark.parametrize("size", [0, 4096])
def test_weights_that_were_cut_short_are_named(large: Path, size: int) -> None:
    os.truncate(large, size)
    assert only_problem().startswith(f"{large}: changed since it was made: sha256 ")


def test_weights_that_no_sidecar_has_are_named(large: Path) -> None:
    path = large.with_suffix("")
    record = json.loads(sidecar_path(path).read_text())
    kept = {name: digest for name, digest in record["outputs"].items() if name != str(large)}
    edit_sidecar(str(path), outputs=kept)
    assert f"outputs: {large} expected, not recorded" in only_problem()
