"""Every family evaluated in every block: attention, output and operators, and figures of what was found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from families import FAMILIES, image_shape
from tiny_models import random_images
from tiny_quantized import Tiny, references
from torch import Tensor

from ptq2themoon.evaluate.accuracy import evaluate_quantized
from ptq2themoon.evaluate.attention import attention_spec, run_with_attention, save_maps
from ptq2themoon.evaluate.attention_maps import read_maps
from ptq2themoon.evaluate.error_meter import FIGURES
from ptq2themoon.evaluate.operator_errors import error_table, logits_errors, output_errors
from ptq2themoon.graph.meaning.fusion_record import Attention
from ptq2themoon.plots.attention_figures import attention_heads, attention_overview
from ptq2themoon.plots.errors_along_network import errors_along_network
from ptq2themoon.quantize.simulation import SimulatedModel

WITH_CLASS_TOKEN = {"vit", "vit_features", "deit_distilled", "dinov2", "dinov2_swiglu"}


@dataclass
class Family:
    name: str
    tiny: Tiny
    model: SimulatedModel
    attention: Attention
    facts: dict[str, Any]

    def images(self, count: int) -> Tensor:
        return torch.from_numpy(random_images(count, *image_shape(self.name), seed=7))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Fused, and quantized by the recipe vanilla."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    tiny = Tiny.of_family(name, folder)
    attention = tiny.fused.report.attention
    images = torch.from_numpy(random_images(8, *image_shape(name)))
    return Family(
        name, tiny, tiny.calibrated("vanilla", batches=[images])[0], attention, attention.model_dump()
    )


def test_every_block_is_compared(family: Family) -> None:
    """Batches of different sizes: groups of tokens are told from images."""
    images = family.images(5)
    labels = torch.tensor([0, 1, 2, 3, 4])
    data = list(zip(images.split(3), labels.split(3), strict=True))
    accuracy = family.name not in ("vit_features", "dinov2_swiglu")
    for block in range(len(family.facts["blocks"])):
        spec = attention_spec(family.attention, block)
        found = evaluate_quantized(family.model, data, references(family.tiny, data, spec), spec, accuracy)
        one_by_one = [(image[None], label[None]) for image, label in zip(images, labels, strict=True)]
        alone = references(family.tiny, one_by_one, spec)
        again = evaluate_quantized(family.model, one_by_one, alone, spec, accuracy)
        assert found.attention["cosine"].tolist() == pytest.approx(
            again.attention["cosine"].tolist(), rel=0.02
        )
        assert 0.9 < found.metrics.attention_cosine < 1
        assert 0 < found.metrics.attention_kl < 0.1
        assert 0.95 < found.metrics.output_cosine < 1
        assert (found.metrics.top1 is None) == (not accuracy)
        query = "class token" if family.name in WITH_CLASS_TOKEN else "mean of tokens"
        assert set(found.attention["query"]) == {query}


def test_attention_of_a_query_is_a_distribution(family: Family) -> None:
    """Over the patches and what stands before them: no more than one, and one where nothing does."""
    for block, facts in enumerate(family.facts["blocks"]):
        with family.model.only(()):
            spec = attention_spec(family.attention, block)
            _, attention = run_with_attention(family.model, family.images(3), spec)
        patches = facts["tokens"] - facts["prefix_tokens"]
        assert attention.shape == (3, facts["groups"], facts["heads"], patches)
        total = attention.sum(-1)
        if facts["prefix_tokens"]:
            assert (total < 1).all()
        else:
            torch.testing.assert_close(total, torch.ones_like(total))


def test_every_block_has_its_figures(family: Family, tmp_path: Path) -> None:
    images = family.images(2)
    pixels = (images * 50 + 128).clamp(0, 255).to(torch.uint8)
    for block, facts in enumerate(family.facts["blocks"]):
        spec, maps = attention_spec(family.attention, block), {}
        for name, active in (("fp32", ()), ("vanilla", family.model.quantized_operators)):
            with family.model.only(active):
                _, attention = run_with_attention(family.model, images, spec)
            save_maps(tmp_path / name, pixels, attention, spec, name, [0, -1])
            maps[name] = read_maps(tmp_path / name)
        assert maps["fp32"].is_map == (facts["grid"] is not None)
        for figure in (attention_overview(maps), attention_heads(maps)):
            said = " ".join(text.get_text() for text in figure.texts).lower()
            assert ("mean attention of all tokens" in said) == (family.name not in WITH_CLASS_TOKEN)
            assert ("no map: block" in said) == (facts["grid"] is None)
            assert "class token" in said


def test_errors_of_every_operator(family: Family) -> None:
    batches = family.images(3).split(2)
    places = pd.DataFrame([o._asdict() for o in family.tiny.operators])
    places = places.rename(columns={"name": "operator"}).astype({"block": "Int64"})
    floating = SimulatedModel(family.tiny.graph, "cpu")
    accumulated, local = output_errors(family.model, floating, batches)
    effect = logits_errors(family.model, floating, batches, [floating(part) for part in batches])
    meters = {"accumulated": accumulated, "local": local, "logits": effect}
    table = pd.concat([error_table(each, mode, places) for mode, each in meters.items()])
    assert len(table) == 3 * len(family.model.quantized_operators)
    for each in meters.values():
        assert {len(meter.images("nsr")) for meter in each.values()} == {3}
    assert np.isfinite(table[list(FIGURES)].to_numpy(dtype=float)).all()
    assert math.isfinite(table["nsr"].max())
    errors_along_network({"vanilla": table}).draw_without_rendering()
