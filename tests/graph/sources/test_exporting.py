"""Models of every family, from checkpoints and from ONNX files; what is wrong with one is one line."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_models import random_images, randomised, run_all
from tiny_stages import Ended, files, run_stage, write_weights

from ptq2themoon.graph.sources.checkpoints import load_weights
from ptq2themoon.graph.sources.misfits import outline
from ptq2themoon.vocabulary import onnx_data

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2}
VIT = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {**SMALL, "img_size": 32}  # of vit_tiny_patch16_224: 4 patches and a class token


def state_of(name: str, **arguments: Any) -> dict[str, torch.Tensor]:
    return randomised(timm.create_model(name, **arguments)).state_dict()


def export(folder: Path, **changes: Any) -> Ended:
    """The stage with options in Python's form."""
    plain = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in changes.items()}
    return run_stage(folder, "export", **plain)


def exported(folder: Path, **changes: Any) -> dict[str, Any]:
    """model.json of an export that ends well and says nothing."""
    ended = export(folder, **changes)
    assert (ended.status, ended.out, ended.err) == (0, "", "")
    info = json.loads((folder / "out/model.json").read_text())
    assert info["max_abs_logit_difference"] <= 1e-4
    return info


def refused(folder: Path, **changes: Any) -> str:
    """The one line of an export that writes nothing."""
    before = files(folder)
    ended = export(folder, **changes)
    assert (ended.status, ended.out) == (2, "")
    assert files(folder) == before
    assert ended.err.count("\n") == 1
    return ended.err.removeprefix("error: ").rstrip("\n")


# Families --------------------------------------------------------------------------------------------

FAMILIES: list[tuple[str, dict[str, Any], dict[str, Any], int, int | None]] = [
    ("deit_tiny_distilled_patch16_224", TINY, {}, 2, 1000),
    (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "img_size": 56, "num_classes": 6},
        {}, 4, 6,
    ),
    ("mobilevit_xxs", {}, {"input_size": [3, 64, 64]}, 9, 1000),
    ("vit_small_patch14_dinov2", {**SMALL, "img_size": 56}, {}, 2, None),
    ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 56}, {}, 2, None),
    ("vit_giant_patch14_reg4_dinov2", {**SMALL, "img_size": 56}, {}, 2, None),
    (VIT, {**TINY, "global_pool": "avg", "num_classes": 7}, {}, 2, 7),
    (VIT, {**TINY, "global_pool": "", "num_classes": 0}, {}, 2, None),
]  # fmt: skip


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize(
    ("name", "arguments", "preprocessing", "softmaxes", "classes"),
    FAMILIES,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_family(
    tmp_path: Path,
    name: str,
    arguments: dict[str, Any],
    preprocessing: dict[str, Any],
    softmaxes: int,
    classes: int | None,
    opset: int,
) -> None:
    """Attention is plain operators: one Softmax per block."""
    save_file(state_of(name, **arguments), tmp_path / "w.safetensors")
    options = {"source": name, "checkpoint": "w.safetensors", "arguments": arguments}
    info = exported(tmp_path, **options, preprocessing=preprocessing, opset=opset)
    assert (info["output"], info["num_classes"]) == ("logits" if classes else "features", classes)
    size = arguments.get("img_size", 64)
    assert info["input_size"] == info["preprocessing"]["input_size"] == [3, size, size]
    assert (info["exporter"], info["opset"], info["architecture"]) == ("torchscript", opset, name)
    assert info["weights"] == {"file": "w.safetensors"}
    model = onnx.load(tmp_path / "out/model.onnx")
    assert Counter(node.op_type for node in model.graph.node)["Softmax"] == softmaxes
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("opset", [18, 20])
def test_dynamo(tmp_path: Path, opset: int) -> None:
    save_file(state_of(VIT, **TINY), tmp_path / "w.safetensors")
    options = {"source": VIT, "checkpoint": "w.safetensors", "arguments": TINY}
    info = exported(tmp_path, **options, exporter="dynamo", opset=opset)
    assert (info["exporter"], info["opset"], info["input_size"]) == ("dynamo", opset, [3, 32, 32])
    model = onnx.load(tmp_path / "out/model.onnx")
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["LayerNormalization"], kinds["Gelu"]) == (5, 2 if opset == 20 else 0)
    for batch in (1, 3):
        assert run_all(model, random_images(batch, 3, 32, 32))[0].shape == (batch, 1000)


def test_no_classifier_of_weights_that_have_one(tmp_path: Path) -> None:
    """From a folder and from a file; none of the other weights may be missing."""
    write_weights(tmp_path / "weights")
    info = exported(tmp_path, arguments={"num_classes": 0})
    assert (info["output"], info["num_classes"], info["check"]["logits"]) == ("features", None, None)
    save_file(state_of(VIT, **TINY), tmp_path / "w.safetensors")
    arguments = {**TINY, "num_classes": 0}
    info = exported(tmp_path, source=VIT, checkpoint="w.safetensors", arguments=arguments)
    assert (info["output"], info["num_classes"]) == ("features", None)


