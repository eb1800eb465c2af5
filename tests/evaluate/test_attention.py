"""Fidelity of attention, where it is read and whose it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_info import fusion_report
from tiny_quantized import Tiny

from ptq2themoon.evaluate.attention import AttentionSpec, attention_spec, fidelity, save_maps
from ptq2themoon.evaluate.attention_maps import read_maps
from ptq2themoon.graph.meaning.fusion_record import Attention, FusionReport
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.records import read
from ptq2themoon.vocabulary.validation import validate

ATTENTION = hnp.arrays(np.float32, (2, 2, 3, 5), elements=st.floats(0, 1, width=32))


def heads(*rows: list[float]) -> torch.Tensor:
    """One image, one group, one row per head."""
    return torch.tensor([[rows]])


# Fidelity -----------------------------------------------------------------------------------------


def test_equal_attention_is_one_and_zero() -> None:
    attention = torch.rand(4, 1, 3, 16, generator=torch.Generator().manual_seed(0))
    cosine, kl = fidelity(attention, attention)
    assert cosine.tolist() == pytest.approx([1.0] * 4)
    assert kl.tolist() == [0.0] * 4


def test_permuted_attention_by_hand() -> None:
    cosine, kl = fidelity(heads([0.2, 0.3, 0.5]), heads([0.5, 0.3, 0.2]))
    assert cosine.item() == pytest.approx((0.1 + 0.09 + 0.1) / 0.38)
    assert kl.item() == pytest.approx(0.3 * math.log(2.5), rel=1e-5)


def test_kl_is_of_quantized_to_floating_point_in_nats() -> None:
    reference, quantized = heads([0.5, 0.5]), heads([0.9, 0.1])
    there = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert fidelity(quantized, reference)[1].item() == pytest.approx(there, rel=1e-5)
    back = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert fidelity(reference, quantized)[1].item() == pytest.approx(back, rel=1e-5)


def test_a_small_weight_that_becomes_zero_costs_little() -> None:
    """Quantization does that to many; no floor decides what they cost."""
    _, kl = fidelity(heads([0.6, 0.4, 0.0]), heads([0.599, 0.399, 0.002]))
    assert 0 < kl.item() < 0.003


def test_what_the_class_token_gives_to_itself_does_not_count() -> None:
    """Rows to the patches need not sum to one; only their shape is compared."""
    cosine, kl = fidelity(heads([0.1, 0.2, 0.1]), heads([0.25, 0.5, 0.25]))
    assert cosine.item() == pytest.approx(1)
    assert kl.item() == pytest.approx(0, abs=1e-5)


def test_attention_quantized_to_nothing_is_bad_but_a_number() -> None:
    cosine, kl = fidelity(torch.zeros(1, 1, 1, 4), heads([0.7, 0.1, 0.1, 0.1]))
    assert cosine.item() == 0
    uniform = 0.25 * math.log(0.25 / 0.7) + 0.75 * math.log(0.25 / 0.1)
    assert kl.item() == pytest.approx(uniform, rel=1e-4)
    _, kl = fidelity(heads([1.0, 0.0]), heads([0.5, 0.5]))
    assert kl.item() == pytest.approx(math.log(2), rel=1e-4)


def test_an_image_is_the_mean_of_its_heads() -> None:
    q, f = torch.rand(2, 5, 1, 3, 9, generator=torch.Generator().manual_seed(1))
    cosine, kl = fidelity(q, f)
    each = [fidelity(q[:, :, head : head + 1], f[:, :, head : head + 1]) for head in range(3)]
    torch.testing.assert_close(cosine, torch.stack([one[0] for one in each]).mean(0))
    torch.testing.assert_close(kl, torch.stack([one[1] for one in each]).mean(0))


@settings(max_examples=60)
@given(ATTENTION, ATTENTION)
def test_bounds(q: np.ndarray, f: np.ndarray) -> None:
    cosine, kl = fidelity(torch.from_numpy(q), torch.from_numpy(f))
    assert ((cosine >= 0) & (cosine <= 1 + 1e-6)).all()
    assert (kl >= -1e-12).all()
    assert torch.isfinite(kl).all()


def test_groups_count_as_heads_do() -> None:
    q, f = torch.rand(2, 5, 4, 3, 9, generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(fidelity(q, f), fidelity(q.flatten(1, 2), f.flatten(1, 2)), strict=True):
        torch.testing.assert_close(found, wanted)


# Where it is read ---------------------------------------------------------------------------------

BLOCK = {"heads": 3, "tokens": 7, "groups": 1, "prefix_tokens": 1, "grid": (2, 3), "stage": 0}
NOTE = "the class token is the one token before the patches"


def three_blocks() -> Attention:
    blocks = [{**BLOCK, "softmax": name} for name in "abc"]
    return validate(Attention, {"blocks": blocks, "class_token": True, "note": NOTE}, "fusion.json")


def place(**changes: Any) -> AttentionSpec:
    facts: dict[str, Any] = {
        "groups": 1,
        "prefix_tokens": 1,
        "grid": (2, 3),
        "class_token": True,
        "note": NOTE,
    }
    return AttentionSpec("a", 0, **{**facts, **changes})


@pytest.mark.parametrize(("block", "wanted"), [(0, ("a", 0)), (2, ("c", 2)), (-1, ("c", 2)), (-3, ("a", 0))])
def test_blocks_count_from_either_end(block: int, wanted: tuple[str, int]) -> None:
    spec = attention_spec(three_blocks(), block)
    facts = {"groups": 1, "prefix_tokens": 1, "grid": (2, 3), "class_token": True, "note": NOTE, "tokens": 7}
    assert spec == AttentionSpec(*wanted, **facts)


@pytest.mark.parametrize("block", [3, -4, 99])
def test_a_block_that_is_not_there_is_refused(block: int) -> None:
    with pytest.raises(UserError, match=rf"attention\.block: {block}: the model has 3 blocks; "):
        attention_spec(three_blocks(), block)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"blocks": [], "class_token": False, "note": ""}, "attention.blocks: is empty; give at least one"),
        ({"softmax": ["a"], "heads": 3}, "attention.blocks: missing (and 4 more)"),
        (
            {"blocks": [{"softmax": "a"}], "class_token": False, "note": ""},
            "attention.blocks[0].heads: missing",
        ),
        (
            {"blocks": [{**BLOCK, "softmax": "a", "grid": 3}], "class_token": False, "note": ""},
            "attention.blocks[0].grid: ",
        ),
    ],
)
def test_a_report_of_another_form_is_refused(
    tiny: Tiny, tmp_path: Path, attention: dict[str, Any], message: str
) -> None:
    path = tmp_path / "fusion.json"
    whole = fusion_report(tiny.graph, tiny.operators).model_dump(mode="json")
    path.write_text(json.dumps({**whole, "attention": attention}))
    with pytest.raises(UserError) as error:
        read(path, FusionReport)
    assert str(error.value).startswith(f"{path}: {message}")
    assert str(error.value).endswith("; run the fuse stage again")


# Whose it is --------------------------------------------------------------------------------------


def test_the_class_token_is_the_first_and_patches_follow_the_prefix() -> None:
    attention = torch.arange(2 * 1 * 5 * 5).reshape(2, 1, 5, 5)
    spec = place(prefix_tokens=2, grid=(1, 3))
    assert spec.query == "class token"
    assert spec.of_query(attention, 2).tolist() == [[[[2, 3, 4]]], [[[27, 28, 29]]]]


@pytest.mark.parametrize("prefix", [0, 2])
def test_without_class_token_all_tokens_are_the_query(prefix: int) -> None:
    """Registers before the patches are tokens too, but no patches."""
    attention = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    spec = place(class_token=False, prefix_tokens=prefix, grid=(1, 6 - prefix))
    assert spec.query == "mean of tokens"
    wanted = attention.mean(2)[:, None, :, prefix:]
    torch.testing.assert_close(spec.of_query(attention, 2), wanted)


def test_a_class_token_that_a_block_does_not_hold_asks_nothing() -> None:
    assert place(prefix_tokens=0, grid=(1, 7)).query == "mean of tokens"


@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (2, 4, 3, 5, 5), (24, 5, 5)])
def test_groups_stand_before_the_heads(shape: tuple[int, ...]) -> None:
    """As Swin's windows do, and MobileViT's pixels of a patch, whatever the exporter makes of the axes."""
    attention = torch.rand(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    spec = place(class_token=False, groups=4, prefix_tokens=0, grid=(1, 5))
    found = spec.of_query(attention.reshape(shape), 2)
    torch.testing.assert_close(found, attention.mean(3))
    torch.testing.assert_close(spec.maps(found), attention.mean((1, 3)))


def test_without_a_grid_no_group_is_lost() -> None:
    spec = place(class_token=False, groups=4, prefix_tokens=0, grid=None)
    found = spec.of_query(torch.rand(8, 3, 5, 5), 2)
    maps = spec.maps(found)
    assert maps.shape == (2, 3, 20)
    torch.testing.assert_close(maps[1, 2, 5:10], found[1, 1, 2])


@pytest.mark.parametrize(("shape", "groups"), [((9, 3, 6, 6), 4), ((2, 3, 8, 8), 1)])
def test_attention_that_the_report_does_not_describe_is_refused(shape: tuple[int, ...], groups: int) -> None:
    spec = place(groups=groups, prefix_tokens=0, grid=(2, 3))
    with pytest.raises(UserError, match=r"operator 'a': attention of 2 images is .*run the fuse stage again"):
        spec.of_query(torch.rand(shape), 2)


def test_facts_of_a_real_graph(tiny: Tiny) -> None:
    spec = attention_spec(tiny.fused.report.attention, -1)
    assert (spec.operator, spec.block, spec.groups) == (tiny.role("softmax", 1), 1, 1)
    assert (spec.query, spec.prefix_tokens, spec.grid) == ("class token", 1, (4, 4))
    assert "class token" in spec.note


# What is kept for the figures ---------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(2, 3), None])
def test_maps_come_back_as_they_were_saved(tmp_path: Path, grid: tuple[int, int] | None) -> None:
    spec = place(class_token=False, groups=4, prefix_tokens=0, grid=grid)
    attention = spec.of_query(torch.rand(12, 2, 6, 6), 3)
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    path = tmp_path / "maps.safetensors"
    save_maps(path, images, attention, spec, "vanilla", [4, -1, 0], ["rose", "", "daisy"])
    maps = read_maps(path)
    assert maps.names == ("rose", "", "daisy")
    np.testing.assert_array_equal(maps.images, images.numpy())
    assert (maps.query, maps.note, maps.groups, maps.labels) == ("mean of tokens", NOTE, 4, (4, -1, 0))
    assert maps.is_map == (grid is not None)
    wanted = attention.mean(1).reshape(3, 2, 2, 3) if grid else attention.transpose(1, 2)
    np.testing.assert_array_equal(maps.attention, wanted.numpy())


def test_attention_that_is_no_number_is_not_saved(tmp_path: Path) -> None:
    broken = torch.full((1, 1, 2, 6), math.nan)
    with pytest.raises(UserError, match="attention that is not finite"):
        save_maps(tmp_path / "a", torch.zeros(1, 1, 8, 8, dtype=torch.uint8), broken, place(), "r", [0])
