"""The messages of docs/your_model.md are what is said, word for word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from clones import ROOT
from huggingface_hub import constants
from safetensors.torch import save_file
from tiny_images import picture, preprocessing
from your_model import PAGE, SWIN, blocks

from ptq2themoon.data import draw_calibration, list_evaluation, open_source
from ptq2themoon.graph.sources.timm_model import load_model
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_source import Source
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.parameters import Params
from ptq2themoon.vocabulary.recipes import load_recipe

FILES: dict[str, dict[str, Any]] = {
    next(iter(params["models"])): params for params in map(yaml.safe_load, blocks(PAGE, "yaml"))
}
SWIN_NAME, DEIT_NAME = (FILES[model]["models"][model]["source"] for model in ("flowers", "deit"))


def test_each_message_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    Path("recipes").symlink_to(ROOT / "recipes")
    Path("encoder.onnx").touch()
    for part, count in (("flowers/train", 12), ("flowers/val", 2), ("imagenet/val", 3)):
        for index in range(count):
            folder = Path(part, ("daisy", "rose", "tulip")[index % 3])
            folder.mkdir(parents=True, exist_ok=True)
            picture(index).save(folder / f"{index}.png")
    save_file(timm.create_model(SWIN_NAME, num_classes=3, **SWIN).state_dict(), "flowers.safetensors")
    (block,) = blocks(PAGE, "text")
    for line, cause in zip(block.splitlines(), causes(), strict=True):
        with pytest.raises(UserError) as error:
            cause()
        assert str(error.value) == line


def causes() -> Iterator[Callable[[], Any]]:
    """What leads to each message, in the order of the page."""
    flowers, encoder = FILES["flowers"], FILES["encoder"]
    model = {**flowers["models"]["flowers"], "source": "swin_tinny_patch4_window7_224.ms_in1k"}
    yield lambda: Params.from_mapping({**flowers, "models": {"flowers": model}}, "flowers.yaml")
    few = {"calibration": {"images": 2, "batch_size": 1, "seeds": [0]}, "attention": {"images": 2}}
    few |= {"errors": {"images": 2, "logits_images": 2}}
    yield lambda: Params.from_mapping({**flowers, **few}, "flowers.yaml").check_files("flowers.yaml")
    bare = {**encoder["models"]["encoder"], "preprocessing": None}
    yield lambda: Params.from_mapping({**encoder, "models": {"encoder": bare}}, "encoder.yaml")
    yield lambda: load_model(Source(DEIT_NAME))
    yield lambda: load_model(Source(SWIN_NAME, Path("flowers.safetensors"), SWIN))
    train, val = (open_source("folder", Path(path)) for path in ("flowers/train", "imagenet/val"))
    yield lambda: draw_calibration(train, preprocessing(), 256, 0, Path("drawn.safetensors"))
    yield lambda: list_evaluation(val, 1000, None)
    operators = [Operator(f"blocks.{block}.fc2", "", "fc2", block) for block in range(6)]
    operators += [Operator(role, "", role) for role in ("norm1", "norm2", "norm")]
    yield lambda: load_recipe(Path("recipes/customized.yaml")).check(operators)
