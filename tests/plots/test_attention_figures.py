from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from safetensors.numpy import save_file
from tiny_info import model_info

from ptq2themoon.evaluate.attention import fidelity
from ptq2themoon.evaluate.attention_maps import AttentionMaps, map_similarity, read_label_names, read_maps
from ptq2themoon.plots.attention_figures import HEADS_A_ROW, attention_heads, attention_overview
from ptq2themoon.plots.attention_text import short
from ptq2themoon.plots.heatmap import check_colormap, common_scale
from ptq2themoon.plots.style import save
from ptq2themoon.stage import Stage
from ptq2themoon.vocabulary.errors import UserError

Tensors = dict[str, np.ndarray]


def tensors(seed: int = 0, heads: int = 3, grid: tuple[int, int] = (7, 7), channels: int = 1) -> Tensors:
    """Two random images (the same for every `seed`) and attention of each head that sums to 0.9."""
    images = np.random.default_rng(0).integers(0, 256, (2, channels, 28, 28), dtype=np.uint8)
    weights = np.random.default_rng(seed).random((2, heads, grid[0] * grid[1])).astype(np.float32)
    return {"images": images, "attention": 0.9 * weights / weights.sum(axis=2, keepdims=True)}


METADATA = {
    "grid": "7x7", "groups": "1", "block": "11", "recipe": "vanilla", "labels": "1,-1",
    "query": "class token", "note": "the class token is the first of 2 tokens",
}  # fmt: skip


def write(path: Path, data: Tensors | None = None, **metadata: str) -> Path:
    save_file(data or tensors(), path, metadata={**METADATA, **metadata})
    return path


def maps(
    seed: int = 0, heads: int = 3, grid: tuple[int, int] = (7, 7), channels: int = 1, **more: Any
) -> AttentionMaps:
    data = tensors(seed, heads, grid, channels)
    return AttentionMaps(data["images"], data["attention"].reshape(2, heads, *grid), (1, -1), "11", **more)


def windows(seed: int = 0, heads: int = 3) -> AttentionMaps:
    """Four windows of nine tokens."""
    return maps(seed, heads, (4, 9), query="mean of tokens", note="no class token", groups=4, is_map=False)


def shown(figure: Figure, label: str) -> np.ndarray:
    """What the last image on the axes of that label shows."""
    (axes,) = [axes for axes in figure.axes if axes.get_label() == label]
    return np.asarray(axes.images[-1].get_array())


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize(("grid", "channels"), [((7, 7), 1), ((14, 14), 3), ((4, 7), 3)])
def test_overview_shows_the_maps(grid: tuple[int, int], channels: int) -> None:
    graphs = {"fp32": maps(0, 3, grid, channels), "vanilla": maps(1, 3, grid, channels)}
    figure = attention_overview(graphs)
    for row in range(2):
        image = graphs["fp32"].images[row]
        pixels = image[0] if channels == 1 else image.transpose(1, 2, 0)
        np.testing.assert_array_equal(shown(figure, f"original:{row}"), pixels)
        for name, each in graphs.items():
            mean = each.attention[row].mean(axis=0)
            np.testing.assert_array_equal(shown(figure, f"mean:{name}:{row}"), mean)
            np.testing.assert_array_equal(shown(figure, f"overlay:{name}:{row}"), mean)


def test_every_row_has_one_scale_that_ends_at_full_precisions_largest() -> None:
    graphs = {"fp32": maps(0), "vanilla": maps(1)}
    figure = attention_overview(graphs)
    for row in range(2):
        largest = graphs["fp32"].attention[row].mean(axis=0).max()
        panels = [f"{kind}:{name}:{row}" for kind in ("mean", "overlay") for name in graphs]
        for axes in (axes for axes in figure.axes if axes.get_label() in panels):
            assert axes.images[-1].get_clim() == pytest.approx((0, largest))


def test_an_arrow_says_that_a_recipe_goes_beyond_the_scale() -> None:
    low, high = np.full((2, 2), 0.1), np.full((2, 2), 0.2)
    assert [common_scale(each)[1] for each in ([low, high], [high, low])] == ["max", "neither"]


