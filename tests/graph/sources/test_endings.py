"""What a file gives at its end, and files that ONNX Runtime runs though ONNX's checker refuses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import GraphProto, TensorProto, helper
from tiny_models import random_images, randomised, run_all, tiny_module, to_onnx
from torch import Tensor, nn

from ptq2themoon.graph.forms.fuse import count_fused, fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.sources.exporting import export
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.model_source import Source


class Then(nn.Module):
    """A tiny ViT and what is done to its logits."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.after = tiny_module(), after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.model(images))


def exported(folder: Path, model: onnx.ModelProto, **options: object) -> tuple[ModelInfo, onnx.ModelProto]:
    onnx.save(model, folder / "mine.onnx")
    preprocessing = {"mean": [0.5], "std": [0.25]}
    source = Source(f"onnx:{folder}/mine.onnx", preprocessing=preprocessing, **options)
    info = export(source, "torchscript", 13, folder / "model.onnx")
    return info, onnx.load(folder / "model.onnx")


def refused(folder: Path, model: onnx.ModelProto, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        exported(folder, model, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{folder}/mine.onnx: ")
    return line.removeprefix(f"{folder}/mine.onnx: ")


# The output ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("after", [lambda y: y.softmax(-1), torch.sigmoid])
def test_logits_in_place_of_probabilities(
    after: Callable[[Tensor], Tensor], opset: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info, written = exported(tmp_path, to_onnx(Then(after).eval(), opset=opset))
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path}/mine.onnx: ends in S")
    assert said.endswith("what it reads, the logits, is taken\n")
    images = random_images(3)
    with torch.no_grad():
        logits = tiny_module()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run_all(written, images)[0], logits, atol=1e-5)
    assert (info.output, info.num_classes) == ("logits", 5)


@pytest.mark.parametrize(
    ("after", "shape"),
    [
        (lambda y: y[:, None], "1, 5"),
        (lambda y: y[:, :, None, None], "5, 1, 1"),
        (lambda y: y[:, :, None, None].softmax(1), "5, 1, 1"),
    ],
)
def test_logits_with_dimensions_of_one(
    after: Callable[[Tensor], Tensor], shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a classifier that is a convolution gives them; they passed for features, without accuracy."""
    info, written = exported(tmp_path, to_onnx(Then(after).eval()))
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"output 'logits' of [images, {shape}] is taken as logits [images, classes]")
    images = random_images(3)
    with torch.no_grad():
        logits = tiny_module()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run_all(written, images)[0], logits, atol=1e-5)
    assert (info.output, info.num_classes) == ("logits", 5)


def test_features_with_dimensions_of_one_stay(tmp_path: Path) -> None:
    info, written = exported(tmp_path, to_onnx(Then(lambda y: y[:, None]).eval()), classifier=False)
    assert info.output == "features"
    assert run_all(written, random_images(3))[0].shape == (3, 1, 5)


def test_probabilities_stay_where_they_are_features(tmp_path: Path) -> None:
    _, written = exported(tmp_path, to_onnx(Then(lambda y: y.softmax(-1)).eval()), classifier=False)
    assert written.graph.node[-1].op_type == "Softmax"


def test_logarithms_of_probabilities_are_logits(tmp_path: Path) -> None:
    info, written = exported(tmp_path, to_onnx(Then(lambda y: y.log_softmax(-1)).eval()))
    assert (info.output, written.graph.node[-1].op_type) == ("logits", "LogSoftmax")


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (lambda y: y.argmax(-1), "holds class numbers of operator '/ArgMax'"),
        (lambda y: y.argmax(-1).float(), "holds class numbers of operator '/ArgMax'"),
        (lambda y: y.topk(3)[1], "holds class numbers of operator '/TopK'"),
        (lambda y: y > 0, "holds bool, no floating point numbers"),
        (lambda y: y.exp() / y.exp().sum(-1, keepdim=True), "holds probabilities (an image's sum to 1)"),
        (lambda y: 100 * y.softmax(-1), "holds probabilities (an image's sum to 100)"),
        (lambda y: (y.softmax(-1) + (2 * y).softmax(-1)) / 2, "holds probabilities"),
    ],
)
def test_no_logits(after: Callable[[Tensor], Tensor], words: str, tmp_path: Path) -> None:
    line = refused(tmp_path, to_onnx(Then(after).eval()))
    assert line.startswith(f"output 'logits' {words}")
    assert "; export the model with its logits" in line


def with_hidden_output(model: onnx.ModelProto) -> str:
    (norm,) = (node.output[0] for node in model.graph.node if node.name == "/norm/Add_1")
    value = helper.make_tensor_value_info(norm, TensorProto.FLOAT, ["n", 17, 32])
    model.graph.output.append(value)
    return norm


def test_an_output_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = to_onnx(tiny_module())
    hidden = with_hidden_output(model)
    info, _ = exported(tmp_path, model)
    assert (info.output_name, info.other_outputs) == ("logits", [hidden])
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}/mine.onnx: output 'logits' is taken, not {hidden!r}; "
        "`output: NAME` of the model takes another\n"
    )
    info, written = exported(tmp_path, model, output=hidden)
    assert (info.output_name, info.output) == (hidden, "features")
    assert [value.name for value in written.graph.output] == [hidden]
    assert refused(tmp_path, model, output="logit").startswith("no output 'logit'; did you mean 'logits'?")


# What ONNX Runtime runs ------------------------------------------------------------------------------


def no_shape(graph: GraphProto) -> None:
    graph.output[0].type.tensor_type.ClearField("shape")


def scalar(graph: GraphProto) -> None:
    graph.output[0].type.tensor_type.shape.ClearField("dim")


def other_classes(graph: GraphProto) -> None:
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def other_batch(graph: GraphProto) -> None:
    graph.output[0].type.tensor_type.shape.dim[0].dim_value = 9


def other_rank(graph: GraphProto) -> None:
    graph.output[0].type.tensor_type.shape.dim.add().dim_value = 3


def within(graph: GraphProto) -> None:
    softmax = next(node for node in graph.node if node.op_type == "Softmax")
    graph.value_info.append(helper.make_tensor_value_info(softmax.output[0], TensorProto.FLOAT, [1, 2, 3, 4]))


def unsorted(graph: GraphProto) -> None:
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes[::-1])


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize(
    "change", [no_shape, scalar, other_classes, other_batch, other_rank, within, unsorted]
)
def test_computed_shapes_and_order_count(change: Callable, dynamic: bool, tmp_path: Path) -> None:
    model = to_onnx(tiny_module(), dynamic_batch=dynamic)
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    change(model.graph)
    info, written = exported(tmp_path, model)
    assert info.num_classes == 5
    dims = written.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch" if dynamic else 1, 5]
    images = random_images(1)
    np.testing.assert_allclose(run_all(written, images)[0], run_all(plain, images)[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["LayerNormalization", "SimplifiedLayerNormalization"])
@pytest.mark.parametrize("opset", [14, 16, 18])
def test_norms_that_the_opset_does_not_have(kind: str, opset: int, tmp_path: Path) -> None:
    """As ONNX Runtime's optimisers write them, into ONNX's own domain."""
    plain = "LayerNormalization"
    if kind == plain and opset > 16:
        pytest.skip("ONNX has it")
    model = to_onnx(tiny_module(), opset=17)
    model.opset_import[0].version = opset
    norms = [node for node in model.graph.node if node.op_type == plain]
    for node in norms:
        node.op_type = kind
        node.input[:] = node.input[: 3 if kind == plain else 2]
    _, written = exported(tmp_path, model)
    images = random_images(3)
    np.testing.assert_allclose(run_all(written, images)[0], run_all(model, images)[0], atol=1e-5)
    fused, _ = fuse(normalise(written))
    counts = count_fused(fused)
    assert counts["LayerNorm" if kind == plain else "RMSNorm"] == len(norms) == 5


def test_operators_in_a_circle(tmp_path: Path) -> None:
    model = to_onnx(tiny_module())
    first, last = model.graph.node[0], model.graph.node[-1]
    first.input[0] = last.output[0]
    assert "cycle" in refused(tmp_path, model) or "sorted" in refused(tmp_path, model)


# Training mode ---------------------------------------------------------------------------------------


class Stem(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.model = layer, tiny_module()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.layer(images))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.BatchNorm2d(1), "it normalises by the images of the batch"),
        (nn.Dropout(0.3), "it drops values by chance"),
    ],
)
def test_training_mode(layer: nn.Module, words: str, tmp_path: Path) -> None:
    module = randomised(Stem(layer))
    layer.train()
    torch.onnx.export(
        module, (torch.zeros(2, 1, 16, 16),), tmp_path / "trained.onnx", opset_version=14, dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, input_names=["images"],
        output_names=["logits"],
    )  # fmt: skip
    line = refused(tmp_path, onnx.load(tmp_path / "trained.onnx"))
    assert line.endswith(f"is in training mode: {words}; export the model after `model.eval()`")
    assert line.startswith("operator '/layer/")


def test_random_values(tmp_path: Path) -> None:
    line = refused(tmp_path, to_onnx(Stem(Noise()).eval()))
    assert "(RandomNormalLike) is in training mode: its values are drawn by chance; " in line


class Noise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images + torch.randn_like(images)


# Channels last ---------------------------------------------------------------------------------------


class Rows(nn.Module):
    """Takes [B, H, W, C], as TensorFlow's models do, and normalises there."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.asks, self.model = asks, tiny_module(in_chans=3)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(((images - 0.5) / 0.25).permute(0, 3, 1, 2))
        return logits.reshape(images.shape[0], 5) if self.asks else logits


@pytest.mark.parametrize("asks", [True, False], ids=["asks for the size", "plain"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_channels_last(dynamic: bool, asks: bool, tmp_path: Path) -> None:
    module = Rows(asks).eval()
    onnx.save(to_onnx(module, (1, 16, 16, 3), dynamic_batch=dynamic), tmp_path / "mine.onnx")
    source = Source(f"onnx:{tmp_path}/mine.onnx", preprocessing={"mean": [0.0], "std": [1.0]})
    info = export(source, "torchscript", 13, tmp_path / "model.onnx")
    assert info.input_size == [3, 16, 16]
    images = random_images(2 if dynamic else 1, 3, 16, 16)
    with torch.no_grad():
        expected = module(torch.from_numpy(images).permute(0, 2, 3, 1)).numpy()
    written = onnx.load(tmp_path / "model.onnx")
    np.testing.assert_allclose(run_all(written, images)[0], expected, atol=1e-5)
    kinds = [node.op_type for node in normalise(written).graph.node]
    assert kinds[0] == "Conv"
