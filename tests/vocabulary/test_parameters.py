"""params.yaml: the file itself, each way to get it wrong, and the schemas written from the models."""

from __future__ import annotations

import copy
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ptq2themoon.safety.sidecars import sidecar_path
from ptq2themoon.stage import Stage
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.parameter_files import images_for
from ptq2themoon.vocabulary.parameters import Params, load_params, parse_bits
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.records import write_json
from ptq2themoon.vocabulary.yaml_files import read_yaml

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "workflow" / "schemas"
DEFAULT = read_yaml(ROOT / "params.yaml")


@pytest.fixture(autouse=True)
def _demo_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resources/demo/model").mkdir(parents=True)
    (tmp_path / "resources/demo/model/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


def params(mapping: dict[str, Any]) -> Params:
    return Params.from_mapping(mapping, "params.yaml", ROOT / "recipes")


def changed(key: str, value: Any) -> dict[str, Any]:
    """The default with one value set: `models.demo.opset`."""
    mapping = copy.deepcopy(DEFAULT)
    *above, last = key.split(".")
    place = mapping
    for name in above:
        place = place[name]
    place[last] = value
    return mapping


def without(key: str) -> dict[str, Any]:
    mapping = changed(key, None)
    *above, last = key.split(".")
    place = mapping
    for name in above:
        place = place[name]
    del place[last]
    return mapping


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        act()
    return str(error.value)


# The file ---------------------------------------------------------------------------------------


def test_the_default_loads_and_states_every_parameter() -> None:
    found = load_params(ROOT / "params.yaml", ROOT / "recipes")
    assert found.model_dump() == DEFAULT
    assert found.recipes == ["vanilla", "customized", "ship"]
    for recipe in found.recipes:
        load_recipe(ROOT / "recipes" / f"{recipe}.yaml")


def test_what_may_be_left_out_has_the_value_of_the_file() -> None:
    mapping = copy.deepcopy(DEFAULT)
    for key in ("errors", "attention", "plots", "device"):
        del mapping[key]
    for key in ("checkpoint", "arguments", "exporter", "opset", "preprocessing", "classifier", "output"):
        del mapping["models"]["demo"][key]
    assert params(mapping) == params(DEFAULT)


def test_params_never_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        params(DEFAULT).calibration.images = 1


# Slips ------------------------------------------------------------------------------------------

DEMO = DEFAULT["models"]["demo"]
SLIPS: list[tuple[str, Any, str]] = [
    ("modles", {}, "modles: unknown key; did you mean 'models'?"),
    ("models.demo.datset", "demo", "models.demo.datset: unknown key; did you mean 'dataset'?"),
    ("bits", [8], "bits[0]: 8: must be bits of weights and of activations; nearest valid: 'w8a8'"),
    ("bits", [16], "bits[0]: 16: must be bits of weights and of activations; nearest valid: 'w8a8'"),
    ("models.demo.num_classes", 3, "models.demo: num_classes is an argument of timm.create_model; say `arg"),
    ("calibration.image", 8, "calibration.image: unknown key; did you mean 'images'?"),
    ("plots.zzz", 8, "plots.zzz: unknown key; valid: dpi, colormap"),
    ("calibration.images", "256", "calibration.images: must be an integer, not '256'"),
    ("calibration.images", 256.0, "calibration.images: must be an integer, not 256.0"),
    ("calibration.images", True, "calibration.images: must be an integer, not true"),
    ("calibration.images", None, "calibration.images: must be an integer, not empty"),
    ("calibration.images", 0, "calibration.images: 0 is too small; nearest valid: 1"),
    ("calibration.seeds", [0, -1], "calibration.seeds[1]: -1 is too small; nearest valid: 0"),
    ("calibration.seeds", 0, "calibration.seeds: must be a list, not 0"),
    ("calibration.seeds", [], "calibration.seeds: is empty; give at least one"),
    ("calibration.seeds", [1, 2, 1], "calibration.seeds: 1 is listed twice"),
    ("evaluation.images", -5, "evaluation.images: -5 is too small; nearest valid: 1"),
    ("attention.block", "last", "attention.block: must be an integer, not 'last'"),
    ("plots.dpi", 9000, "plots.dpi: 9000 is too large; nearest valid: 1200"),
    ("plots.colormap", "viridis; touch x; true", "plots.colormap: 'viridis; touch x; true' names no"),
    ("plots.colormap", "", "plots.colormap: '' names no colour map; letters, digits, _ are allowed"),
    ("datasets.demo.evaluation", "", "datasets.demo.evaluation: is empty; give a file or folder"),
    ("datasets.demo.evaluation", "-x", "evaluation: '-x' would be taken for an option; write './-x'"),
    ("datasets.demo.calibration", "it's {x}.safetensors", "would put another word in place of {x}; rename"),
    ("models.demo.checkpoint", "weights {v1}.pth", "models.demo.checkpoint: 'weights {v1}.pth': Snakemake"),
    ("models.demo.checkpoint", "{model}/{w,[a-z]+}.pth", "in place of {model}; rename the file"),
    ("models.demo.checkpoint", "--help", "'--help' would be taken for an option; write './--help'"),
    ("device", "x" * 10_000, "device: unknown value 'xxx"),
    ("device", "gpu", "device: unknown value 'gpu'; did you mean 'cpu'?"),
    ("datasets.demo.kind", "folders", "datasets.demo.kind: unknown value 'folders'; did you mean 'folder'?"),
    ("datasets.demo.classes", "imagnet", "did you mean 'imagenet'?"),
    ("datasets.demo.classes", "imagenet", "datasets.demo.classes: 'imagenet' is for kind folder, not arrays"),
    (
        "datasets.demo",
        {"kind": "torchvision", "calibration": "CIFR10:train:data", "evaluation": "CIFAR10:test:data"},
        "datasets.demo.calibration: 'CIFR10:train:data': unknown torchvision data set 'CIFR10'; did",
    ),
    ("datasets.demo", "resources", "datasets.demo: must be a mapping, not 'resources'"),
    ("models", {}, "models: is empty; give at least one"),
    ("models.demo.opset", 21, "models.demo.opset: 21 is too large; nearest valid: 20"),
    ("models.demo.opset", 18, "models.demo.opset: 18: torchscript writes 11 to 17; nearest valid: 17"),
    ("models.demo.exporter", "dynmo", "models.demo.exporter: unknown value 'dynmo'; did you mean 'dynamo'?"),
    ("models.demo.classifier", "no", "models.demo.classifier: must be true or false, not 'no'"),
    ("models.demo.preprocessing", {"means": [0.5]}, "preprocessing.means: unknown key; did you mean 'mean'?"),
    ("models.demo.preprocessing", {"mean": []}, "preprocessing.mean: is empty; give at least one"),
    ("models.demo.preprocessing", {"interpolation": "cubic"}, "did you mean 'bicubic'?"),
    ("models.demo.preprocessing", {"input_size": [3, 0, 8]}, "preprocessing.input_size[1]: 0 is too small"),
    ("models.demo.checkpoint", 3, "models.demo.checkpoint: must be text, not 3"),
    ("models.demo.dataset", "dmo", "models.demo.dataset: unknown data set 'dmo'; did you mean 'demo'?"),
    ("recipes", [], "recipes: is empty; give at least one"),
    ("recipes", ["vanilla", "vanilla"], "recipes: 'vanilla' is listed twice"),
    ("recipes", ["vanilla", "layernrm"], "recipes[1]: unknown recipe 'layernrm' in "),
    ("recipes", ["layernrm"], "; did you mean 'layernorm'?"),
    ("recipes", ["../vanilla"], "recipes[0]: '../vanilla' can't name a folder;"),
    ("recipes", ["fp32"], "recipes[0]: 'fp32' is taken by another result; choose another name"),
    ("models.my vit", DEMO, "models.my vit: 'my vit' can't name a folder;"),
    ("models.my vit", DEMO, "try 'my_vit'"),
    ("models...", DEMO, "can't name a folder"),
    (f"models.{'m' * 200}", DEMO, "'mmmmmmmmmmmmmmmmmmmm...' has 200 characters; at most 100"),
    ("benchmark.architectures", ["hf-hub:$(touch ran)"], "[0]: 'hf-hub:$(touch ran)' can't name a folder;"),
    ("study.recipes", ["../recipes/vanilla"], "study.recipes[0]: '../recipes/vanilla' can't name a folder;"),
    ("leaderboard.recipes", ["$(touch ran)"], "leaderboard.recipes[0]: '$(touch ran)' can't name a folder;"),
    ("leaderboard.bases", ["`id`"], "leaderboard.bases[0]: '`id`' can't name a folder;"),
    ("learning_curve.recipes", ["a b"], "learning_curve.recipes[0]: 'a b' can't name a folder;"),
    ("data_free.sources", {"=1+1": "papers"}, "data_free.sources.=1+1: '=1+1' can't be a label;"),
    ("data_free.sources", {"$x_{$": "papers"}, "'$x_{$' can't be a label; letters, digits and _ . , ( ) -"),
    ("data_free.sources", {"real": "../papers"}, "data_free.sources.real: '../papers' can't name a folder;"),
    ("models.demo.source", "hf-hub:a b;c", "'hf-hub:a b;c': no name of the hub; write hf-hub:NAME@REVISION"),
    ("models.demo.arguments", {"depth": 10**9}, "models.demo.arguments.depth: 1000000000 is too large; at"),
    ("models.demo.arguments", {"x": {"img_size": [224, 10**9]}}, "arguments.x.img_size: 1000000000 is"),
    ("models.demo.preprocessing", {"input_size": [3, 8, 10**6]}, "1000000 is too large; nearest valid: 8192"),
    ("models.demo.preprocessing", {"crop_pct": 1e-9}, "crop_pct: 1e-09 is too small; nearest valid: 0.1"),
    ("datasets.demo.calibration", "a\nb", "calibration: 'a\\nb': holds a character that no line can show"),
    ("datasets.demo.evaluation", "\x1b]0;x", "'\\x1b]0;x': holds a character that no line can show; rename"),
    ("plots.a\nb\x1b", 1, "plots.a\\nb\\x1b: unknown key; valid: dpi, colormap"),
    ("calibration.seeds", list(range(9000)), "recipes: 27000 runs of all models, recipes, bits and"),
    ("models.figures", DEMO, "models.figures: 'figures' is taken by another result; choose another name"),
    ("bits", ["w9a8"], "bits[0]: bits 'w9a8': must lie in w2a2 to w8a8; nearest valid: 'w8a8'"),
    ("bits", ["w8a8", "4"], "bits[1]: bits '4': must lie in w2a2 to w8a8; nearest valid: 'w8a8'"),
    ("bits", ["w8a8", "w8a8"], "bits: 'w8a8' is listed twice"),
    ("bits", "w8a8", "bits: must be a list, not 'w8a8'"),
    ("models.demo.source", "local-dir:resources/dmo", "no file resources/dmo/config.json"),
    ("models.demo.source", "onnx:mine.onnx", "models.demo.source: 'onnx:mine.onnx': no file mine.onnx"),
    (
        "models.demo.source",
        "deit_tiny_patch16_224.fb_in1k@v1",
        "a revision needs the hub's name: hf-hub:timm/deit_tiny_patch16_224.fb_in1k@v1",
    ),
    ("models.demo.source", "local_dir:x", "unknown prefix 'local_dir:'; did you mean 'local-dir:'?"),
    (
        "models.demo.source",
        "deit_tiny_patch16_225",
        "demo.source: unknown timm model 'deit_tiny_patch16_225'; did you mean 'deit_tiny_patch16_224'?",
    ),
    (
        "models.demo.source",
        "deit_tiny_patch16_224.fb_in1",
        "unknown tag in 'deit_tiny_patch16_224.fb_in1'; did you mean 'deit_tiny_patch16_224.fb_in1k'?",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), SLIPS, ids=[message for *_, message in SLIPS])
def test_slip_is_refused_with_file_key_value_and_nearest(key: str, value: Any, message: str) -> None:
    mapping = changed(key, value) if key != "models..." else {**DEFAULT, "models": {"..": DEMO}}
    text = refusal(lambda: params(mapping))
    assert text.startswith("params.yaml: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "key",
    ["models", "datasets", "recipes", "bits", "calibration.seeds", "evaluation.images", "models.demo.source"],
)
def test_what_is_missing_is_named(key: str) -> None:
    assert refusal(lambda: params(without(key))) == f"params.yaml: {key}: missing"


def test_a_misspelt_key_is_not_also_missing() -> None:
    mapping = without("models.demo.dataset")
    mapping["models"]["demo"]["datset"] = "demo"
    message = "params.yaml: models.demo.datset: unknown key; did you mean 'dataset'?"
    assert refusal(lambda: params(mapping)) == message


def test_every_slip_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("models: {a: {source: 'hf-hub:x/y', dataset: 1}}\nbits: [w8]\ndevice: tpu\n")
    lines = refusal(lambda: load_params(path)).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert [line.removeprefix(f"{path}: ").partition(": ")[0] for line in lines] == [
        "models.a.dataset", "datasets", "recipes", "bits[0]", "calibration", "evaluation", "device",
    ]  # fmt: skip


@pytest.mark.parametrize("source", ["deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k", "hf-hub:a/b"])
def test_known_sources_pass(source: str) -> None:
    assert params(changed("models.demo.source", source)).models["demo"].source == source


NORMAL = {"mean": [0.5], "std": [0.5]}


def onnx_entry(**values: Any) -> dict[str, Any]:
    Path("mine.onnx").touch()
    entry = {"source": "onnx:mine.onnx", "dataset": "demo", "preprocessing": NORMAL, **values}
    return changed("models.demo", entry)


def test_an_onnx_file_passes() -> None:
    model = params(onnx_entry(classifier=False)).models["demo"]
    assert (model.preprocessing.given(), model.classifier) == (NORMAL, False)


def test_of_very_many_slips_the_first_are_told() -> None:
    for key, values in (("bits", ["x"] * 9000), ("recipes", [f"r{i}" for i in range(9000)])):
        lines = refusal(lambda key=key, values=values: params(changed(key, values))).split("\n")
        assert len(lines) == 21
        assert lines[-1] == "params.yaml: and 8980 more like these"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output": "--device"}, "output: '--device': no name that a command takes; rename it in the file"),
        ({"output": "a\nb"}, "output: 'a\\nb': no name that a command takes; rename it in the file"),
        ({"preprocessing": None}, "preprocessing: mean and std missing; an ONNX file does not tell them"),
        ({"preprocessing": {"mean": [0.5]}}, "preprocessing: std missing; an ONNX file does not tell them"),
        ({"checkpoint": "w.pth"}, "checkpoint: not for an ONNX file, which has its own; leave it out"),
        ({"arguments": {"img_size": 8}}, "arguments: not for an ONNX file, which has its own; leave it out"),
        ({"opset": 17}, "opset: not for an ONNX file, which has its own; leave it out"),
    ],
)
def test_an_onnx_file_needs_to_be_told_some_and_not_others(values: dict[str, Any], message: str) -> None:
    assert refusal(lambda: params(onnx_entry(**values))) == f"params.yaml: models.demo.{message}"