def test_overview_names_classes_and_similarity() -> None:
    graphs = {"fp32": maps(0), "vanilla": maps(1)}
    found = texts(attention_overview(graphs, ["tench", "Egyptian cat, tabby"]))
    assert {"FP32", "vanilla", "Egyptian cat", "image 1"} <= set(found)
    means = [each.attention[0].mean(axis=0) for each in graphs.values()]
    assert f"cos {map_similarity(*means):.3f}" in found
    assert "class 1" in texts(attention_overview(graphs))


def test_folders_name_the_classes_that_the_model_does_not_name() -> None:
    graphs = {"fp32": replace(maps(0), names=("rose", "17"))}
    assert {"rose", "image 1"} <= set(texts(attention_overview(graphs)))
    assert "rose" not in texts(attention_overview(graphs, ["tench", "cat"]))


def test_overview_shows_at_most_the_rows_asked_for() -> None:
    labels = [axes.get_label() for axes in attention_overview({"fp32": maps()}, rows=1).axes]
    assert "original:0" in labels
    assert "original:1" not in labels


@pytest.mark.parametrize("heads", [3, 12, HEADS_A_ROW + 4])
def test_heads_shows_every_head_of_every_graph(heads: int) -> None:
    graphs = {"fp32": maps(0, heads), "vanilla": maps(1, heads), "customized": maps(2, heads)}
    figure = attention_heads(graphs, index=1)
    np.testing.assert_array_equal(shown(figure, "original"), graphs["fp32"].images[1, 0])
    for name, each in graphs.items():
        for head in range(heads):
            np.testing.assert_array_equal(shown(figure, f"head:{name}:{head}"), each.attention[1, head])


def test_nothing_lies_outside_the_figure(inside: Callable[[Figure], bool]) -> None:
    graphs = {"fp32": maps(0), "a_recipe_with_a_long_name": maps(1)}
    names = ["a", "name " * 20]
    assert inside(attention_overview(graphs, names))
    assert inside(attention_heads(graphs, 0, names))


@pytest.mark.parametrize("make", [maps, windows])
@pytest.mark.parametrize(("heads", "recipes"), [(1, 0), (3, 1), (24, 0), (16, 5)])
def test_nor_with_any_number_of_heads_and_recipes(
    inside: Callable[[Figure], bool], make: Callable[..., AttentionMaps], heads: int, recipes: int
) -> None:
    note = "the class token is the first of 5 tokens before the patches, which the output reads; " * 2
    names = ["fp32", *(f"a_recipe_of_a_name_{i}" for i in range(recipes))]
    graphs = {name: replace(make(i, heads), note=note) for i, name in enumerate(names)}
    assert inside(attention_overview(graphs, ["a", "name " * 20]))
    assert inside(attention_heads(graphs, 0))


def test_titles_and_notes_say_whose_attention_it_is() -> None:
    for draw in (attention_overview, attention_heads):
        found = " ".join(texts(draw({"fp32": maps(note="the first is the class token")})))
        assert "Attention of the class token to the patches, block 11" in found
        assert "The first is the class token." in found
        everything = maps(query="mean of tokens", groups=4, note="no class token: there is a mean")
        found = " ".join(texts(draw({"fp32": everything})))
        assert "Mean attention of all tokens to the patches, block 11" in found
        assert "No class token: there is a mean. Mean over 4 groups of tokens that attend apart." in found


def test_windows_make_no_map_and_the_overview_says_so_with_numbers() -> None:
    graphs = {"fp32": windows(0), "vanilla": windows(1)}
    found = texts(attention_overview(graphs))
    assert "No map: block 11 attends within 4 windows or groups of 9 tokens, each apart." in " ".join(found)
    f, q = (torch.from_numpy(each.attention).transpose(1, 2) for each in graphs.values())
    for cosine, kl in zip(*fidelity(q, f), strict=True):  # what attention.csv holds for the same images
        assert f"cos {cosine:.4f}\nKL {kl:.4f} nats" in found


