"""The study's attention tables: fidelity recomputed by hand, and figures that show what their tables hold."""

from __future__ import annotations

import json
from dataclasses import replace

import committed
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ptq2themoon.evaluate.attention import AttentionSpec
from ptq2themoon.evaluate.attention_maps import AttentionMaps
from ptq2themoon.evaluate.attention_query import ROLLOUT
from ptq2themoon.plots.attention_figures import attention_heads, attention_overview
from ptq2themoon.plots.rollout_figure import attention_rollout
from ptq2themoon.study.attention_fidelity import COLUMNS, fidelity_markdown, fidelity_table
from ptq2themoon.tables.attention_weights import heads_table, overview_table, rollout_table
from ptq2themoon.vocabulary.errors import UserError

NOTE = "the class token is the one token before the patches"
SPEC = AttentionSpec("blocks.11.softmax", 11, 1, 1, (7, 7), True, NOTE, 50)
RECIPES = ("fp32", "layernorm", "customized")


def maps(heads: int = 3) -> dict[str, AttentionMaps]:
    """Two images; every recipe's attention is its own."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
    return {
        name: AttentionMaps(pixels, random.random((2, heads, 7, 5), np.float32), (1, -1), "11", note=NOTE)
        for name in RECIPES
    }


def windows() -> dict[str, AttentionMaps]:
    """Seven windows of five tokens."""
    changes = {"query": "mean of tokens", "note": "no class token", "groups": 7, "is_map": False}
    return {name: replace(each, **changes) for name, each in maps().items()}


def shown(figure: Figure, label: str) -> np.ndarray:
    (axes,) = [axes for axes in figure.axes if axes.get_label() == label]
    return np.asarray(axes.images[-1].get_array())


def weights(table: pd.DataFrame, **place: object) -> np.ndarray:
    """[rows, columns] of the map at `place`, and that its cosine is one number."""
    found = table[np.logical_and.reduce([table[key] == value for key, value in place.items()])]
    assert found["cosine"].nunique() == 1
    return found.pivot(index="row", columns="column", values="weight").to_numpy()


# Figures and their tables -------------------------------------------------------------------------


def test_the_overview_shows_its_table() -> None:
    graphs = maps()
    figure, table = attention_overview(graphs), overview_table(graphs, 4)
    texts = [text.get_text() for text in figure.texts]
    assert len(table) == 2 * 3 * 35
    for image in range(2):
        for name in RECIPES:
            found = weights(table, image=image, recipe=name)
            for kind in ("mean", "overlay"):
                np.testing.assert_array_equal(shown(figure, f"{kind}:{name}:{image}"), found)
    for cosine in table[table["recipe"] != "fp32"]["cosine"].unique():
        assert f"cos {cosine:.3f}" in texts
    assert (table[table["recipe"] == "fp32"]["cosine"] > 1 - 1e-6).all()


def test_the_table_holds_no_more_images_than_are_drawn() -> None:
    assert set(overview_table(maps(), 1)["image"]) == {0}


def test_every_head_shows_its_table() -> None:
    graphs = maps(heads=13)
    figure, table = attention_heads(graphs, 1), heads_table(graphs, 1)
    texts = [text.get_text() for text in figure.texts]
    assert set(table["image"]) == {1}
    for head in range(13):
        for name in RECIPES:
            found = weights(table, head=head, recipe=name)
            np.testing.assert_array_equal(shown(figure, f"head:{name}:{head}"), found)
    assert all(f"cos {cosine:.3f}" in texts for cosine in table[table["recipe"] != "fp32"]["cosine"].unique())


def test_windows_have_the_numbers_that_their_figures_show() -> None:
    graphs = windows()
    texts, table = [text.get_text() for text in attention_overview(graphs).texts], overview_table(graphs, 4)
    assert list(table) == ["image", "recipe", "cosine", "kl", "query"]
    for row in table.itertuples():
        assert f"cos {row.cosine:.4f}\nKL {row.kl:.4f} nats" in texts
    heads = heads_table(graphs, 0)
    for axes in attention_heads(graphs, 0).axes[1:]:
        drawn = np.concatenate([line.get_ydata() for line in axes.lines])
        wanted = [heads[heads["recipe"] == name][axes.get_label()] for name in RECIPES[1:]]
        np.testing.assert_allclose(drawn, np.concatenate(wanted))
    assert set(heads["query"]) == set(table["query"]) == {"mean of tokens"}


def test_a_model_alone_has_tables_too() -> None:
    alone = {"fp32": windows()["fp32"]}
    assert list(overview_table(alone, 4)) == ["image", "recipe", "cosine", "kl", "query"]
    assert heads_table(alone, 0).empty


def test_a_rollout_is_called_so_and_printed_with_more_digits() -> None:
    graphs = {name: replace(each, measure=ROLLOUT, block="0 to 11") for name, each in maps(1).items()}
    figure, table = attention_rollout(graphs), rollout_table(graphs, 4)
    texts = [text.get_text() for text in figure.texts]
    assert "Attention rollout of the class token to the patches, blocks 0 to 11" in texts
    assert texts.count("rollout") == 3
    assert "head mean" not in texts
    assert all(f"cos {cosine:.5f}" in texts for cosine in table[table["recipe"] != "fp32"]["cosine"].unique())
    np.testing.assert_array_equal(
        shown(figure, "mean:layernorm:1"), weights(table, image=1, recipe="layernorm")
    )


# Fidelity -----------------------------------------------------------------------------------------


def images(count: int = 41) -> pd.DataFrame:
    random = np.random.default_rng(count)
    cosine, kl = 1 - 0.03 * random.random(count), 0.1 * random.random(count)
    return pd.DataFrame({"image": range(count), "query": "class token", "cosine": cosine, "kl": kl})


def test_fidelity_by_hand() -> None:
    each = images()
    found = fidelity_table({"layernorm": each}, "w8a8", SPEC).iloc[0]
    cosine, kl = np.sort(each["cosine"]), np.sort(each["kl"])
    # Of 41 sorted values the third is the fifth percentile.
    wanted = [cosine.sum() / 41, np.sqrt((cosine**2).mean() - cosine.mean() ** 2), cosine[2], cosine[0]]
    wanted += [kl.sum() / 41, np.sqrt((kl**2).mean() - kl.mean() ** 2), kl[-3], kl[-1]]
    wanted.append(sum(value >= 0.99 for value in cosine) / 41)
    np.testing.assert_allclose(found[COLUMNS[5:]].to_numpy(dtype=float), wanted, rtol=1e-9)
    assert found[COLUMNS[:5]].tolist() == ["layernorm", "w8a8", 41, "class token", 11]


def test_one_image_and_no_recipe_are_no_nan() -> None:
    assert fidelity_table({"layernorm": images(1)}, "w8a8", SPEC).notna().all(axis=None)
    nothing = fidelity_table({}, "w8a8", SPEC)
    assert list(nothing) == COLUMNS
    assert NOTE in fidelity_markdown(nothing, SPEC)


def test_the_page_says_whose_attention_it_is() -> None:
    text = fidelity_markdown(fidelity_table({"layernorm": images()}, "w8a8", SPEC), SPEC)
    assert f"Attention of the class token to the patches, block 11: {NOTE}." in text
    assert "`layernorm` is what the study's own figures call vanilla." in text
    assert "| layernorm | w8a8 | 41 |" in text
    mean = replace(SPEC, class_token=False, note="no class token: the output is a mean over tokens")
    table = fidelity_table({"layernorm": images().assign(query="mean of tokens")}, "w8a8", mean)
    assert "all tokens on average to the patches, block 11: no class token" in fidelity_markdown(table, mean)


def test_images_of_another_query_are_refused() -> None:
    other = images().assign(query="mean of tokens")
    with pytest.raises(UserError, match="--table vanilla: query 'mean of tokens'; "):
        fidelity_table({"vanilla": other}, "w8a8", SPEC)


def test_the_committed_fidelity_is_that_of_the_runs() -> None:
    fidelity = committed.table("results/example/demo/study/attention_fidelity.csv")
    assert fidelity["recipe"].tolist() == list(RECIPES[1:])
    for row in fidelity.itertuples():
        run = json.loads(committed.read(f"results/example/demo/{row.recipe}/w8a8-n256-s0/metrics.json"))
        assert row.images == run["images"] == 2000
        assert row.cosine_mean == pytest.approx(run["attention_cosine"], rel=1e-5)
        assert row.kl_mean == pytest.approx(run["attention_kl"], rel=1e-5)
