"""docs/your_model.md run as it stands, on one of each family: distilled DeiT, Swin, DINOv2, MobileViT."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from PIL import Image
from your_model import PAGE, Ran, commands, run_section, sections

pytestmark = pytest.mark.slow

RECIPES = ("vanilla", "ship")
KEY = "w8a8-n4-s0"
IMAGES = 6
FIGURES = ("top1", "errors_along_network", "attention_overview", "attention_heads")
IN_EVERY_BLOCK = {
    "norm1", "attn_scores", "attn_scale", "softmax", "attn_context", "proj", "residual1",
    "norm2", "fc1", "fc2", "residual2",
}  # fmt: skip


class Expected(NamedTuple):
    """What the results of a section say. `note`: of the class token; `said`: how the figures begin."""

    blocks: int
    query: str
    note: str
    said: str
    classes: int | None
    name: str


CLASS_TOKEN = "Attention of the class token to the patches"
MEAN = "Mean attention of all tokens to the patches"
POOLED = "no class token: the output is a mean over tokens"
EXPECTED = {
    "deit": Expected(7, "class token", "the class token is the first of 2", CLASS_TOKEN, 1000, "n01440764"),
    "flowers": Expected(7, "mean of tokens", POOLED, f"{MEAN}, block 6 No map: ", 3, "daisy"),
    "encoder": Expected(7, "class token", "the class token is the first of 5", CLASS_TOKEN, None, "image 0"),
    "birds": Expected(9, "mean of tokens", POOLED, MEAN, 4, "class 0"),
}


@pytest.fixture(scope="module", params=list(sections()))
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run_section(request.param, tmp_path_factory.mktemp("clone"))


def results(ran: Ran, name: str, recipe: str = "") -> Path:
    return ran.folder / "results" / ran.model / (f"{recipe}/{KEY}/{name}" if recipe else name)


def report(ran: Ran) -> dict[str, Any]:
    return json.loads((ran.folder / "results/models" / ran.model / "fusion.json").read_text())


def test_every_command_of_the_page_runs(ran: Ran) -> None:
    """The verifier says so; a dry run has something to do."""
    assert commands(PAGE) == [line for text in sections().values() for line in commands(text)]
    for line, said in ran.said.items():
        if "verify" in line:
            assert said.endswith("24 results verified\n")
        if "--dry-run" in line:
            assert re.search(r"^total +\d\d$", said, re.MULTILINE)
        if "onnx.load" in line:
            assert "dim_param" in said


def test_floating_point_and_the_recipes_are_in_the_summary(ran: Ran) -> None:
    expected = EXPECTED[ran.model]
    table = pd.read_csv(ran.folder / "results/summary.csv")
    assert table["recipe"].tolist() == ["fp32", *RECIPES]
    assert set(table["images"]) == {IMAGES}
    assert table[["top1", "loss", "agreement"]].notna().all(axis=None) == (expected.classes is not None)
    assert (table["logits_sqnr_db"][1:] > 8).all()
    assert table["output_cosine"][1:].between(0.9, 1).all()
    assert table["attention_cosine"][1:].between(0.5, 1).all()


def test_every_block_has_every_role(ran: Ran) -> None:
    expected, operators = EXPECTED[ran.model], report(ran)["operators"]
    for role in IN_EVERY_BLOCK:
        found = Counter(op["block"] for op in operators if op["role"] == role)
        assert set(found) == set(range(expected.blocks)), role
    inputs = Counter(op["role"] for op in operators if op["role"] in ("qkv", "q", "k", "v"))
    apart = {"q", "k", "v"} if ran.model == "encoder" else {"qkv"}
    assert inputs == dict.fromkeys(apart, expected.blocks)


def test_tables_say_whose_attention_it_is_and_are_whole(ran: Ran) -> None:
    expected, facts = EXPECTED[ran.model], report(ran)["attention"]
    assert facts["class_token"] == (expected.query == "class token")
    assert facts["note"].startswith(expected.note)
    assert len(facts["blocks"]) == expected.blocks
    for recipe in RECIPES:
        attention = pd.read_csv(results(ran, "attention.csv", recipe))
        assert attention["query"].tolist() == [expected.query] * IMAGES
        assert attention.notna().all(axis=None)
        operators = pd.read_csv(results(ran, "operators.csv", recipe))
        assert set(operators["mode"]) == {"accumulated", "local", "logits"}
        assert operators.groupby("mode")["nsr"].apply(lambda nsr: (nsr > 0).mean()).min() > 0.8


def test_figures_say_it_too_and_show_something(ran: Ran) -> None:
    for name in FIGURES:
        image = Image.open(results(ran, f"figures/{name}.png")).convert("RGB")
        assert min(image.size) > 150
        assert len(image.getcolors(maxcolors=1 << 24)) > 50
    for name in FIGURES[2:]:
        text = shown_text(results(ran, f"figures/{name}.svg"))
        assert text.count(EXPECTED[ran.model].said) == 1
        assert re.search(EXPECTED[ran.model].note, text, re.IGNORECASE)


def shown_text(path: Path) -> str:
    """The words of an SVG file, its lines joined."""
    return html.unescape(" ".join(re.findall(r"<text[^>]*>(.*?)</text>", path.read_text(), re.DOTALL)))


def test_classes_are_those_of_the_model_and_named_by_the_images(ran: Ran) -> None:
    expected = EXPECTED[ran.model]
    info = json.loads((ran.folder / "results/models" / ran.model / "model.json").read_text())
    assert info["num_classes"] == expected.classes
    assert expected.name in shown_text(results(ran, "figures/attention_overview.svg"))
    no_top1 = "no top-1" in shown_text(results(ran, "figures/top1.svg"))
    assert no_top1 == (expected.classes is None)