def test_the_exporter_decides_the_opset() -> None:
    mapping = changed("models.demo.exporter", "dynamo")
    message = "params.yaml: models.demo.opset: 13: dynamo writes 18 to 20; nearest valid: 18"
    assert refusal(lambda: params(mapping)) == message
    mapping["models"]["demo"]["opset"] = 20
    assert params(mapping).models["demo"].opset == 20


@pytest.mark.parametrize("value", [2, 1.5, "a", None, True, [1, 2], {"a": [1]}])
def test_arguments_take_any_plain_value(value: Any) -> None:
    mapping = changed("models.demo.arguments", {"img_size": value})
    assert params(mapping).models["demo"].arguments == {"img_size": value}


# Bits -------------------------------------------------------------------------------------------


@given(st.integers(2, 8), st.integers(2, 8))
def test_bits_are_read(weights: int, activations: int) -> None:
    assert parse_bits(f"w{weights}a{activations}") == (weights, activations)


@given(
    st.text(max_size=6).filter(lambda text: text[:1] != "w")
    | st.sampled_from(["w1a8", "w8a9", "w8a8 ", "W8A8"])
)
def test_other_bits_are_refused(bits: str) -> None:
    with pytest.raises(UserError, match=r"must lie in w2a2 to w8a8; nearest valid: 'w[2-8]a[2-8]'"):
        parse_bits(bits)


