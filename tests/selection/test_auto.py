"""Ranking sites by what per-channel scales gain, and the recipe that needs fewest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_quantized import RECIPES, Tiny, images

from ptq2themoon.evaluate.error_meter import per_image
from ptq2themoon.quantize.plan import plan
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.selection.auto import Search, called, output_error, recipe_text
from ptq2themoon.selection.sites import Site, channel_ranges, differing, mixed, rank, site_of
from ptq2themoon.selection.subject import Subject
from ptq2themoon.vocabulary.recipes import load_recipe

BATCHES = images(6, seed=5).split(4)
FC2, NORM = Site("fc2", 1), Site("norm", None)
Pair = tuple[list[QuantizedOperator], list[QuantizedOperator]]


@pytest.fixture(scope="module")
def subject(tiny: Tiny) -> Subject:
    return Subject(tiny.fused, "cpu")


@pytest.fixture(scope="module")
def pair(tiny: Tiny) -> Pair:
    """Per tensor and per channel, at four bits."""
    return tiny.calibrated("vanilla", (4, 4))[1], tiny.calibrated("layernorm_all", (4, 4))[1]


@pytest.fixture(scope="module")
def ranking(subject: Subject, pair: Pair) -> pd.DataFrame:
    floating = subject.model([])
    return rank(subject, *pair, BATCHES, [floating(part) for part in BATCHES])


# Ranking --------------------------------------------------------------------------------------------


def test_places_are_those_where_granularity_differs(pair: Pair) -> None:
    found = differing(*pair)
    roles = ("norm1", "qkv", "proj", "residual1", "norm2", "fc1", "fc2", "residual2")
    assert set(found) == {Site(role, block) for role in roles for block in (0, 1)} | {NORM}
    assert differing(pair[0], pair[0]) == []


def test_an_error_is_that_of_the_place_alone(subject: Subject, pair: Pair, ranking: pd.DataFrame) -> None:
    """By a whole run with only that operator quantized, not from the middle of the graph."""
    row = ranking[(ranking["role"] == "fc2") & (ranking["block"] == 1)].iloc[0]
    for name, quantized in zip(("per_tensor", "per_channel"), pair, strict=True):
        model = subject.model(quantized)
        (own,) = [item.operator.name for item in quantized if site_of(item) == FC2]
        nsr = []
        for pixels in BATCHES:
            with model.only(()):
                floating = model(pixels)
            with model.only({own}):
                nsr += per_image(model(pixels), floating)["nsr"].tolist()
        assert row[f"nsr_{name}"] == pytest.approx(torch.tensor(nsr).log().mean().exp().item(), rel=1e-6)
    assert row["gain"] == pytest.approx(row["nsr_per_tensor"] - row["nsr_per_channel"])


def test_the_largest_gain_comes_first(ranking: pd.DataFrame) -> None:
    assert ranking["gain"].is_monotonic_decreasing
    by_range = ranking.sort_values("range_rank")["range_largest"]
    assert by_range.is_monotonic_decreasing


def test_ranges_are_of_the_channels_of_the_first_input(tiny: Tiny, subject: Subject, pair: Pair) -> None:
    caught: list[torch.Tensor] = []
    model = subject.model([])
    for pixels in BATCHES:
        model(pixels, {tiny.role("fc2", 1): lambda _, inputs, __: caught.append(inputs[0])})
    values = torch.cat(caught).flatten(0, 1)
    found = channel_ranges(subject, pair[0], {FC2}, BATCHES)[FC2]
    torch.testing.assert_close(found, values.amax(0) - values.amin(0))


def test_operators_of_one_place_may_differ_in_width(tmp_path: Path) -> None:
    """A Swin has LayerNorms between its stages, each of its own number of channels."""
    swin = Tiny.of_family("swin", tmp_path)
    subject = Subject(swin.fused, "cpu")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    quantized = swin.calibrated("vanilla", batches=[pixels])[1]
    caught: list[torch.Tensor] = []
    names = [item.operator.name for item in quantized if site_of(item) == NORM]
    subject.model([])(
        pixels, dict.fromkeys(names, lambda _, inputs, __: caught.append(inputs[0].flatten(0, -2)))
    )
    found = channel_ranges(subject, quantized, {NORM}, [pixels])[NORM]
    torch.testing.assert_close(found, torch.cat([value.amax(0) - value.amin(0) for value in caught]))
    assert len({value.shape[1] for value in caught}) > 1


def test_mixing_takes_the_chosen_places_from_the_other(pair: Pair) -> None:
    for item, first, second in zip(mixed(*pair, [FC2, NORM]), *pair, strict=True):
        assert item is (second if site_of(item) in (FC2, NORM) else first)


def test_the_error_of_the_output_is_one_less_cosine(subject: Subject, pair: Pair) -> None:
    model, floating = subject.model(pair[0]), subject.model([])
    references = [floating(pixels) for pixels in BATCHES]
    cosine = torch.nn.functional.cosine_similarity(
        torch.cat([model(pixels) for pixels in BATCHES]).double(), torch.cat(references).double()
    )
    assert output_error(model, BATCHES, references) == pytest.approx(1 - cosine.mean().item())
    assert output_error(floating, BATCHES, references) == pytest.approx(0, abs=1e-12)


# Search ---------------------------------------------------------------------------------------------

PLACES = [Site("fc2", block) for block in range(10)]


def additive(gains: Sequence[float]) -> dict[Site, float]:
    return dict(zip(PLACES, gains, strict=True))


def searched(gains: Sequence[float], share: float) -> tuple[Search, list[Site]]:
    worth = additive(gains)
    search = Search(lambda chosen: 10 - sum(worth[site] for site in chosen), PLACES, share)
    return search, search.run()


@pytest.mark.parametrize(("share", "expected"), [(0.5, 1), (0.8, 2), (0.95, 4), (1.0, 10)])
def test_the_fewest_that_remove_the_share(share: float, expected: int) -> None:
    search, chosen = searched([5, 3, 1, 0.5, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05], share)
    assert chosen == PLACES[:expected]
    assert search.removed >= share
    assert len(search.steps) < 20


def test_what_the_others_do_without_is_left_out() -> None:
    """The third adds nothing beside the first two, though its own gain ranks it before the fourth."""
    _, chosen = searched([4, 3, 0, 2, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1], 0.85)
    assert chosen == [PLACES[0], PLACES[1], PLACES[3]]


def test_nothing_is_chosen_where_nothing_helps() -> None:
    search, chosen = searched([-1] * 10, 0.9)
    assert chosen == []
    assert search.removed == 0
    assert [step["tried"] for step in search.steps] == ["none", "all with a gain"]


def test_every_step_is_told_with_its_share() -> None:
    search, chosen = searched([5, 3, 1, 0.5, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05], 0.8)
    steps = pd.DataFrame(search.steps)
    assert steps["share"].iloc[:2].tolist() == [0, 1]
    last = steps[(steps["share"] >= 0.8)].sort_values("sites").iloc[0]
    assert last["sites"] == len(chosen)
    assert last["share"] == pytest.approx(search.removed)


# The recipe -----------------------------------------------------------------------------------------


def test_the_recipe_quantizes_the_chosen_places_per_channel_and_nothing_else(
    tiny: Tiny, pair: Pair, ranking: pd.DataFrame, tmp_path: Path
) -> None:
    chosen = [FC2, NORM, Site("qkv", 0), Site("qkv", 1)]
    ranked = ranking.assign(rank=range(1, len(ranking) + 1))
    text = recipe_text(load_recipe(RECIPES / "vanilla.yaml"), chosen, ranked, ["Found like this."])
    (tmp_path / "auto.yaml").write_text(text)
    planned = plan(tiny.operators, tiny.nodes, load_recipe(tmp_path / "auto.yaml"), 4, 4)
    assert planned == mixed(*pair, chosen)  # scales do not count
    lines = text.splitlines()
    assert lines[1] == "# Found like this."
    rows = ranked.set_index(["role", "block"])
    evidence = [line for line in lines if line.startswith("  # ")]
    assert len(evidence) == len(chosen)
    assert f"rank {rows.loc[('fc2', 1), 'rank']};" in evidence[0]
    assert f"{rows.loc[('fc2', 1), 'nsr_per_channel']:.2e} per channel" in evidence[0]


def test_a_recipe_without_places_is_the_base(
    tiny: Tiny, pair: Pair, ranking: pd.DataFrame, tmp_path: Path
) -> None:
    base = load_recipe(RECIPES / "vanilla.yaml")
    (tmp_path / "auto.yaml").write_text(recipe_text(base, [], ranking, []))
    planned = plan(tiny.operators, tiny.nodes, load_recipe(tmp_path / "auto.yaml"), 4, 4)
    assert planned == pair[0]


def test_places_have_names() -> None:
    assert (called(FC2), called(NORM)) == ("fc2 · 1", "norm")
