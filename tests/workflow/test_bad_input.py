"""What a stage cannot use is refused: exit status 2, one line that names it, nothing written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file
from tiny_stages import STAGES, between, command, files, process, run_stage, write_inputs, write_weights

from ptq2themoon.safety.sidecars import sha256

FOLDERS = ("out/", "recipes/", "published/")
DATA_SETS = ("calibration.safetensors", "evaluation.safetensors")
QUANTIZED = ("evaluate", "operator_errors", "attention_maps", "study_rollout")
ON_IMAGES = ("reference", *QUANTIZED)
OTHER_GRAPH = "out/fp32/reference.safetensors: was made for another graph than is given; run the reference"
FUSED = ("out/fused.onnx", "out/fusion.json", "out/model.json")
ON_GRAPHS = ("calibrate", *ON_IMAGES)


def refused(folder: Path, stage: str, **changes: Any) -> str:
    """The one line, without `error: `, with which `stage` refuses what is in `folder`."""
    outputs = {k: v for k, v in between(stage, "out", "new").items() if k.startswith("out")}
    before = files(folder)
    ended = run_stage(folder, stage, **outputs | changes)
    assert ended.status == 2
    assert ended.out == ""
    assert files(folder) == before
    lines = ended.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]  # only progress before it
    return lines[-1].removeprefix("error: ")


# Files -----------------------------------------------------------------------------------------------


def inputs() -> Iterator[tuple[str, str]]:
    """Every stage with each of the files that it reads, but for the weights."""
    for stage, options in STAGES.items():
        for option, value in options.items():
            if option.startswith("out"):
                continue
            if value == "out":
                yield from ((stage, path) for path in FUSED)
                continue
            for words in value if isinstance(value, list) else [value]:
                for word in re.split(r"[ =]", str(words)):
                    if word.startswith(FOLDERS) or word in DATA_SETS:
                        yield stage, word


def missing(path: Path) -> None:
    path.unlink()


def garbage(path: Path) -> None:
    path.unlink()  # it may be a link
    path.write_bytes(b"\x00\xff\xfenot this\n" * 20)


def empty(path: Path) -> None:
    path.unlink()
    path.touch()


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


DAMAGED = [
    (stage, path, damage)
    for stage, path in inputs()
    for damage in (missing, garbage, empty, cut)
    if damage is not cut or not path.endswith((".csv", ".yaml"))  # a part of these can be whole
]


@pytest.mark.parametrize(("stage", "path", "damage"), DAMAGED)
def test_a_damaged_file_is_named(copy: Path, stage: str, path: str, damage: Callable[[Path], None]) -> None:
    damage(copy / path)
    assert path in refused(copy, stage)


@pytest.mark.parametrize("damage", [missing, garbage, empty, cut])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_of_weights(copy: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(copy / "weights" / name)
    assert refused(copy, "export").startswith("model 'local-dir:weights': timm cannot make it (")


@pytest.mark.parametrize("damage", [missing, garbage, empty, cut])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_damaged_checkpoint(copy: Path, suffix: str, damage: Callable[[Path], None]) -> None:
    path = copy / f"mine{suffix}"
    path.write_bytes((copy / "weights/model.safetensors").read_bytes())
    damage(path)
    assert path.name in refused(copy, "export", source="vit_tiny_patch16_224", checkpoint=path.name)


# Files of another model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first stages for a model of three blocks, other weights and larger images."""
    folder = write_inputs(tmp_path_factory.mktemp("other"))
    write_weights(folder / "larger", 1, depth=3, img_size=32)
    for stage in ("export", "draw_calibration", "fuse", "calibrate"):
        ended = run_stage(folder, stage, **{"source": "local-dir:larger"} if stage == "export" else {})
        assert ended.status == 0, ended.err
    return folder


@pytest.mark.parametrize(
    ("path", "stages", "message"),
    [
        (
            "q/qparams.json",
            QUANTIZED,
            "out/q/qparams.json: the parameters belong to another graph than out/fused.onnx; calibrate again",
        ),
        (
            "fused.onnx",
            ON_GRAPHS,
            "out/fusion.json: lists other operators than out/fused.onnx has; run the fuse stage again",
        ),
        (
            "fusion.json",
            ON_GRAPHS,
            "out/fusion.json: lists other operators than out/fused.onnx has; run the fuse stage again",
        ),
        (
            "model.json",
            ON_GRAPHS,
            "out/model.json: preprocessing.input_size is [1, 32, 32], but out/fused.onnx takes [1, 28, 28]; "
            "it belongs to another model",
        ),
        (
            "calibration.safetensors",
            ("fuse", "calibrate"),
            "out/calibration.safetensors: images of [1, 32, 32], but the model takes [1, 28, 28]; "
            "draw them for this model",
        ),
    ],
)
def test_a_file_of_another_model(
    copy: Path, other: Path, path: str, stages: tuple[str, ...], message: str
) -> None:
    (copy / "out" / path).write_bytes((other / "out" / path).read_bytes())
    for stage in stages:
        assert refused(copy, stage) == message


