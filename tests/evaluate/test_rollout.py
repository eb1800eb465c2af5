"""Attention rollout: its formula, where it is defined, committed numbers from PyTorch and numpy alone."""

from __future__ import annotations

from pathlib import Path

import committed
import numpy as np
import pytest
import timm
import torch
from families import FAMILIES, image_shape
from safetensors.numpy import load_file
from timm.layers import set_fused_attn
from tiny_models import random_images
from tiny_quantized import Reference, Tiny, images

from ptq2themoon.data.few import FewImages, of_many_classes
from ptq2themoon.data.image_files import read_manifest
from ptq2themoon.evaluate.attention import AttentionSpec, attention_specs
from ptq2themoon.evaluate.attention_maps import read_rollout
from ptq2themoon.evaluate.rollout import rollout, run_with_rollout, save_rollout, why_undefined
from ptq2themoon.plots.rollout_figure import attention_rollout
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.tables.attention_weights import rollout_table

NOTE = "the class token is the one token before the patches"


def by_hand(means: list[np.ndarray]) -> np.ndarray:
    """The formula for one image, of head means [tokens, tokens]."""
    product = np.eye(len(means[0]))
    for mean in means:
        mixed = (mean.astype(np.float64) + np.eye(len(mean))) / 2
        product = (mixed / mixed.sum(1)[:, None]) @ product
    return product


# The formula --------------------------------------------------------------------------------------


def test_rows_that_do_not_sum_to_one_are_divided_by_their_sum() -> None:
    """As those of quantized attention."""
    means = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found = rollout(means)
    for image in range(3):
        np.testing.assert_allclose(found[image], by_hand([mean[image].numpy() for mean in means]))
    torch.testing.assert_close(found.sum(-1), torch.ones(3, 6, dtype=torch.float64))


@pytest.mark.parametrize("blocks", [1, 2, 12])
def test_of_uniform_attention(blocks: int) -> None:
    """What a token keeps to itself halves with each block; the rest is shared out evenly."""
    tokens = 5
    found = rollout([torch.full((1, tokens, tokens), 1 / tokens)] * blocks)[0]
    kept = 0.5**blocks
    wanted = kept * torch.eye(tokens) + (1 - kept) / tokens
    torch.testing.assert_close(found, wanted.double())


def test_the_first_block_is_applied_first() -> None:
    """Token 0 reads token 1 in the last block, which read token 2 in the first."""
    first, last = torch.eye(3)[None].clone(), torch.eye(3)[None].clone()
    first[0, 1], last[0, 0] = torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 1, 0])
    assert rollout([first, last])[0, 0].tolist() == [0.5, 0.25, 0.25]
    assert rollout([last, first])[0, 0].tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize("quantized", [False, True])
def test_of_a_graph_against_its_definition(tiny: Tiny, tmp_path: Path, quantized: bool) -> None:
    model, planned = tiny.calibrated("layernorm")
    specs, pixels = attention_specs(tiny.fused.report.attention), images(3, seed=5)
    with model.only(model.quantized_operators if quantized else ()):
        found = run_with_rollout(model, pixels, specs)
    outputs = Reference(tiny.path, planned).run(pixels, None if quantized else ())
    means = [outputs[tiny.role("softmax", block)].mean(1) for block in range(2)]
    assert found.shape == (3, 1, 1, 16)
    # A value on the edge between two steps of the softmax's grid may fall to either side.
    tolerance = 1e-3 if quantized else 1e-6
    for image in range(3):
        wanted = by_hand([mean[image] for mean in means])[0, 1:]
        np.testing.assert_allclose(found[image, 0, 0], wanted, atol=tolerance)


# Where it is defined ------------------------------------------------------------------------------


def spec(block: int, tokens: int | None = 50, groups: int = 1) -> AttentionSpec:
    return AttentionSpec(f"blocks.{block}.softmax", block, groups, 1, None, True, NOTE, tokens)


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([spec(0), spec(1)], ""),
        ([spec(0), spec(1, 16, groups=4)], "; block 1 attends within 4 groups of tokens, each apart"),
        ([spec(0), spec(1), spec(2, 17)], "; block 1 has 50, block 2 17"),
        ([spec(0, None)], "; how many there are in block 0 is not known"),
    ],
)
def test_why_there_is_none(specs: list[AttentionSpec], said: str) -> None:
    reason = why_undefined(specs)
    assert reason.endswith(said)
    assert bool(reason) == bool(said)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_one_or_says_why(name: str, tmp_path: Path) -> None:
    tiny = Tiny.of_family(name, tmp_path)
    model, specs = SimulatedModel(tiny.graph, "cpu"), attention_specs(tiny.fused.report.attention)
    normalised = torch.from_numpy(random_images(2, *image_shape(name)))
    few = FewImages((normalised * 50 + 128).clamp(0, 255).to(torch.uint8), normalised, (0, -1), ())
    reason, path = why_undefined(specs), tmp_path / "rollout.safetensors"
    assert bool(reason) == (name in ("swin", "mobilevit"))
    save_rollout(path, few, None if reason else run_with_rollout(model, normalised, specs), specs, "fp32")
    rollouts = {"fp32": read_rollout(path), "layernorm": read_rollout(path)}
    said = " ".join(text.get_text() for text in attention_rollout(rollouts).texts)
    table = rollout_table(rollouts, 4)
    assert table.notna().all(axis=None)
    if reason:
        assert table["reason"].tolist() == [reason]
        assert "No attention rollout of this model" in said
    else:
        assert len(table) == 2 * 2 * (specs[0].tokens or 0) - 2 * 2 * specs[0].prefix_tokens
        assert set(table["query"]) == {specs[-1].query}
        assert (table["cosine"] > 1 - 1e-6).all()
        assert f"blocks 0 to {len(specs) - 1}" in said


# The demo -----------------------------------------------------------------------------------------


def test_the_committed_numbers_are_those_of_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In floating point: attention by hooks on timm's model, the rest in numpy.

    Six times the digits of the table, to which another processor adds little.
    """
    monkeypatch.chdir(committed.ROOT)
    table = committed.table("results/example/demo/study/attention_rollout.csv")
    manifest = tmp_path / "evaluation.csv"
    manifest.write_bytes(committed.read("results/example/demo/evaluation.csv"))
    rows = of_many_classes(read_manifest(manifest), 4, manifest)
    set_fused_attn(False)
    model = timm.create_model("local-dir:resources/demo/model", pretrained=True).eval()
    pixels = load_file("resources/demo/evaluation.safetensors")["images"]
    means: list[np.ndarray] = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda _m, _i, out: means.append(out[0].mean(0).numpy()))
    for image, row in enumerate(rows):
        means.clear()
        scaled = (pixels[int(row.source)].astype(np.float32) / 255 - 0.286) / 0.353
        with torch.inference_mode():
            model(torch.from_numpy(scaled)[None])
        assert len(means) == 12
        wanted = by_hand(means)[0, 1:].reshape(7, 7)
        found = table[(table["image"] == image) & (table["recipe"] == "fp32")]
        np.testing.assert_allclose(found["weight"].to_numpy().reshape(7, 7), wanted, rtol=2e-5)