def test_windows_make_no_map_and_every_head_is_a_point() -> None:
    graphs = {"fp32": windows(0), "vanilla": windows(1), "customized": windows(2)}
    figure = attention_heads(graphs, index=1)
    (cosine,) = [axes for axes in figure.axes if axes.get_label() == "cosine"]
    assert len(cosine.lines) == 2
    f, q = (graphs[name].attention[1] for name in ("fp32", "customized"))
    wanted = [
        np.mean([map_similarity(q[head, group], f[head, group]) for group in range(4)]) for head in range(3)
    ]
    np.testing.assert_allclose(cosine.lines[1].get_ydata(), wanted, rtol=1e-5)
    assert [line.get_marker() for line in cosine.lines] == ["o", "s"]


def test_windows_with_nothing_to_compare_say_so() -> None:
    assert "no recipe to compare with" in texts(attention_overview({"fp32": windows()}))
    panels = attention_heads({"fp32": windows()}).axes
    assert sum(text.get_text() == "no recipe to compare with" for axes in panels for text in axes.texts) == 2


def test_maps_of_windows_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "maps.safetensors", tensors(grid=(4, 9)), grid="none", groups="4")
    read = read_maps(path)
    assert (read.is_map, read.groups, read.attention.shape) == (False, 4, (2, 3, 4, 9))


def test_image_index_beyond_the_maps_is_refused() -> None:
    with pytest.raises(UserError, match="--image-index 2: the maps hold 2 images; valid: 0 to 1"):
        attention_heads({"fp32": maps()}, index=2)


def test_map_similarity() -> None:
    assert map_similarity(np.array([1, 0]), np.array([0, 1])) == 0
    assert map_similarity(np.array([1, 2]), np.array([2, 4])) == pytest.approx(1)
    assert map_similarity(np.zeros(2), np.ones(2)) == 0


@pytest.mark.parametrize(
    "name", ["$x_{$", "$\\frac$", "a $", "\\$x_$", "$$", "a\x00\n\x1b[31m", "=1+1", "<b>&"]
)
def test_names_of_classes_are_no_formulas(name: str) -> None:
    figure = attention_overview({"fp32": maps()}, label_names=[name] * 10)
    figure.canvas.draw()
    assert short(name, 18) in [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.parametrize(
    ("name", "hint"), [("virdis", "did you mean 'viridis'?"), ("?", "valid: viridis, plasma")]
)
def test_unknown_colormap_is_refused(name: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        check_colormap(name)
    assert f"--colormap {name}: unknown; {hint}" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "metadata", "message"),
    [
        ({"attention": None}, {}, "no tensor 'attention'; found: images"),
        ({"images": np.zeros((2, 2, 28, 28), np.uint8)}, {}, "expected uint8 [N, 1 or 3, H, W]"),
        ({"images": np.zeros((2, 1, 28, 28), np.float32)}, {}, "'images' is float32"),
        ({"attention": np.zeros((3, 3, 49), np.float32)}, {}, "expected [2, heads, patches]"),
        ({"attention": np.full((2, 3, 49), np.nan, np.float32)}, {}, "not finite"),
        ({}, {"grid": "7"}, "metadata 'grid' is '7'; expected ROWSxCOLUMNS"),
        ({}, {"grid": "7x8"}, "metadata 'grid' is '7x8', but 'attention' has 49 patches"),
        ({}, {"labels": "1"}, "names 1 labels for 2 images"),
        ({}, {"labels": "a,b"}, "expected integers"),
        ({}, {"query": "class tokens"}, "metadata 'query' is 'class tokens'; did you mean 'class token'?"),
        ({}, {"groups": "0"}, "metadata 'groups' is '0'; expected a whole number from 1 on"),
        ({}, {"groups": "4", "grid": "none"}, "49 patches in 'attention' make no 4 groups"),
    ],
)
def test_bad_maps_are_refused(
    tmp_path: Path, changes: dict[str, np.ndarray | None], metadata: dict[str, str], message: str
) -> None:
    data = {key: value for key, value in {**tensors(), **changes}.items() if value is not None}
    path = write(tmp_path / "maps.safetensors", data, **metadata)
    with pytest.raises(UserError) as error:
        read_maps(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "maps.safetensors"
    path.write_bytes(b"not a tensor")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_maps(path)


def test_graphs_must_share_block_heads_and_images() -> None:
    with pytest.raises(
        UserError,
        match="--maps vanilla: block 11, 6 heads, grid 7x7, attention of class token; fp32 has block 11, 3",
    ):
        attention_overview({"fp32": maps(), "vanilla": maps(heads=6)})
    with pytest.raises(UserError, match="--maps vanilla: images"):
        attention_overview({"fp32": maps(), "vanilla": maps(channels=3)})


@pytest.mark.parametrize("names", [["a", "b"], None])
def test_label_names(tmp_path: Path, names: list[str] | None) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**model_info(), "label_names": names}))
    assert read_label_names(path) == names
    path.write_text(json.dumps(names or []))
    assert read_label_names(path) == (names or [])


