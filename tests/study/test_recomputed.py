"""The committed tables of the demo's layer inputs, computed again another way.

From the PyTorch model with forward hooks and numpy alone: nothing of the package, its fused graph or PPQ.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import committed
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "resources" / "demo" / "model"
MODULES = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
PREFIX = {"": slice(None), "patch_": slice(1, None), "class_": slice(0, 1)}
TOKENS = {"patch": PREFIX["patch_"], "class": PREFIX["class_"]}
NOISE = 1e-5  # another processor changes inputs of these layers by 5e-6 at most (docs/workflow.md)

Inputs = dict[tuple[str, int], np.ndarray]
Check = Callable[[pd.DataFrame, Inputs], None]


def of_study(name: str) -> pd.DataFrame:
    return committed.table(f"results/example/demo/study/{name}.csv")


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    """[images, tokens, channels] of each layer and block, of images at equal distances in the manifest."""
    count = int(of_study("errors")["images"].unique().item())
    sources = committed.table("results/example/demo/evaluation.csv")["source"].to_numpy(dtype=int)
    images = load_file(ROOT / "resources" / "demo" / "evaluation.safetensors")["images"]
    chosen = images[sources[:: len(sources) // count][:count]]
    given = json.loads((MODEL / "config.json").read_text())["pretrained_cfg"]
    mean, std = (np.array(given[key], dtype=np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    pixels = (chosen.astype(np.float32) / 255 - mean) / std
    model, found = timm.create_model(f"local-dir:{MODEL}", pretrained=True).eval(), {}
    for layer, name in MODULES.items():
        for block, module in enumerate(model.blocks):

            def keep(_module, values, key=(layer, block)):
                found[key] = values[0].numpy()

            module.get_submodule(name).register_forward_pre_hook(keep)
    with torch.inference_mode():
        model(torch.from_numpy(pixels.astype(np.float32)))
    return found


def quantized(values: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    """8 bit, symmetric, round half to even; in float32, as the simulation."""
    scale = np.asarray(scale, dtype=np.float32)
    return np.clip(np.rint(values / scale), -128, 127) * scale


def percent(values: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    noise = np.abs(quantized(values, scale) - values).sum((0, 1), dtype=float)
    return 100 * noise / np.abs(values).sum((0, 1), dtype=float)


def same(found: object, wanted: object, rel: float = 2e-4, noise: float = 0) -> None:
    """Up to the digits of the table, and values on the edge of two integers that fall either way.

    Args:
        noise: of float32, in what the model computes.
    """
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=rel, atol=noise)


# What each table says -----------------------------------------------------------------------------


def check_activations(table: pd.DataFrame, inputs: Inputs) -> None:
    """Of the block whose channels are in git."""
    places = table.groupby(["layer", "block"])
    (block,) = table["block"].unique()
    assert set(places.groups) == {place for place in inputs if place[1] == block}
    for place, rows in places:
        assert rows["channel"].tolist() == list(range(inputs[place].shape[2]))
        for prefix, tokens in PREFIX.items():
            values = inputs[place][:, tokens]
            same(rows[f"{prefix}minimum"], values.min((0, 1)), noise=NOISE)
            same(rows[f"{prefix}maximum"], values.max((0, 1)), noise=NOISE)


def check_largest(table: pd.DataFrame, inputs: Inputs) -> None:
    assert len(table) == 3 * len(inputs)
    for row in table.itertuples():
        values = inputs[row.layer, row.block][:, {"all": slice(None), **TOKENS}[row.tokens]]
        ranges = values.max((0, 1)) - values.min((0, 1))
        # The input of the first block's qkv is the same class token for every image: no range but noise.
        same([row.range, row.range], [ranges.max(), ranges[row.channel]], noise=NOISE)
        same(row.median_range, np.sort(ranges)[(len(ranges) - 1) // 2], noise=NOISE)
        same([row.minimum, row.maximum], [f(values[..., row.channel]) for f in (np.min, np.max)], noise=NOISE)


def check_errors(table: pd.DataFrame, inputs: Inputs) -> None:
    """Per tensor, everywhere; per channel, in the block whose scales are in git."""
    channels = of_study("error_channels")
    (block,) = channels["block"].unique()
    assert len(table) == 4 * len(inputs)
    rows = table[(table["quantizer"] == "per tensor") | (table["block"] == block)]
    assert len(rows) == 2 * len(inputs) + 2 * len(MODULES)
    for row in rows.itertuples():
        of_layer = channels.loc[channels["layer"] == row.layer, "scale_per_channel"].to_numpy()
        scale = row.scale if row.quantizer == "per tensor" else of_layer
        values = inputs[row.layer, row.block][:, TOKENS[row.tokens]]
        error = (quantized(values, scale) - values).astype(float)
        signal = np.square(values, dtype=float)
        noise_to_signal = np.square(error).sum() / signal.sum()
        same(row.mse, np.square(error).mean(), rel=2e-3)
        same(row.mae_sum, np.abs(error).sum(2).mean(), rel=2e-3)
        same(row.mae_mean, np.abs(error).mean(), rel=2e-3)
        same(row.relative_error, (np.square(error) / (signal + 1e-7)).mean(), rel=5e-3)
        same(row.nsr, noise_to_signal, rel=2e-3)
        same(row.sqnr_db, -10 * np.log10(noise_to_signal), rel=2e-3)
        same(row.largest_range, (values.max((0, 1)) - values.min((0, 1))).max(), noise=NOISE)
        assert row.channels == values.shape[2]


def check_channels(table: pd.DataFrame, inputs: Inputs) -> None:
    """The scale of the tensor is that of errors.csv, from which the error of each channel follows."""
    errors = of_study("errors").dropna(subset="scale").set_index(["layer", "block"])
    for place, rows in table.groupby(["layer", "block"]):
        same(rows["scale_per_tensor"], np.full(len(rows), errors.loc[place, "scale"].iloc[0]))
        for way in ("per_tensor", "per_channel"):
            same(rows[f"percent_{way}"], percent(inputs[place], rows[f"scale_{way}"].to_numpy()), rel=5e-3)


def check_average(table: pd.DataFrame, _: Inputs) -> None:
    errors = of_study("errors")
    assert len(table) == len(MODULES) * 2 * 2
    for row in table.itertuples():
        rows = errors[
            (errors["layer"] == row.layer)
            & (errors["tokens"] == row.tokens)
            & (errors["quantizer"] == row.quantizer)
        ]
        assert row.blocks == len(rows)
        for measure in ("mse", "mae_sum", "mae_mean", "relative_error", "nsr", "sqnr_db"):
            same(getattr(row, measure), rows[measure].to_numpy().sum() / len(rows))


def check_histograms(table: pd.DataFrame, inputs: Inputs) -> None:
    """Counts, up to one channel that float noise moves over an edge."""
    errors = of_study("errors").dropna(subset="scale").set_index(["layer", "block"])
    channels = of_study("error_channels").set_index(["layer", "block"])
    for (*place, quantizer), rows in table.groupby(["layer", "block", "quantizer"]):
        values = inputs[tuple(place)]
        assert rows["channels"].sum() == values.shape[2]
        assert rows["high"].tolist()[:-1] == rows["low"].tolist()[1:]
        if quantizer == "per tensor":
            scale = errors.loc[tuple(place), "scale"].iloc[0]
        elif tuple(place) in channels.index:
            scale = channels.loc[tuple(place), "scale_per_channel"].to_numpy()
        else:
            continue
        found = percent(values, scale)
        same(rows["median"], np.full(len(rows), np.median(found)), rel=2e-3)
        counts = np.histogram(found, [*rows["low"], 100.001])[0]
        assert np.abs(counts - rows["channels"]).sum() <= 2


CHECKS: dict[str, Check] = {
    "activations_block": check_activations,
    "activations_largest": check_largest,
    "errors": check_errors,
    "errors_average": check_average,
    "error_channels": check_channels,
    "error_histograms": check_histograms,
}


@pytest.mark.parametrize("name", CHECKS)
def test_numbers_are_what_the_pytorch_model_gives(name: str, inputs: Inputs) -> None:
    CHECKS[name](of_study(name), inputs)


@pytest.mark.parametrize(
    ("name", "row", "column"),
    [
        ("activations_block", {"layer": "fc2", "block": 5, "channel": 638}, "patch_maximum"),
        ("activations_block", {"layer": "qkv", "block": 5, "channel": 5}, "class_minimum"),
        ("activations_largest", {"layer": "fc2", "block": 1, "tokens": "all"}, "range"),
        ("errors", {"layer": "fc1", "block": 2, "tokens": "patch", "quantizer": "per tensor"}, "mse"),
        ("errors", {"layer": "fc2", "block": 11, "tokens": "class", "quantizer": "per tensor"}, "mae_sum"),
        ("errors", {"layer": "proj", "block": 5, "tokens": "patch", "quantizer": "per channel"}, "mse"),
        ("errors", {"layer": "qkv", "block": 0, "tokens": "patch", "quantizer": "per tensor"}, "scale"),
        ("errors_average", {"layer": "fc2", "tokens": "class", "quantizer": "per channel"}, "mae_sum"),
        ("error_channels", {"layer": "fc2", "block": 5, "channel": 100}, "percent_per_channel"),
        ("error_channels", {"layer": "fc2", "block": 5, "channel": 100}, "scale_per_channel"),
        ("error_histograms", {"layer": "fc2", "block": 5, "quantizer": "per channel"}, "channels"),
    ],
)
def test_a_changed_number_is_noticed(name: str, row: dict[str, object], column: str, inputs: Inputs) -> None:
    """Two percent more, or a channel more, in one row."""
    table = of_study(name)
    chosen = (table[list(row)] == pd.Series(row)).all(axis=1)
    place = table.index[chosen & (table[column] != 0)][0]
    value = table.loc[place, column]
    table.loc[place, column] = value + 1 if table[column].dtype == int else value * 1.02
    with pytest.raises(AssertionError):
        CHECKS[name](table, inputs)