def test_logits_that_are_to_be_features(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights")
    info = exported(tmp_path, features=[])
    assert (info["output"], info["num_classes"]) == ("features", None)


def test_preprocessing_of_ones_own(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights")
    changes = {
        "mean": [0.1],
        "std": [0.9],
        "interpolation": "bilinear",
        "crop_pct": 0.8,
        "crop_mode": "squash",
    }
    assert exported(tmp_path, preprocessing=changes)["preprocessing"] == {
        "input_size": [1, 28, 28],
        **changes,
    }


# Checkpoints -----------------------------------------------------------------------------------------


def under(*keys: str) -> Callable[[Any], Any]:
    def wrapped(state: Any) -> Any:
        for key in reversed(keys):
            state = {key: state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
        return state

    return wrapped


FORMS: dict[str, Callable[[Any], Any]] = {
    "bare": dict,
    "model": under("model"),
    "state_dict": under("state_dict"),
    "state_dict_ema": under("state_dict_ema"),
    "DDP": lambda state: under("model")({f"module.{key}": value for key, value in state.items()}),
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "both": lambda state: {"state_dict": {k: v * 0 for k, v in state.items()}, "state_dict_ema": state},
}


@pytest.mark.parametrize("form", FORMS)
def test_state_dict(tmp_path: Path, form: str) -> None:
    state = state_of(VIT, **TINY)
    torch.save(FORMS[form](state), tmp_path / "w.pth")
    model = timm.create_model(VIT, **TINY)
    load_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_safetensors_of_ddp(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in state_of(VIT, **TINY).items()}
    save_file(state, tmp_path / "w.safetensors")
    exported(tmp_path, source=VIT, checkpoint="w.safetensors", arguments=TINY)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(2)], {"model": {"a": 1}}])
def test_no_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    line = refused(tmp_path, source=VIT, checkpoint="w.pth", arguments=TINY)
    assert line == "w.pth: holds no state dict, bare or under state_dict_ema, model, state_dict"


HEAD = "w.safetensors: its head 'head' has 5 classes, the model"
CLASSES = "give `arguments: {num_classes: 5}`, or `--classes 5` to `ptq2themoon`"
OTHERS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"num_classes": 5}, {"num_classes": 3}, f"{HEAD} 3; {CLASSES}"),
    ({"num_classes": 5}, {}, f"{HEAD} 1000; {CLASSES}"),
    (
        {"num_classes": 0},
        {},
        "w.safetensors: has no classifier (head.bias, head.weight); "
        "give `arguments: {num_classes: 0}` for features",
    ),
    (
        {"img_size": 64},
        {},
        "w.safetensors: its position embedding pos_embed has 17 tokens, the model 5: the file is for "
        "images of 64x64, the model for 32x32; give `arguments: {img_size: 64}`",
    ),
    (
        {"embed_dim": 48},
        {},
        "w.safetensors: weights of another architecture: 31 of 32 have another shape (as cls_token: "
        "[1, 1, 48], expected [1, 1, 32]); the file has 2 blocks of width 48, the model 2 blocks of width 32",
    ),
    (
        {"depth": 3},
        {},
        "w.safetensors: weights of another architecture: 0 keys missing (as []), 12 unexpected (as "
        "['blocks.2.attn.proj.bias', 'blocks.2.attn.proj.weight']); "
        "the file has 3 blocks of width 32, the model 2 blocks of width 32",
    ),
]


@pytest.mark.parametrize(("theirs", "asked", "message"), OTHERS, ids=[str(theirs) for theirs, *_ in OTHERS])
def test_weights_that_do_not_fit(
    tmp_path: Path, theirs: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    save_file(state_of(VIT, **{**TINY, **theirs}), tmp_path / "w.safetensors")
    options = {"source": VIT, "checkpoint": "w.safetensors", "arguments": {**TINY, **asked}}
    assert refused(tmp_path, **options) == message


def test_weights_of_transformers(tmp_path: Path) -> None:
    names = ("vit.embeddings.cls_token", "vit.encoder.layer.0.attention.attention.query.weight")
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "w.safetensors")
    line = refused(tmp_path, source=VIT, checkpoint="w.safetensors", arguments=TINY)
    assert line.startswith("w.safetensors: weights of another architecture: 32 keys missing")
    assert line.endswith("named as transformers does it: export that model, give `source: onnx:FILE`")