def test_a_graph_for_other_images_than_its_description(copy: Path, other: Path) -> None:
    (copy / "out/model.onnx").write_bytes((other / "out/model.onnx").read_bytes())
    line = refused(copy, "fuse")
    assert line.startswith("ONNX Runtime cannot run the graph on [5, 1, 28, 28] (")
    assert "Expected: 32" in line


def test_parameters_of_the_same_network_with_other_weights(copy: Path) -> None:
    """Same names, same shapes: only the bytes tell."""
    change_constant(copy / "out/fused.onnx", 1.5)
    for stage in QUANTIZED:
        assert "belong to another graph" in refused(copy, stage)


def test_a_checkpoint_of_another_model(copy: Path) -> None:
    line = refused(copy, "export", source="vit_tiny_patch16_224", checkpoint="weights/model.safetensors")
    assert line.startswith("weights/model.safetensors: weights of another architecture: 120 keys missing (as")
    arguments = json.loads((copy / "weights/config.json").read_text())["model_args"] | {"mlp_ratio": 3}
    shapes = {"source": "vit_tiny_patch16_224", "arguments": json.dumps(arguments)}
    line = refused(copy, "export", **shapes, checkpoint="weights/model.safetensors")
    assert line.startswith("weights/model.safetensors: weights of another architecture: 6 of ")
    assert line.endswith("the file has 2 blocks of width 32, the model 2 blocks of width 32")


# Numbers that are none -------------------------------------------------------------------------------


def change_constant(path: Path, value: float) -> str:
    """Set one weight of an ONNX model; the name of its constant."""
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    array = numpy_helper.to_array(tensor).copy()
    array.flat[7] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    return tensor.name


@pytest.mark.parametrize("stage", ["fuse", *ON_GRAPHS])
def test_weights_that_are_no_numbers(copy: Path, stage: str) -> None:
    path = "out/model.onnx" if stage == "fuse" else "out/fused.onnx"
    name = change_constant(copy / path, float("nan"))
    said = refused(copy, stage)
    assert said.startswith(f"{path}: constant {name!r} of operator ")
    assert said.endswith(" holds values that are not finite")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("fuse", "the model gives logits that are not finite on the calibration images"),
        ("calibrate", "operator 'blocks."),
        ("reference", "the model gives logits that are not finite"),
        ("evaluate", OTHER_GRAPH),
        ("operator_errors", OTHER_GRAPH),
        ("attention_maps fp32", "the model gives attention that is not finite"),
        ("study_rollout fp32", "the model gives attention that is not finite"),
    ],
)
def test_infinite_weights(copy: Path, stage: str, message: str) -> None:
    """They can be meant, as in a mask; the stages judge by what comes out."""
    path = copy / ("out/model.onnx" if stage == "fuse" else "out/fused.onnx")
    change_constant(path, float("inf"))
    qparams = copy / "out/q/qparams.json"
    qparams.write_text(json.dumps(json.loads(qparams.read_text()) | {"graph_sha256": sha256(path)}))
    assert refused(copy, stage).startswith(message)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_export_refuses_weights_that_are_not_finite(copy: Path, value: float) -> None:
    path = copy / "weights/model.safetensors"
    weights = load_file(path)
    weights["blocks.1.mlp.fc1.weight"][3, 4] = value
    save_file(weights, path)
    line = refused(copy, "export")
    assert line == "model 'local-dir:weights': weights that are not finite: blocks.1.mlp.fc1.weight"


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("value", ["NaN", "Infinity"])
@pytest.mark.parametrize("stage", ["draw_calibration", "fuse", *ON_GRAPHS])
def test_images_that_would_be_no_numbers(copy: Path, stage: str, key: str, value: str) -> None:
    path = copy / "out/model.json"
    info = json.loads(path.read_text())
    info["preprocessing"][key] = [float(value.lower())]
    path.write_text(json.dumps(info))
    assert refused(copy, stage).startswith(f"out/model.json: preprocessing.{key}[0]: ")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "0", "-0.5"])
@pytest.mark.parametrize("stage", QUANTIZED)
def test_scales_that_are_none(copy: Path, stage: str, value: str) -> None:
    path = copy / "out/q/qparams.json"
    content = json.loads(path.read_text())
    content["operators"][0]["tensors"][0]["quantizer"]["scale"] = float(value.lower())
    path.write_text(json.dumps(content))
    line = refused(copy, stage)
    assert line == (
        "out/q/qparams.json: operators[0] ('patch_embed'), input 0: scale must be finite and above 0; "
        "calibrate again"
    )


