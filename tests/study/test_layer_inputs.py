"""The inputs of the layers of every family, and their errors, against plain numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from families import FAMILIES, image_shape
from matplotlib.figure import Figure
from tiny_info import fused_model
from tiny_models import random_images
from tiny_quantized import Reference, Tiny, fake_quantize, symmetric
from torch import Tensor

from ptq2themoon.evaluate.attention import AttentionSpec
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.plots.activations import activations, activations_block, of_block
from ptq2themoon.plots.input_error_figures import error_histograms, errors_average, errors_by_block
from ptq2themoon.quantize.tensors import QuantizedTensor
from ptq2themoon.study.input_errors import EDGES, InputErrors, averages, input_tensors
from ptq2themoon.study.layer_inputs import (
    Layer,
    Ranges,
    capture_inputs,
    channel_table,
    largest_table,
    read_layers,
)
from ptq2themoon.study.names import PER_CHANNEL, PER_TENSOR, QUANTIZERS, block_index
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import TensorSpec
from ptq2themoon.vocabulary.study_parameters import BASE, CHANNELWISE, LAYERS

WITH_CLASS_TOKEN = {"vit", "vit_features", "deit_distilled", "dinov2", "dinov2_swiglu"}
PREFIX = {"vit": 1, "vit_features": 1, "deit_distilled": 2, "dinov2": 5, "dinov2_swiglu": 5}
RECIPES = {PER_TENSOR: BASE, PER_CHANNEL: CHANNELWISE}
COUNT = 5


@dataclass
class Studied:
    """What both stages find of one model."""

    name: str
    tiny: Tiny
    fused: FusedModel
    qparams: dict[str, list[Path]]
    images: Tensor
    tables: dict[str, pd.DataFrame]
    seen: dict[tuple[str, int], np.ndarray]
    tensors: dict[str, dict[str, QuantizedTensor]]

    @classmethod
    def of(cls, name: str, tiny: Tiny, images: Tensor, folder: Path) -> Studied:
        found, qparams = read_layers(tiny.fused), {}
        for quantizer, recipe in RECIPES.items():
            model, planned = tiny.calibrated(recipe, batches=[images])
            (folder / recipe).mkdir()
            qparams[quantizer] = tiny.saved(planned, folder / recipe)
        tensors = {q: input_tensors(pair, found.layers, q) for q, pair in qparams.items()}
        ranges, errors, seen = Ranges(), InputErrors(tensors, "cpu"), {}

        def see(layer: Layer, value: Tensor, count: int) -> None:
            ranges.see(layer, value, count)
            errors.see(layer, value, count)
            key = layer.name, layer.block
            channels = value.shape[-1]
            value = value.numpy().reshape(count, -1, channels)
            seen[key] = np.concatenate([seen.get(key, value[:0]), value])

        with model.only(()):
            capture_inputs(model, images.split(2), found.layers, see)
        table = errors.table(found.note)
        tables = {
            "channels": channel_table(ranges),
            "largest": largest_table(ranges, len(images), found.note),
            "errors": table,
            "averages": averages(table),
            "histograms": errors.histograms(),
            "error_channels": errors.channels(1),
        }
        return cls(name, tiny, tiny.fused, qparams, images, tables, seen, tensors)

    def tokens(self, values: np.ndarray, kind: str) -> np.ndarray:
        prefix = PREFIX.get(self.name, 0)
        return {"all": values, "patch": values[:, prefix:], "class": values[:, :1]}[kind]

    @property
    def figures(self) -> list[Figure]:
        t = self.tables
        return [
            activations(t["channels"], t["largest"]),
            activations_block(of_block(t["channels"], -1), t["largest"]),
            errors_by_block(t["errors"]),
            errors_average(t["averages"]),
            error_histograms(t["histograms"]),
        ]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Studied:
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    images = torch.from_numpy(random_images(COUNT, *image_shape(name)))
    return Studied.of(name, Tiny.of_family(name, folder), images, folder)


# Every family -------------------------------------------------------------------------------------


def test_every_block_has_its_four_layers(family: Studied) -> None:
    blocks = len(family.fused.report.attention.blocks)
    places = {(layer, block) for layer in LAYERS for block in range(blocks)}
    for name in ("channels", "largest", "errors", "histograms"):
        table = family.tables[name]
        assert set(zip(table["layer"], table["block"], strict=True)) == places
    assert set(family.tables["error_channels"]["layer"]) == set(LAYERS)


def test_the_class_token_is_where_a_model_has_one_and_the_note_says_so(family: Studied) -> None:
    has = family.name in WITH_CLASS_TOKEN
    for name in ("largest", "errors", "averages"):
        table = family.tables[name]
        assert ("class" in set(table["tokens"])) == has
        (note,) = set(table["class_token"])
        assert note.startswith("the class token is" if has else "no class token")
    assert ("class_minimum" in family.tables["channels"]) == has


def test_nothing_is_missing_but_the_scale_of_each_channel(family: Studied) -> None:
    for name, table in family.tables.items():
        expected = family.tables["errors"]["quantizer"] == PER_CHANNEL if name == "errors" else False
        missing = table.isna().any(axis=1)
        assert (missing == expected).all(), name


def test_ranges_are_those_of_numpy(family: Studied) -> None:
    largest = family.tables["largest"].set_index(["layer", "block", "tokens"])
    kinds = set(family.tables["largest"]["tokens"])
    for place, rows in family.tables["channels"].groupby(["layer", "block"]):
        for kind in kinds:
            values = family.tokens(family.seen[place], kind)
            prefix = "" if kind == "all" else f"{kind}_"
            assert np.array_equal(rows[f"{prefix}minimum"], values.min((0, 1)))
            assert np.array_equal(rows[f"{prefix}maximum"], values.max((0, 1)))
            found = largest.loc[(*place, kind)]
            assert found["range"] == np.ptp(values, axis=(0, 1)).max()
            assert np.ptp(values, axis=(0, 1))[found["channel"]] == found["range"]


def test_errors_are_those_of_numpy(family: Studied) -> None:
    layers = {(layer.name, layer.block): layer.operator for layer in read_layers(family.fused).layers}
    for row in family.tables["errors"].itertuples():
        values = family.seen[row.layer, row.block]
        tensor = family.tensors[row.quantizer][layers[row.layer, row.block]]
        scale = tensor.scale.numpy()
        quantized = np.clip(np.rint(values / scale), -128, 127) * scale
        f, q = (family.tokens(each, row.tokens).astype(float) for each in (values, quantized))
        assert row.mse == pytest.approx(np.square(q - f).mean())
        assert row.mae_mean == pytest.approx(np.abs(q - f).mean())
        assert row.mae_sum == pytest.approx(np.abs(q - f).sum(2).mean())
        assert row.relative_error == pytest.approx((np.square(q - f) / (f**2 + 1e-7)).mean())
        nsr = np.square(q - f).sum() / np.square(f).sum()
        assert (row.nsr, row.sqnr_db) == pytest.approx((nsr, -10 * np.log10(nsr)))
        assert (row.channels, row.images) == (values.shape[2], COUNT)
        if row.quantizer == PER_TENSOR:
            assert row.scale == scale


def test_every_channel_is_in_one_bin(family: Studied) -> None:
    for (layer, block, _), rows in family.tables["histograms"].groupby(["layer", "block", "quantizer"]):
        assert rows["channels"].sum() == family.seen[layer, block].shape[2]
        assert [*rows["low"], rows["high"].iloc[-1]] == EDGES.tolist()


def test_figures_hold_all_and_nothing_is_cut_off(family: Studied) -> None:
    figures = family.figures
    for figure in figures:
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0) > -0.005
        assert box.x1 < width + 0.005
        assert box.y1 < height + 0.005
    has = family.name in WITH_CLASS_TOKEN
    of_block, by_block = figures[1], figures[2]
    assert len(of_block.axes) == len(LAYERS) * (4 if has else 2)
    assert len(by_block.axes[0].lines) == (4 if has else 2)
    for figure in figures[:4]:
        assert ("The class token is" in figure.get_suptitle()) == has
        assert ("No class token" in figure.get_suptitle()) != has


# One model, against the graph computed without PPQ --------------------------------------------------


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    folder = tmp_path_factory.mktemp("vit")
    images = torch.from_numpy(random_images(COUNT, *image_shape("vit")))
    return Studied.of("vit", Tiny.of_family("vit", folder), images, folder)


def test_inputs_are_the_outputs_of_what_precedes(vit: Studied) -> None:
    outputs = Reference(vit.tiny.path).run(vit.images)
    for layer, before in (("qkv", "norm1"), ("fc1", "norm2"), ("fc2", "gelu")):
        for block in (0, 1):
            wanted = outputs[vit.tiny.role(before, block)]
            np.testing.assert_allclose(vit.seen[layer, block], wanted, atol=1e-5)


def test_channels_of_a_block_are_those_of_numpy(vit: Studied) -> None:
    for layer, rows in vit.tables["error_channels"].groupby("layer"):
        values = vit.seen[layer, 1]
        for quantizer in QUANTIZERS:
            way = quantizer.replace(" ", "_")
            tensor = vit.tensors[quantizer][vit.tiny.role(layer, 1)]
            assert np.array_equal(
                rows[f"scale_{way}"].to_numpy(), np.broadcast_to(tensor.scale.numpy(), len(rows))
            )
            noise = np.abs(fake_quantize(values, tensor) - values).astype(float).sum((0, 1))
            signal = np.abs(values).astype(float).sum((0, 1))
            assert rows[f"percent_{way}"].to_numpy() == pytest.approx(100 * noise / signal, rel=1e-5)


def test_a_channel_of_zeros_has_no_error_and_a_lost_one_all_of_it() -> None:
    layer = Layer("fc1", 0, "fc1", AttentionSpec("softmax", 0, 1, 0, None, False, "no class token"))
    specs = [TensorSpec(True, 8, g, "minmax", 100.0, "input") for g in ("per-tensor", "per-channel")]
    tensor, each = map(QuantizedTensor, ("input", "input"), (0, 0), specs, (None, 2))
    tensor.quantizer = symmetric(tensor, torch.tensor(1.0))
    each.quantizer = symmetric(each, torch.tensor([1.0, 0.001, 1.0]))
    errors = InputErrors({PER_TENSOR: {"fc1": tensor}, PER_CHANNEL: {"fc1": each}}, "cpu")
    errors.see(layer, torch.tensor([[[0.0, 0.1, 7.0], [0.0, 0.1, 9.0]]]), 1)
    channels = errors.channels(0)
    assert channels["percent_per_tensor"].tolist() == [0, pytest.approx(100), 0]
    assert channels["percent_per_channel"].tolist() == [0, pytest.approx(0, abs=1e-4), 0]
    counts = errors.histograms().set_index("quantizer").loc[PER_TENSOR, "channels"].tolist()
    assert (counts[0], counts[-1], sum(counts)) == (2, 1, 3)


# What is refused ------------------------------------------------------------------------------------


def test_a_block_that_is_not_there_is_refused_with_the_nearest() -> None:
    assert [block_index(block, 12, "study.block") for block in (0, 11, -1, -12)] == [0, 11, 11, 0]
    for block, near in ((12, 11), (-13, -12)):
        said = f"study.block {block}: the model has 12 blocks; nearest valid: {near}"
        with pytest.raises(UserError, match=f"^{said}$"):
            block_index(block, 12, "study.block")


def test_parameters_of_the_other_granularity_are_refused(vit: Studied) -> None:
    layers = read_layers(vit.fused).layers
    with pytest.raises(UserError, match="is quantized per-channel; give parameters of a recipe that"):
        input_tensors(vit.qparams[PER_CHANNEL], layers, PER_TENSOR)


def test_a_model_without_any_of_the_layers_is_refused(vit: Studied) -> None:
    gone = {role for roles in LAYERS.values() for role in roles}
    operators = [o._replace(role=None if o.role in gone else o.role) for o in vit.fused.operators]
    with pytest.raises(UserError, match="no block has a layer qkv, proj, fc1, fc2"):
        read_layers(fused_model(vit.fused.path, vit.fused.graph, operators))


def test_query_key_and_value_apart_are_taken_once(vit: Studied) -> None:
    apart = [o._replace(role="q" if o.role == "qkv" else o.role) for o in vit.fused.operators]
    found = read_layers(fused_model(vit.fused.path, vit.fused.graph, apart))
    names = [layer.name for layer in found.layers]
    assert names == [layer for layer in LAYERS for _ in (0, 1)]


def test_an_input_that_is_not_finite_is_refused(vit: Studied) -> None:
    model, _ = vit.tiny.calibrated(BASE, batches=[vit.images])
    layers = read_layers(vit.fused).layers
    with (
        model.only(()),
        pytest.raises(UserError, match=r"operator 'blocks\.0\.qkv': its input is not finite"),
    ):
        capture_inputs(model, [vit.images * float("nan")], layers, Ranges().see)
