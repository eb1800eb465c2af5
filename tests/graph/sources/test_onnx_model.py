"""ONNX files of other people as models: what is taken as it is, and what is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tiny_models import random_images, run_all, tiny_module, to_onnx
from tiny_separate import Separate
from tiny_stages import MODEL_ARGS, ROOT, files, run_stage
from torch import nn

NORMAL = {"mean": [0.5], "std": [0.25]}


def export(folder: Path, model: onnx.ModelProto | None = None, **changes: Any) -> tuple[int, str]:
    """Status and words of the stage on `model` as mine.onnx."""
    if model is not None:
        onnx.save(model, folder / "mine.onnx")
    options: dict[str, Any] = {"source": "onnx:mine.onnx", "preprocessing": NORMAL, **changes}
    plain = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in options.items()}
    ended = run_stage(folder, "export", **plain)
    assert ended.out == ""
    return ended.status, ended.err


def exported(folder: Path, model: onnx.ModelProto, **changes: Any) -> tuple[dict[str, Any], onnx.ModelProto]:
    """model.json and the model, which gives what `model` gives."""
    assert export(folder, model, **changes) == (0, "")
    info = json.loads((folder / "out/model.json").read_text())
    assert info["max_abs_logit_difference"] <= 1e-4
    return info, onnx.load(folder / "out/model.onnx")


def refused(folder: Path, model: onnx.ModelProto | None, **changes: Any) -> str:
    """The one line of an export that writes nothing."""
    if model is not None:
        onnx.save(model, folder / "mine.onnx")
    before = files(folder)
    status, words = export(folder, **changes)
    assert status == 2
    assert files(folder) == before
    assert words.count("\n") == 1
    return words.removeprefix("error: ").rstrip("\n")


def dims(model: onnx.ModelProto) -> list[int | str]:
    shape = model.graph.input[0].type.tensor_type.shape
    return [dim.dim_param or dim.dim_value for dim in shape.dim]


# What is taken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [True, False], ids=["any batch", "one image"])
@pytest.mark.parametrize("opset", [11, 13, 17])
def test_a_file_of_any_batch_or_one(tmp_path: Path, dynamic: bool, opset: int) -> None:
    model = to_onnx(Separate(), dynamic_batch=dynamic, opset=opset)
    info, written = exported(tmp_path, model)
    assert dims(written) == ["batch" if dynamic else 1, 1, 16, 16]
    assert (info["output"], info["num_classes"], info["exporter"]) == ("logits", 5, "onnx file")
    assert (info["opset"], info["input_size"], info["architecture"]) == (opset, [1, 16, 16], None)
    assert info["source"] == "onnx:mine.onnx"
    assert info["weights"] == {"file": "mine.onnx"}
    assert info["producer"].startswith("pytorch ")
    assert info["preprocessing"] == {
        **NORMAL, "input_size": [1, 16, 16],
        "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center",
    }  # fmt: skip
    images = random_images(1)
    assert np.abs(run_all(written, images)[0] - run_all(model, images)[0]).max() <= 1e-5
    sidecar = json.loads((tmp_path / "out/model.sidecar.json").read_text())
    assert list(sidecar["inputs"]) == ["mine.onnx"]
    assert (sidecar["parameters"]["exporter"], sidecar["parameters"]["opset"]) == (None, None)


def test_a_file_of_several_images_at_a_time_to_the_fused_graph(tmp_path: Path) -> None:
    """Three; the numbers of images of the checks are no multiples."""
    module = tiny_module(**MODEL_ARGS)
    _, written = exported(tmp_path, to_onnx(module, (3, 1, 28, 28), dynamic_batch=False))
    assert dims(written) == [3, 1, 28, 28]
    (tmp_path / "calibration.safetensors").symlink_to(ROOT / "resources/demo/calibration.safetensors")
    for stage in ("draw_calibration", "fuse"):
        ended = run_stage(tmp_path, stage)
        assert ended.status == 0, ended.err
    assert json.loads((tmp_path / "out/fusion.json").read_text())["max_abs_logit_difference"] <= 1e-4
    images = random_images(4, 1, 28, 28)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    (logits,) = run_all(onnx.load(tmp_path / "out/fused.onnx"), images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_size_left_open(tmp_path: Path) -> None:
    model = to_onnx(tiny_module())
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"
    line = refused(tmp_path, model)
    assert line == (
        "mine.onnx: input 'images' has shape [batch, 1, side, side], which leaves the size open; "
        "give `preprocessing: {input_size: [C, H, W]}`"
    )
    info, written = exported(tmp_path, model, preprocessing={**NORMAL, "input_size": [1, 16, 16]})
    assert info["input_size"] == [1, 16, 16]
    assert dims(written) == ["batch", 1, 16, 16]


def test_constants_among_the_inputs(tmp_path: Path) -> None:
    """As files of old IR versions list them."""
    model = to_onnx(tiny_module())
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    _, written = exported(tmp_path, model)
    assert [item.name for item in written.graph.input] == ["images"]


def test_one_of_several_outputs(tmp_path: Path) -> None:
    """The one called `logits`, else the first; the rest is named."""
    model = to_onnx(tiny_module())
    hidden = next(node.output[0] for node in model.graph.node if node.op_type == "Softmax")
    value = helper.make_tensor_value_info(hidden, TensorProto.FLOAT, ["n", 2, 17, 17])
    logits = model.graph.output[0]
    both = onnx.ModelProto()
    both.CopyFrom(model)
    both.graph.ClearField("output")
    both.graph.output.extend([value, logits])
    status, said = export(tmp_path, both)
    assert (status, said) == (
        0,
        f"warning: mine.onnx: output 'logits' is taken, not {hidden!r}; "
        "`output: NAME` of the model takes another\n",
    )
    info = json.loads((tmp_path / "out/model.json").read_text())
    written = onnx.load(tmp_path / "out/model.onnx")
    assert (info["output_name"], info["other_outputs"]) == ("logits", [hidden])
    assert [item.name for item in written.graph.output] == ["logits"]


@pytest.mark.parametrize("pool", ["avg", ""])
def test_outputs_that_are_no_logits(tmp_path: Path, pool: str) -> None:
    """Of rank 3, and of rank 2 where params.yaml says so."""
    model = to_onnx(tiny_module(num_classes=0, global_pool=pool))
    info, _ = exported(tmp_path, model, **({"features": []} if pool else {}))
    assert (info["output"], info["num_classes"], info["check"]["logits"]) == ("features", None, None)


def test_functions_are_inlined(tmp_path: Path) -> None:
    model = to_onnx(tiny_module(), opset=17)
    opsets = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Softmax", ["x"], ["y"], axis=-1)]
    model.functions.append(helper.make_function("local", "Soft", ["x"], ["y"], body, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    for node in model.graph.node:
        if node.op_type == "Softmax":
            node.op_type, node.domain = "Soft", "local"
            node.ClearField("attribute")
    _, written = exported(tmp_path, model)
    assert not written.functions
    assert sum(node.op_type == "Softmax" for node in written.graph.node) == 2


# What is refused -------------------------------------------------------------------------------------

Change = Callable[[onnx.ModelProto], None]


def first(model: onnx.ModelProto, kind: str) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def half(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def half_within(model: onnx.ModelProto) -> None:
    softmax = first(model, "Softmax")
    model.graph.node.append(helper.make_node("Cast", [softmax.output[0]], ["half"], "narrow", to=10))


def quantized(model: onnx.ModelProto) -> None:
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    model.graph.initializer.append(scale)
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["dq"], "dequantize"),
    ]
    conv = first(model, "Conv")
    conv.input[0] = "dq"
    rest = list(model.graph.node)
    model.graph.ClearField("node")
    model.graph.node.extend([*nodes, *rest])


def custom(model: onnx.ModelProto) -> None:
    node = first(model, "Softmax")
    node.domain, node.name = "com.microsoft", "fast"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 17]))


def of_bytes(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.node.insert(0, helper.make_node("Cast", ["images"], ["float"], "cast", to=TensorProto.FLOAT))
    first(model, "Conv").input[0] = "float"


def of_text(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.ClearField("dim")
    for size in (1, 16):
        model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = size


def of_five_channels(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5


def channels_last(model: onnx.ModelProto) -> None:
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim[1:], (16, 16, 1), strict=True):
        dim.dim_value = size


def not_finite(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    array = numpy_helper.to_array(tensor).copy()
    array.flat[3] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def outside(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../weights.bin")
    tensor.ClearField("raw_data")


REFUSED: list[tuple[Change, str]] = [
    (half, "is float16; export the model in float32"),
    (half_within, "operator Cast 'narrow' makes float16; export the model in float32"),
    (
        quantized,
        "is quantized already (2 integer operators, as QuantizeLinear 'quantize'); "
        "give the float32 model that it was made from",
    ),
    (
        custom,
        "operators that are not ONNX's own: 1 com.microsoft.Softmax (as com.microsoft.Softmax 'fast'); "
        "export the model again without a runtime's optimisations",
    ),
    (two_inputs, "has 2 inputs ('images', 'mask'); one of images is needed"),
    (of_bytes, "input 'images' is uint8; images in float32 are needed"),
    (of_text, "input 'images' has shape [1, 16]; images [batch, channels, height, width] are needed"),
    (of_five_channels, "has shape [batch, 5, 16, 16]: images of 5 channels; 1 or 3 can be read"),
    (channels_last, "images of 16 channels; export the model with channels before height and width"),
    (not_finite, "holds values that are not finite"),
    (
        outside,
        "its constants lie in '../weights.bin', which is not in the file's own folder; put the data there, "
        "not as a link, or save the model with its weights inside",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[change.__name__ for change, _ in REFUSED])
def test_refused(tmp_path: Path, change: Change, message: str) -> None:
    model = to_onnx(tiny_module())
    change(model)
    line = refused(tmp_path, model)
    assert line.startswith("mine.onnx: ")
    assert line.endswith(message)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfenot this\n" * 20, "cut"])
def test_damaged(tmp_path: Path, content: bytes | str) -> None:
    whole = to_onnx(tiny_module()).SerializeToString()
    (tmp_path / "mine.onnx").write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    assert refused(tmp_path, None).startswith("mine.onnx: not a valid ONNX model (")


def test_missing(tmp_path: Path) -> None:
    assert refused(tmp_path, None).startswith("mine.onnx: not found; stage export needs it")


@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        ({}, "mean and std missing; an ONNX file does not tell how its images were normalised: give"),
        ({"mean": [0.5]}, "std missing; an ONNX file does not tell"),
        ({"mean": [0.1, 0.2], "std": [1.0]}, "preprocessing.mean: 2 values for images of 1 channels; give 1"),
        (
            {**NORMAL, "input_size": [1, 32, 32]},
            "has shape [batch, 1, 16, 16], preprocessing.input_size is [1, 32, 32]; leave it out",
        ),
    ],
)
def test_preprocessing_must_be_told(tmp_path: Path, preprocessing: dict[str, Any], message: str) -> None:
    assert message in refused(tmp_path, to_onnx(tiny_module()), preprocessing=preprocessing)


def test_weights_besides(tmp_path: Path) -> None:
    line = refused(tmp_path, to_onnx(tiny_module()), arguments={"img_size": 8})
    assert line == "--source onnx:mine.onnx: has weights of its own; no --checkpoint, no --arguments"


class Infinite(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :5] / 0.0


def test_outputs_that_are_not_finite(tmp_path: Path) -> None:
    line = refused(tmp_path, to_onnx(Infinite()))
    assert line == "mine.onnx: gives values that are not finite on random images at operator '/Div' (Div)"


class Summed(nn.Module):
    """One output for all images together."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :5].sum(0, keepdim=True)


def test_the_images_must_come_first_in_the_output(tmp_path: Path) -> None:
    line = refused(tmp_path, to_onnx(Summed()))
    assert line.endswith("expected [4, 5]; its first dimension must be the images")