def test_label_names_of_the_wrong_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    for content in ([1, 2], {**model_info(), "label_names": [1, 2]}):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"must be a list of strings|label_names\[0\]: must be text"):
            read_label_names(path)


def outputs(folder: Path) -> dict[str, Path]:
    return {
        f"--out-{figure}-{kind}": folder / f"{figure}.{kind}"
        for figure in ("overview", "heads")
        for kind in ("png", "svg")
    }


def arguments(folder: Path) -> list[object]:
    return [part for pair in outputs(folder).items() for part in pair]


def test_script_writes_the_same_bytes_as_any_other_process(tmp_path: Path, script) -> None:
    paths = {
        name: write(tmp_path / f"{name}.safetensors", tensors(seed, heads=2))
        for seed, name in enumerate(("fp32", "vanilla"))
    }
    options = ["--maps", *(f"{name}={path}" for name, path in paths.items())]
    options += ["--dpi", "60", "--image-index", "1", "--rows", "1"]
    done = script("plot_attention.py", *options, *arguments(tmp_path / "a"))
    assert (done.returncode, done.stderr) == (0, "")
    recorded = json.loads((tmp_path / "a" / "overview.png.sidecar.json").read_text())["parameters"]
    expected = {"graphs": ["fp32", "vanilla"], "image_index": 1, "rows": 1, "colormap": "viridis", "dpi": 60}
    assert recorded == expected
    again = outputs(tmp_path / "b")
    with Stage("plot", inputs=[], outputs=list(again.values()), parameters={}) as stage:
        graphs = {name: read_maps(path) for name, path in paths.items()}
        for figure, drawn in (
            ("overview", attention_overview(graphs, rows=1)),
            ("heads", attention_heads(graphs, index=1)),
        ):
            save(drawn, stage, again[f"--out-{figure}-png"], again[f"--out-{figure}-svg"], 60)
    for option, path in outputs(tmp_path / "a").items():
        assert path.read_bytes() == again[option].read_bytes(), option


def test_script_refuses_maps_of_other_images(tmp_path: Path, script) -> None:
    other = tensors()
    other["images"] = other["images"].copy()
    other["images"][1] ^= 255
    fp32, vanilla = write(tmp_path / "a.safetensors"), write(tmp_path / "b.safetensors", other)
    done = script("plot_attention.py", "--maps", f"fp32={fp32}", f"vanilla={vanilla}", *arguments(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "error: --maps vanilla: image 1 is not fp32's; draw all maps from the same images\n"
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--maps", "fp32"], "--maps fp32: must read NAME=PATH"),
        (
            ["--maps", "fp32=missing.safetensors"],
            "missing.safetensors: not found; stage plot_attention needs it",
        ),
        (["--maps", "fp32=x", "--colormap", "virdis"], "--colormap virdis: unknown; did you mean 'viridis'?"),
    ],
)
def test_script_refuses(tmp_path: Path, refusal, options: list[str], message: str) -> None:
    assert refusal("plot_attention.py", *options, *arguments(tmp_path)).startswith(f"error: {message}")