def test_images_of_floats(copy: Path) -> None:
    path = copy / "evaluation.safetensors"
    path.unlink()
    save_file({"images": np.full((40, 1, 28, 28), np.nan, np.float32), "labels": np.arange(40) % 10}, path)
    for stage in ("list_evaluation", *ON_IMAGES):
        assert refused(copy, stage).startswith("evaluation.safetensors: images: F32 [40, 1, 28, 28]; U8")


# Manifests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [stage for stage in ON_IMAGES if "reference" not in STAGES[stage]])
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "out/evaluation.csv: lists no images"),
        (["0,1", *["2000,3"] * 11], "evaluation.safetensors: no image '2000'; it holds 2000"),
        (["../secret.png,3"] * 12, "evaluation.safetensors: no image '../secret.png'; it holds 2000"),
        (["0,1", "1,-2"], "out/evaluation.csv:3: '1,-2' is no source and label"),
        (["0,1", "1"], "out/evaluation.csv:3: '1' is no source and label"),
    ],
)
def test_manifests(copy: Path, stage: str, lines: list[str], message: str) -> None:
    (copy / "out/evaluation.csv").write_text("\n".join(["source,label", *lines]))
    assert refused(copy, stage) == message


@pytest.mark.parametrize("stage", ["evaluate", "operator_errors", "verify_runtime", "study_ablation"])
def test_images_other_than_those_of_the_reference(copy: Path, stage: str) -> None:
    (copy / "out/evaluation.csv").write_text("source,label\n" + "".join(f"{i},3\n" for i in range(20)))
    assert refused(copy, stage) == (
        "out/fp32/reference.safetensors: was made for another manifest than is given; "
        "run the reference stage again"
    )


@pytest.mark.parametrize("stage", ["reference", "evaluate"])
def test_a_label_that_the_model_does_not_know(copy: Path, stage: str) -> None:
    (copy / "out/evaluation.csv").write_text("source,label\n0,9\n1,10\n")
    assert refused(copy, stage) == "out/evaluation.csv:3: label 10, but the model tells 10 apart"


# Recipes and options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"select": {"role": "fc3"}}, "rules[0].select.role: unknown value 'fc3'; did you mean 'fc2'?"),
        (
            {"select": {"role": "q"}},
            "rules[0].select.role: selects no operator with 'q'; did you mean 'qkv'?",
        ),
        ({"select": {"block": -1}}, "rules[0].select.block: -1 is too small; nearest valid: 0"),
        ({"select": {"block": 2}}, "rules[0].select.block: "),
        ({"select": {}, "observr": "kl"}, "rules[0].observr: unknown key; did you mean 'observer'?"),
        ({"selct": {}, "bits": 8}, "rules[0].selct: unknown key; did you mean 'select'?"),
        ({"select": {}, "bits": 1}, "rules[0].bits: 1 is too small; nearest valid: 2"),
        ({"select": {}, "bits": "8"}, "rules[0].bits: must be an integer, not '8'"),
        ({"select": {}, "observer": "percentil"}, "unknown value 'percentil'; did you mean 'percentile'?"),
    ],
    ids=str,
)
def test_recipes(copy: Path, rule: dict[str, Any], message: str) -> None:
    rule = {"observer": "minmax", **rule} if len(rule) == 1 else rule
    (copy / "recipes/mine.yaml").write_text(yaml.safe_dump({"extends": "vanilla", "rules": [rule]}))
    line = refused(copy, "calibrate", recipe="recipes/mine.yaml")
    assert line.startswith("recipes/mine.yaml: rules[0].")
    assert message in line


def test_several_slips_have_a_line_each(copy: Path) -> None:
    text = "extends: vanilla\ndescripton: x\nrules: [{select: {role: fc3}, bits: 1}]\n"
    (copy / "recipes/mine.yaml").write_text(text)
    ended = run_stage(copy, "calibrate", recipe="recipes/mine.yaml")
    assert ended.status == 2
    assert [
        line.partition("recipes/mine.yaml: ")[2].partition(":")[0] for line in ended.err.splitlines()
    ] == [
        "rules[0].select.role",
        "rules[0].bits",
        "descripton",
    ]