def test_the_nearest_bits_keep_what_is_right() -> None:
    assert refusal(lambda: parse_bits("w16a4")).endswith("nearest valid: 'w8a4'")


# Schemas ----------------------------------------------------------------------------------------


def schema(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / name).read_text())


def test_schemas_are_in_step_with_the_models() -> None:
    script = runpy.run_path(str(ROOT / "workflow/scripts/tools/schemas.py"))
    for name, model in script["SCHEMAS"].items():
        assert schema(name) == script["schema"](model), "run python workflow/scripts/tools/schemas.py"


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.name)
def test_schemas_are_valid(path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(path.name))


def test_schemas_accept_what_the_models_accept() -> None:
    jsonschema.validate(DEFAULT, schema("params.schema.json"))
    for path in (ROOT / "recipes").glob("*.yaml"):
        jsonschema.validate(read_yaml(path), schema("recipe.schema.json"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("modles", 1), ("models.a b", DEMO), ("models.demo.datset", 1), ("bits", ["w9a9"]), ("device", "gpu")],
)
def test_the_schema_refuses_slips_too(key: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(key, value), schema("params.schema.json"))


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"extends": "vanilla", "rules": [{"select": {"role": "fc3"}, "bits": 4}]},
        {"extends": "vanilla", "rules": [{"select": {"block": -1}, "bits": 4}]},
        {"extends": "vanilla", "rules": [{"select": {}, "bits": None}]},
        {"extends": "vanilla", "rule": []},
    ],
)
def test_the_recipe_schema_refuses_slips_too(recipe: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe, schema("recipe.schema.json"))


