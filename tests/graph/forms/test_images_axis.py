"""Images in another dimension than the first, alone or with heads: any batch, whoever wrote the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fused_result import result
from tiny_models import random_images, randomised, run_all, tiny_module, to_onnx
from torch import Tensor, nn

from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError

torch.backends.mha.set_fastpath_enabled(False)  # one fused operator that ONNX lacks


class Encoder(nn.Module):
    """torch's own encoder layers, on [images, tokens, width] or [tokens, images, width]."""

    def __init__(self, images_first: bool) -> None:
        super().__init__()
        self.images_first = images_first
        self.patches, self.head = nn.Conv2d(1, 24, 4, 4), nn.Linear(24, 5)
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, 24)), nn.Parameter(torch.zeros(1, 17, 24))
        options = {"activation": "gelu", "batch_first": images_first, "norm_first": True}
        made = nn.TransformerEncoderLayer(24, 3, 48, **options)
        self.layers = nn.TransformerEncoder(made, 2, enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        x = self.layers(x if self.images_first else x.transpose(0, 1))
        return self.head(x[:, 0] if self.images_first else x[0])


class TokensFirst(Encoder):
    """The class token joins [tokens, images, width]."""

    def __init__(self) -> None:
        super().__init__(False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).permute(2, 0, 1)
        x = torch.cat([self.token.expand(-1, x.shape[1], -1), x]) + self.places.transpose(0, 1)
        return self.head(self.layers(x)[0])


class Joint(nn.Module):
    """Attention of SAM: query, key and value taken from [3, images * heads, tokens, width]."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.qkv, self.proj = old.qkv, old.proj

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        images, tokens, width = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, images * 2, tokens, width // 2).unbind(0)
        y = (q * (width // 2) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.view(images, 2, tokens, width // 2).transpose(1, 2).reshape(images, tokens, width))


def joint() -> nn.Module:
    model = tiny_module()
    for block in model.blocks:
        block.attn = Joint(block.attn)
    return model


class Pooled(nn.Module):
    """An attention pool over the tokens, by their mean as CLIP's or by a learnt query."""

    def __init__(self, learnt: bool) -> None:
        super().__init__()
        self.learnt, self.tokens = learnt, tiny_module(num_classes=0, global_pool="")
        self.query, self.pool = nn.Parameter(torch.zeros(1, 1, 32)), nn.MultiheadAttention(32, 2)
        self.head = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images).permute(1, 0, 2)
        query = self.query.expand(-1, x.shape[1], -1) if self.learnt else x.mean(0, keepdim=True)
        return self.head(self.pool(query, x, x, need_weights=False)[0].squeeze(0))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "nn.MultiheadAttention": lambda: Encoder(True),
    "tokens first": lambda: Encoder(False),
    "token joins tokens first": TokensFirst,
    "images and heads": joint,
    "pool by the mean": lambda: Pooled(False),
    "pool by a query": lambda: Pooled(True),
}


@pytest.mark.parametrize("images", [None, 1, 2], ids=["any batch", "one image", "two images"])
@pytest.mark.parametrize("name", MODULES)
def test_any_batch(name: str, images: int | None, tmp_path: Path) -> None:
    module = randomised(MODULES[name]())
    model = to_onnx(module, (images or 1, 1, 16, 16), dynamic_batch=images is None, opset=14)
    onnx.save(model, tmp_path / "model.onnx")
    shown = random_images(3)
    found = result(tmp_path / "model.onnx", shown)
    with torch.no_grad():
        expected = module(torch.from_numpy(shown)).numpy()
    for logits in (found.runtime, found.simulated):
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    first = found.attention["blocks"][0]
    assert (first["tokens"], first["groups"], first["grid"]) == (17, 1, (4, 4))
    assert first["heads"] == (3 if isinstance(module, Encoder) else 2)
    if not isinstance(module, Pooled):
        assert found.attention["class_token"]
        assert {role for _, role, _ in found.places if role is None} == set()


class Squeezed(nn.Module):
    """Written for one image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv, self.head = nn.Conv2d(1, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2).squeeze(0)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(((q @ k.T).softmax(-1) @ v).mean(0, keepdim=True))


def test_a_graph_of_one_image_stays_so(capsys: pytest.CaptureFixture[str]) -> None:
    model = to_onnx(randomised(Squeezed()), dynamic_batch=False)
    normalised = normalise(model)
    said = capsys.readouterr().err
    assert said.startswith("warning: operator '/Squeeze' (Squeeze), before the first Softmax")
    assert said.endswith("the model runs one image at a time, which takes longer\n")
    assert said.count("\n") == 1
    assert normalised.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    images = random_images(3)
    expected = np.concatenate([run_all(model, image[None])[0] for image in images])
    logits = SimulatedModel(normalised, "cpu")(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


class Views(nn.Module):
    """Four parts of each image as images of their own; the means of their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_module(img_size=8)

    def forward(self, images: Tensor) -> Tensor:
        parts = images.reshape(-1, 1, 2, 8, 2, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 1, 8, 8)
        return self.model(parts).reshape(-1, 4, 5).mean(1)


def test_several_views_of_an_image(tmp_path: Path) -> None:
    """A class token for each view."""
    module = randomised(Views())
    onnx.save(to_onnx(module), tmp_path / "model.onnx")
    shown = random_images(3)
    found = result(tmp_path / "model.onnx", shown)
    with torch.no_grad():
        expected = module(torch.from_numpy(shown)).numpy()
    for logits in (found.runtime, found.simulated):
        np.testing.assert_allclose(logits, expected, atol=1e-5)


class Mirrored(nn.Module):
    """Images, then their mirror images: no dimension has them one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_module()

    def forward(self, images: Tensor) -> Tensor:
        return sum(self.model(torch.cat([images, images.flip(3)])).chunk(2))


def test_images_that_are_joined_run_alone(capsys: pytest.CaptureFixture[str]) -> None:
    module = randomised(Mirrored())
    normalised = normalise(to_onnx(module))
    assert "(Concat)" in (said := capsys.readouterr().err)
    assert "joins what it reads along the dimension of the images" in said
    shown = random_images(2)
    with torch.no_grad():
        expected = module(torch.from_numpy(shown)).numpy()
    logits = SimulatedModel(normalised, "cpu")(torch.from_numpy(shown)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


class Mixed(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :5] - images.mean()


def test_images_that_change_each_other() -> None:
    with pytest.raises(UserError, match=r"works across the images.*export the model with a batch of one"):
        normalise(to_onnx(Mixed(), (2, 1, 16, 16), dynamic_batch=False))
