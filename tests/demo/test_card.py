"""The model card says what card.json and the files say, and the training script trains and resumes."""

from __future__ import annotations

import csv
import json
import runpy
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

DEMO = Path(__file__).parents[2] / "resources" / "demo"
README = (DEMO / "README.md").read_text(encoding="utf-8")
CARD = json.loads((DEMO / "card.json").read_text(encoding="utf-8"))
WEIGHTS = DEMO / "model" / "model.safetensors"


def fact(name: str) -> str:
    """The second column of a row of the card's table."""
    (value,) = [
        line.split(" | ")[1].removesuffix(" |") for line in README.splitlines() if f"| {name} |" in line
    ]
    return value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Top-1", f"{CARD['test_top1']} % of all {CARD['test_images']:,} test images"),
        (
            "Epochs",
            f"{CARD['epochs']}, the first {CARD['epochs_with_half_of_the_patches']} on half of the patches",
        ),
        ("Batch size", f"{CARD['batch_size']}"),
        ("Learning rate", f"{CARD['lr']}, "),
        ("Optimizer", CARD["optimizer"]),
        ("Augmentation", CARD["augmentation"]),
        ("Seed", f"{CARD['seed']}"),
        ("Trained", f"{CARD['date']}, on {CARD['device']}, in {CARD['training_seconds']:,} s, "),
        ("Trained", f"with torch {CARD['torch']} and timm {CARD['timm']}"),
    ],
)
def test_readme_says_what_card_json_says(name: str, value: str) -> None:
    assert value in fact(name)


def test_readme_says_what_the_model_is() -> None:
    config = json.loads((DEMO / "model" / "config.json").read_text(encoding="utf-8"))
    shown = ", ".join(f"`{key}` {value}" for key, value in config["model_args"].items())
    assert fact("Architecture") == f"timm `{config['architecture']}` with {shown}"
    assert fact("Classes") == f"{config['num_classes']}"
    weights = load_file(WEIGHTS)
    assert fact("Parameters") == f"{sum(w.numel() for w in weights.values()):,}, stored as float16"
    assert {w.dtype for w in weights.values()} == {torch.float16}
    cfg = config["pretrained_cfg"]
    assert f"mean {cfg['mean'][0]}, standard deviation {cfg['std'][0]}" in README


def test_the_model_is_small_and_good_enough() -> None:
    assert WEIGHTS.stat().st_size <= 12_000_000
    assert CARD["test_top1"] >= 92
    assert CARD["test_images"] == 10_000


@pytest.mark.parametrize(("name", "said"), [("calibration", "1,024 of the"), ("evaluation", "2,000 of the")])
def test_readme_counts_the_images(name: str, said: str) -> None:
    with safe_open(DEMO / f"{name}.safetensors", framework="np") as file:
        count = file.get_slice("images").get_shape()[0]
    assert said == f"{count:,} of the"
    assert fact(f"`{name}.safetensors`").startswith(said)


def test_the_curve_is_of_this_training() -> None:
    with open(DEMO / "training.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, CARD["epochs"] + 1))
    assert round(sum(float(row["seconds"]) for row in rows)) == CARD["training_seconds"]


# The training script ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def idx_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two batches of noise to train on and one to test on."""
    folder, rng = tmp_path_factory.mktemp("idx"), np.random.default_rng(0)
    for split, count in (("train", 12), ("t10k", 6)):
        for name, shape, high in (("images-idx3", (count, 28, 28), 256), ("labels-idx1", (count,), 10)):
            header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            array = rng.integers(0, high, shape, dtype=np.uint8)
            (folder / f"{split}-{name}-ubyte").write_bytes(header + array.tobytes())
    return folder


def train(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **replaced: Callable[..., Any]) -> Path:
    """Two epochs, the first on half of the patches; `replaced` functions of the script."""
    options = {"data": data, "out": out, "state": out / "state.pt", "epochs": 2, "patch-drop-epochs": 1}
    options |= {"batch-size": 6, "device": "cpu"}
    command = ["train.py", *(f"--{key}={value}" for key, value in options.items())]
    monkeypatch.setattr(sys, "argv", command)
    out.mkdir(exist_ok=True)
    main = runpy.run_path(str(DEMO / "train.py"))["main"]
    main.__globals__.update(replaced)
    main()
    return out


@pytest.mark.slow
def test_a_resumed_training_equals_an_uninterrupted_one(
    idx_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(idx_files, tmp_path / "whole", monkeypatch)
    save_state = runpy.run_path(str(DEMO / "train.py"))["save_state"]

    def save_and_die(*args: Any) -> None:
        save_state(*args)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(idx_files, tmp_path / "stopped", monkeypatch, save_state=save_and_die)
    assert not (tmp_path / "stopped" / "model").exists()
    resumed = train(idx_files, tmp_path / "stopped", monkeypatch)
    weights = "model/model.safetensors"
    assert (resumed / weights).read_bytes() == (whole / weights).read_bytes()
    assert json.loads((resumed / "card.json").read_text()).keys() == CARD.keys()
    assert (resumed / "model/config.json").read_bytes() == (DEMO / "model/config.json").read_bytes()
    assert (resumed / "training.png").read_bytes().startswith(b"\x89PNG")