def test_a_random_head_is_refused(tmp_path: Path) -> None:
    """timm would fill it with random numbers."""
    write_weights(tmp_path / "weights")
    line = refused(tmp_path, arguments={"num_classes": 3})
    assert line.startswith(
        "model 'local-dir:weights': arguments.num_classes is 3, but the weights' head has 10 classes; "
    )


SIZES: list[tuple[dict[str, Any], str]] = [
    (
        {"input_size": [1, 56, 56]},
        "input_size: images of 56x56, but its position embedding is fixed for 28x28; "
        "give `arguments: {img_size: 56}`",
    ),
    (
        {"input_size": [3, 28, 28]},
        "input_size: images of 3 channels, but the model takes 1; give `arguments: {in_chans: 3}`",
    ),
    ({"mean": [0.1, 0.2]}, "mean: 2 values for images of 1 channels; give 1"),
]


@pytest.mark.parametrize(("changes", "message"), SIZES, ids=[str(changes) for changes, _ in SIZES])
def test_images_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_weights(tmp_path / "weights")
    assert refused(tmp_path, preprocessing=changes) == f"model 'local-dir:weights': preprocessing.{message}"


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"pretrained_cfg": {"std": [0]}}, "preprocessing: std[0]: "),
    ({"pretrained_cfg": {"mean": "x"}}, "preprocessing: "),
    ({"pretrained_cfg": {"interpolation": 5}}, "preprocessing: "),
    ({"pretrained_cfg": {"crop_pct": 1e-9}}, "preprocessing: crop_pct: "),
    ({"pretrained_cfg": {"input_size": 28}}, "timm cannot make it ("),
    ({"label_names": 5}, "label_names: must be a list"),
    ({"label_names": [1]}, "label_names[0]: "),
    ({"pretrained_cfg": 5}, "timm cannot make it ("),
    ({"architecture": ["x"]}, "timm cannot make it ("),
    ({"model_args": {"depth": 10**9}}, "timm cannot make it (weights/config.json: model_args.depth: "),
]


@pytest.mark.parametrize(("changes", "message"), CONFIGS, ids=[str(changes) for changes, _ in CONFIGS])
def test_a_config_of_nonsense_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_weights(tmp_path / "weights")
    path = tmp_path / "weights/config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    assert message in refused(tmp_path)


def test_a_size_that_the_layers_refuse(tmp_path: Path) -> None:
    save_file(state_of("mobilevit_xxs"), tmp_path / "w.safetensors")
    options = {"source": "mobilevit_xxs", "checkpoint": "w.safetensors"}
    line = refused(tmp_path, **options, preprocessing={"input_size": [4, 64, 64]})
    assert "images of 4 channels, but the model takes 3" in line


def test_outlines() -> None:
    arguments = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "img_size": 56}
    assert outline(state_of("swin_tiny_patch4_window7_224", **arguments)).startswith(
        "4 blocks of width 16 to"
    )
    assert outline(state_of(VIT, **TINY)) == "2 blocks of width 32"


# Exporters -------------------------------------------------------------------------------------------


def test_a_weight_that_no_constant_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before the exporter of torch fails in its own words."""
    monkeypatch.setattr(onnx_data, "LARGEST_MESSAGE", 10_000)
    write_weights(tmp_path / "weights")
    line = refused(tmp_path)
    assert line.startswith(
        "model 'local-dir:weights': has a constant of 0.0 GB, and ONNX holds 2 GB in one; "
    )


def test_a_model_that_keeps_tensors_of_its_first_run(tmp_path: Path) -> None:
    """ConViT: the check before the export must not leave it tensors that cannot be exported."""
    arguments = {"depth": 3, "local_up_to_layer": 2, "embed_dim": 8, "num_heads": 2, "img_size": 32}
    save_file(state_of("convit_tiny", **arguments), tmp_path / "w.safetensors")
    options = {"source": "convit_tiny", "checkpoint": "w.safetensors", "arguments": arguments}
    info = exported(tmp_path, **options, preprocessing={"input_size": [3, 32, 32]})
    assert info["num_classes"] == 1000


def test_an_operator_that_one_exporter_lacks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """AIMv2's RMSNorm: the line names the exporter that has it, and torch's own libraries say nothing."""
    name, arguments = "aimv2_large_patch14_224", {**SMALL, "img_size": 28, "num_classes": 5}
    save_file(state_of(name, **arguments), tmp_path / "w.safetensors")
    options = {"source": name, "checkpoint": "w.safetensors", "arguments": arguments}
    options["preprocessing"] = {"input_size": [3, 28, 28]}
    line = refused(tmp_path, **options)
    assert "aten::rms_norm" in line
    assert line.endswith("; try the other exporter: `exporter: dynamo, opset: 18`")
    assert capfd.readouterr().out == ""
    info = exported(tmp_path, **options, exporter="dynamo", opset=18)
    assert (info["exporter"], info["num_classes"]) == ("dynamo", 5)