def test_a_sidecar_meets_its_schema(tmp_path: Path) -> None:
    source, output = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text("{}")
    with Stage("try", inputs=[source], outputs=[output], parameters={"n": 1}, seed=0) as stage:
        write_json(stage.temporary(output), {})
    sidecar = json.loads(sidecar_path(output).read_text())
    jsonschema.validate(sidecar, schema("sidecar.schema.json"))
    for broken in ({**sidecar, "seeds": 1}, {**sidecar, "outputs": {"out.json": "abc"}}, {"stage": "try"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema("sidecar.schema.json"))


# What it refers to ----------------------------------------------------------------------------------


def test_missing_files_are_named() -> None:
    found = params(changed("models.demo.checkpoint", "weights.safetensors"))
    Path("resources/demo/calibration.safetensors").touch()
    assert refusal(found.check_files).splitlines() == [
        "params.yaml: models.demo.checkpoint: no file 'weights.safetensors'",
        "params.yaml: datasets.demo.evaluation: no file or folder 'resources/demo/evaluation.safetensors'",
    ]
    for name in ("weights.safetensors", "resources/demo/evaluation.safetensors"):
        Path(name).touch()
    found.check_files()


FLOWERS = {"kind": "folder", "calibration": "train", "evaluation": "val"}


@pytest.mark.parametrize(
    ("train", "val", "changes"),
    [
        (["daisy", "rose"], ["daisy", "rose", ".cache"], {}),
        ([], ["daisy", "rose"], {}),
        (["daisy"], ["rose"], {"classes": "imagenet"}),
    ],
)
def test_class_folders_that_agree(train: list[str], val: list[str], changes: dict[str, str]) -> None:
    in_folders(train, val, {**FLOWERS, **changes}).check_files()


def test_class_folders_that_differ_are_named() -> None:
    found = in_folders(["daisy", "rose", "tulip"], ["daisy", "roses"], FLOWERS)
    assert refusal(found.check_files) == (
        "params.yaml: datasets.demo.evaluation: 'val' has 2 class folders, 'train' has 3 (only in one: rose, "
        "roses, tulip); give both the same, or calibrate on a folder without subfolders"
    )
    mapping = changed("models.demo.classifier", False)
    params({**mapping, "datasets": {"demo": FLOWERS}}).check_files()


def test_an_order_of_classes_that_is_to_be_said() -> None:
    names = ["class_1", "class_2", "class_10"]
    found = in_folders(names, names, FLOWERS)
    assert refusal(found.check_files).startswith(
        "params.yaml: datasets.demo.class_order: missing; from place 1 on class folders are class_10, class_2"
    )
    for order in ("natural", "string"):
        params(changed("datasets.demo", {**FLOWERS, "class_order": order})).check_files()
    mapping = changed("models.demo.classifier", False)
    params({**mapping, "datasets": {"demo": FLOWERS}}).check_files()


def test_classes_by_the_innermost_folder() -> None:
    """As timm's training labels; here the outermost folder is the class."""
    found = in_folders(["ant", "bee"], ["ant", "bee"], FLOWERS)
    (Path("val/ant/deep")).mkdir()
    (Path("val/ant/deep/1.png")).write_bytes(b"")
    line = "ant/deep/1.png is of class 'ant' here, as torchvision labels it, but of class 'deep' as timm does"
    assert refusal(found.check_files).startswith(f"params.yaml: datasets.demo.class_order: missing; {line}")
    natural = params(changed("datasets.demo", {**FLOWERS, "class_order": "natural"}))
    assert refusal(natural.check_files).startswith(f"params.yaml: datasets.demo.class_order: natural; {line}")
    string = params(changed("datasets.demo", {**FLOWERS, "class_order": "string"}))
    assert "class_order" not in refusal(string.check_files)  # only that there are few images


def test_more_images_than_there_are(tmp_path: Path) -> None:
    """Told before anything runs, of each kind of data set whose images can be counted at once."""
    save_file({"images": np.zeros((6, 1, 2, 2), np.uint8)}, "six.safetensors")
    Path("six.csv").write_text("path\n" + "".join(f"{i}.png\n" for i in range(6)))
    for i in range(6):
        Path("six").mkdir(exist_ok=True)
        Path("six", f"{i}.jpg").touch()
    six = {"calibration": {"images": 6, "batch_size": 2, "seeds": [0]}}
    small = {**without("errors"), "evaluation": {"images": None, "batch_size": 2}, "attention": {"images": 7}}
    enough = {**small, "errors": {"images": 6, "logits_images": 2}, "attention": {"images": 2}}
    small["errors"] = {"images": 8, "logits_images": 9}
    keys = ("errors.images: 8", "errors.logits_images: 9", "attention.images: 7")
    for kind, place in (("arrays", "six.safetensors"), ("csv", "six.csv"), ("folder", "six")):
        data = {"datasets": {"demo": {"kind": kind, "calibration": place, "evaluation": place}}}
        assert refusal(params({**small, **data, **six}).check_files).splitlines() == [
            f"params.yaml: {key}, but {place!r} holds 6 images; at most that many" for key in keys
        ]
        params({**enough, **data, **six}).check_files()
        assert "params.yaml: calibration.images: " in refusal(params({**enough, **data}).check_files)


def in_folders(train: list[str], val: list[str], dataset: dict[str, str]) -> Params:
    for part, names in (("train", train), ("val", val)):
        for path in (Path(part), *(Path(part, name) for name in names)):
            path.mkdir()
    return params(changed("datasets.demo", dataset))


def test_by_default_no_more_images_are_asked_for_than_there_are() -> None:
    save_file({"images": np.zeros((6, 1, 2, 2), np.uint8)}, "six.safetensors")
    data = {"kind": "arrays", "calibration": "six.safetensors", "evaluation": "six.safetensors"}
    found = {**without("errors"), "datasets": {"demo": data}, "evaluation": {"images": None, "batch_size": 2}}
    found["calibration"] = {"images": 6, "batch_size": 2, "seeds": [0]}
    for evaluated, said, expected in ((None, {}, 6), (5, {}, 5), (None, {"images": 3}, 3)):
        found["evaluation"]["images"], found["errors"] = evaluated, said
        params(found).check_files()
        assert images_for(params(found), "demo", "errors", "images") == expected
    data["evaluation"] = "not there"
    assert images_for(params(found), "demo", "errors", "logits_images") == 32


@pytest.mark.parametrize("key", ["errors.images", "errors.logits_images", "attention.images"])
def test_no_more_images_than_are_evaluated(key: str) -> None:
    message = f"params.yaml: {key}: 2001, but evaluation.images is 2000; at most that many"
    assert refusal(lambda: params(changed(key, 2001))) == message


def test_a_recipe_is_checked_with_the_bits_asked_for(tmp_path: Path) -> None:
    text = (ROOT / "recipes/vanilla.yaml").read_text().replace("observer: percentile", "observer: kl")
    (tmp_path / "kl.yaml").write_text(text)
    mapping = {**without("study"), "recipes": ["kl"], "bits": ["w8a8"]}
    for other in ("benchmark", "leaderboard", "data_free", "learning_curve"):
        del mapping[other]
    Params.from_mapping(mapping, "params.yaml", tmp_path)
    said = refusal(
        lambda: Params.from_mapping({**mapping, "bits": ["w8a8", "w4a8"]}, "params.yaml", tmp_path)
    )
    assert said.startswith(f"{tmp_path}/kl.yaml: defaults.observer: observer kl works from 5 bits on, ")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("study.bits", ["w8a8"], "study.bits: too few; give at least 2"),
        ("study.bits", ["w8a8", "w8a8"], "study.bits: 'w8a8' is not narrower than 'w8a8' before it"),
        ("study.bits", ["w4a4", "w8a8"], "study.bits: 'w8a8' is not narrower than 'w4a4' before it"),
        ("study.recipes", ["vanilla", "auto"], "study.recipes: 'auto' is the recipe that the study writes"),
        ("study.recipes", ["vanila"], "study.recipes[0]: unknown recipe 'vanila' in "),
        ("study.share", 0.0, "study.share: 0.0: Input should be greater than 0"),
    ],
)
def test_a_study_that_cannot_be_is_named(key: str, value: Any, said: str) -> None:
    assert said in refusal(lambda: params(changed(key, value)))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("leaderboard.recipes", ["papers", "vanila"], "leaderboard.recipes[1]: unknown recipe 'vanila' in "),
        ("leaderboard.recipes", ["papers", "papers"], "leaderboard.recipes: 'papers' is listed twice"),
        (
            "leaderboard.bases",
            ["papers", "layernorm"],
            "leaderboard.bases[1]: 'layernorm' is no row of the lead",
        ),
        (
            "leaderboard.bits_of",
            {"papers": ["w4a4"], "paper": ["w4a4"]},
            "leaderboard.bits_of.paper: 'paper' is no row of the leaderboard; did you mean 'papers'?",
        ),
        ("leaderboard.bits", ["w8a8", "w9a8"], "leaderboard.bits[1]: bits 'w9a8': must lie in w2a2 to w8a8"),
        ("leaderboard.seeds", [], "leaderboard.seeds: is empty; give at least one"),
        ("leaderboard.images", 0, "leaderboard.images: 0 is too small; nearest valid: 1"),
    ],
)
def test_a_leaderboard_that_cannot_be_is_named(key: str, value: Any, said: str) -> None:
    assert said in refusal(lambda: params(changed(key, value)))


def test_a_recipe_of_the_leaderboard_is_checked_with_its_bits(tmp_path: Path) -> None:
    text = (ROOT / "recipes/vanilla.yaml").read_text()
    (tmp_path / "vanilla.yaml").write_text(text)
    (tmp_path / "kl.yaml").write_text(text.replace("observer: percentile", "observer: kl"))
    board = {"recipes": ["kl"], "bases": [], "bits": ["w8a8", "w4a4"]}
    mapping = {**without("study"), "recipes": ["vanilla"], "leaderboard": board}
    for other in ("benchmark", "data_free", "learning_curve"):
        del mapping[other]
    said = refusal(lambda: Params.from_mapping(mapping, "params.yaml", tmp_path))
    assert said.startswith(f"{tmp_path}/kl.yaml: defaults.observer: observer kl works from 5 bits on, ")