def test_a_recipe_for_a_deeper_model(copy: Path) -> None:
    ended = run_stage(copy, "calibrate", recipe="recipes/customized.yaml")
    place = "recipes/customized.yaml: rules[0].select.block: selects no operator with"
    nearest = "nearest valid: 1 ('fc2' has blocks 0, 1)"
    assert ended.status == 2
    assert ended.err == f"error: {place} 5; {nearest}\nerror: {place} 6; {nearest}\n"


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("calibrate", {"bits": "w1a8"}, "bits 'w1a8': must lie in w2a2 to w8a8; nearest valid: 'w2a8'"),
        ("calibrate", {"bits": "w8a16"}, "bits 'w8a16': must lie in w2a2 to w8a8; nearest valid: 'w8a8'"),
        ("calibrate", {"bits": "8"}, "bits '8': must lie in w2a2 to w8a8; nearest valid: 'w8a8'"),
        ("draw_calibration", {"images": 1025}, "1024 images, but 1025 are asked for"),
        ("draw_calibration", {"images": -4}, "-4 images of calibration.safetensors asked for; at least 1"),
        ("draw_calibration", {"seed": -1}, "seed -1: a whole number from 0 on expected"),
        ("list_evaluation", {"images": 2001}, "2000 images, but 2001 are asked for"),
        ("list_evaluation", {"images": 0}, "0 images of evaluation.safetensors asked for; at least 1"),
        ("list_evaluation", {"images": -3}, "-3 images of evaluation.safetensors asked for; at least 1"),
        ("fuse", {"check_images": 0}, "--check-images 0: must be 1 or more"),
        ("fuse", {"check_images": -1}, "--check-images -1: must be 1 or more"),
        ("operator_errors", {"images": 32}, "--images 32: out/evaluation.csv lists 31 images"),
        ("operator_errors", {"images": 0}, "--images 0: must be 1 or more"),
        ("operator_errors", {"images": -2}, "--images -2: must be 1 or more"),
        ("operator_errors", {"logits_images": 40}, "--logits-images 40: out/evaluation.csv lists 31 images"),
        ("operator_errors", {"logits_images": 0}, "--logits-images 0: must be 1 or more"),
        ("attention_maps", {"images": 32}, "--images 32: out/evaluation.csv lists 31 images"),
        ("attention_maps", {"images": 0}, "--images 0: must be 1 or more"),
        ("study_rollout", {"images": 0}, "--images 0: must be 1 or more"),
        ("study_fidelity", {"block": 2}, "block: 2: the model has 2 blocks"),
        ("plot_rollout", {"rows": 0}, "--rows 0: must be 1 or more"),
        ("attention_maps", {"block": 2}, "block: 2: the model has 2 blocks"),
        ("attention_maps", {"block": -3}, "block: -3: the model has 2 blocks"),
        ("evaluate", {"block": 7}, "block: 7: the model has 2 blocks"),
        ("export", {"arguments": "{depth: 3}"}, "--arguments {depth: 3}: not JSON"),
        ("export", {"arguments": "[3]"}, "--arguments [3]: must be an object"),
        ("export", {"arguments": '{"dpth": 3}'}, "timm cannot make it"),
        ("export", {"arguments": '{"pretrained": true}'}, "--arguments pretrained: not here"),
        ("export", {"source": "local-dir:nowhere"}, "model 'local-dir:nowhere': timm cannot make it"),
        ("export", {"source": "vit_tny"}, "model 'vit_tny': timm cannot make it"),
        ("export", {"opset": 1}, "opset 1: torchscript writes 11 to 17; nearest valid: 11"),
        ("export", {"exporter": "dynamo"}, "opset 13: dynamo writes 18 to 20; nearest valid: 18"),
        ("export", {"preprocessing": "[1]"}, "--preprocessing [1]: must be an object, as in"),
        ("export", {"preprocessing": '{"means": [1]}'}, "--preprocessing: means: unknown key; did you mean"),
        ("plot_attention", {"rows": 0}, "--rows 0: must be 1 or more"),
        ("plot_attention", {"image_index": 3}, "--image-index 3"),
        ("plot_top1", {"model": "tny"}, "tny"),
        *[
            (stage, {"batch_size": size}, f"batch size {size}: must be 1 or more")
            for stage in ("calibrate", "reference", "evaluate", "operator_errors")
            for size in (0, -8)
        ],
        *[
            (stage, {"kind": "array"}, "kind 'array' of")
            for stage in ("draw_calibration", "list_evaluation", *ON_IMAGES)
        ],
    ],
)
def test_options(copy: Path, stage: str, changes: dict[str, Any], message: str) -> None:
    assert message in refused(copy, stage, **changes)


# In a process of its own, as the workflow runs it -----------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("calibrate", {"batch_size": 0}, "error: batch size 0: must be 1 or more"),
        ("reference", {"model": "gone"}, "error: gone/fused.onnx: not found; stage reference"),
    ],
)
def test_one_line_and_nothing_else(copy: Path, stage: str, changes: dict[str, Any], message: str) -> None:
    before = files(copy)
    ended = process(*command(stage, **changes), cwd=copy)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(message)
    assert ended.stderr.count("\n") == 1
    assert files(copy) == before
