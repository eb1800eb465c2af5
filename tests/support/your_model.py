"""docs/your_model.md on small inputs: its files and commands, and what they need, with random weights."""

from __future__ import annotations

import re
import shlex
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import timm
import torch
import yaml
from clones import ROOT, clone, run
from safetensors.torch import save_file
from tiny_images import picture
from tiny_models import randomised, to_onnx
from tiny_separate import Dino
from torch import nn

PAGE = (ROOT / "docs/your_model.md").read_text(encoding="utf-8")
# Small in the same way for all; `customized` names blocks 5 and 6, so no model has fewer than seven.
SMALL: dict[str, dict[str, Any]] = {
    "calibration": {"images": 4, "batch_size": 2},
    "evaluation": {"images": None, "batch_size": 4},
    "errors": {"images": 2, "logits_images": 1},
    "attention": {"images": 2},
    "plots": {"dpi": 60},
}
DEIT = {"depth": 7, "embed_dim": 48, "img_size": 64}
SWIN = {"depths": [2, 2, 3], "num_heads": [1, 2, 4], "embed_dim": 24, "window_size": 2, "img_size": 64}


class Ran(NamedTuple):
    """A section of the page after its commands ran: where, its model's name, and what each command said."""

    folder: Path
    model: str
    params: dict[str, Any]
    said: dict[str, str]


def sections() -> dict[str, str]:
    """Text of the page's sections that have commands, by heading."""
    parts = [part.partition("\n") for part in re.split(r"^## ", PAGE, flags=re.M)]
    return {head: text for head, _, text in parts if commands(text)}


def commands(text: str) -> list[str]:
    """The lines of the fenced blocks that are of no kind: the others are files."""
    return [line for block in blocks(text, "") for line in block.splitlines()]


def blocks(text: str, kind: str) -> list[str]:
    """The fenced blocks of a kind, such as `yaml`."""
    found = re.findall(r"^```(.*?)\n(.*?)^```$", text, flags=re.M | re.S)
    return [block for name, block in found if name == kind]


def prepare(head: str, folder: Path, **more: Any) -> tuple[str, str, dict[str, Any]]:
    """Write the section's parameter file, made small, and its inputs; (the file's name, the model's, params).

    Args:
        more: further sections of the parameters.
    """
    text = sections()[head]
    (name,), (block,) = re.findall(r"`(\w+\.yaml)`:\n", text), blocks(text, "yaml")
    params = yaml.safe_load(block) | more
    for extra in blocks(text, "yaml offline"):
        for model, changes in yaml.safe_load(extra)["models"].items():
            params["models"][model] |= changes
    for key, changes in SMALL.items():
        params[key] = {**params.get(key, {}), **changes}
    ((model, entry),) = params["models"].items()
    INPUTS[model](clone(folder), entry)
    (folder / name).write_text(yaml.safe_dump(params))
    return name, model, params


def run_section(head: str, folder: Path) -> Ran:
    """Prepare the section and run every command of it."""
    _, model, params = prepare(head, folder)
    text = sections()[head]
    said = {line: run(folder, *shlex.split(line)) for line in commands(text)}
    return Ran(folder, model, params, said)


def write_pictures(folder: Path, count: int) -> None:
    """Some blots of colour, other ones in each file."""
    folder.mkdir(parents=True)
    for index in range(count):
        seed = zlib.crc32(f"{folder.name}/{index}".encode())
        picture(seed, 5, 4).resize((90, 70)).save(folder / f"{index}.jpg")


def _timm_weights(entry: dict[str, Any], **smaller: Any) -> dict[str, torch.Tensor]:
    """Random weights for a model of the parameters, which is made smaller."""
    entry["arguments"] = entry.get("arguments", {}) | smaller
    name = entry["source"].partition(".")[0]
    model = randomised(timm.create_model(name, **entry["arguments"]))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # else all signal is lost on its way through random convolutions
    size = entry["arguments"].get("img_size", 64)
    model.train()(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return model.state_dict()


def _deit(folder: Path, entry: dict[str, Any]) -> None:
    save_file(_timm_weights(entry, **DEIT), folder / entry["checkpoint"])
    for part in ("train", "val"):
        for name in ("n01440764", "n01443537", "n01484850"):
            write_pictures(folder / "imagenet" / part / name, 2)


def _swin(folder: Path, entry: dict[str, Any]) -> None:
    save_file(_timm_weights(entry, **SWIN), folder / entry["checkpoint"])
    for part in ("train", "val"):
        for name in ("daisy", "rose", "tulip"):
            write_pictures(folder / "flowers" / part / name, 2)


def _dino(folder: Path, entry: dict[str, Any]) -> None:
    onnx.save(to_onnx(Dino(), (1, 3, 56, 56)), folder / "encoder.onnx")
    write_pictures(folder / "photos", 6)


def _mobilevit(folder: Path, entry: dict[str, Any]) -> None:
    torch.save({"state_dict": _timm_weights(entry)}, folder / entry["checkpoint"])
    entry["preprocessing"] = {"input_size": [3, 128, 128]}
    write_pictures(folder / "birds/images", 6)
    paths = [f"images/{index}.jpg" for index in range(6)]
    (folder / "birds/unlabelled.csv").write_text("\n".join(["path", *paths]))
    labelled = [f"{path},{index % 4}" for index, path in enumerate(paths)]
    (folder / "birds/test.csv").write_text("\n".join(["path,label", *labelled]))


INPUTS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "deit": _deit,
    "flowers": _swin,
    "encoder": _dino,
    "birds": _mobilevit,
}
