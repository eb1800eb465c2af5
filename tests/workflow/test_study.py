"""`snakemake study` on a distilled DeiT and a Swin: whole, roles right, the class token or none said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from clones import ROOT, run
from PIL import Image
from your_model import prepare, sections

from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.study_parameters import Study

pytestmark = pytest.mark.slow

SEEDS = [0, 1]
SMALL: dict[str, Any] = {
    "images": 4, "calibration_images": 3, "seeds": SEEDS, "bits": ["w8a8", "w6a6", "w4a4"], "loss": 0.0,
    "ranking_images": 2, "input_images": 3, "rounds": 1,
}  # fmt: skip
RECIPES = Study().recipes
FIGURES = (
    "ablation_input", "ablation_output", "ablation_once", "ranking", "fusion", "activations",
    "activations_block", "errors", "errors_average", "error_histograms",
    "attention_overview", "attention_heads", "attention_rollout",
)  # fmt: skip


CHAPTERS = (
    "1 Ablation", "2 Which operators", "3 Fusion", "4 Activations", "5 Errors", "6 Attention",
    "7 Study, chapter 7: all models",
)  # fmt: skip


class Family(NamedTuple):
    """A model of docs/your_model.md; `note`: what its tables say of the class token."""

    model: str
    class_token: bool
    note: str


FAMILIES = {
    "deit": Family("deit", True, "the class token is the first of 2 tokens"),
    "swin": Family("flowers", False, "no class token: the output is a mean over tokens"),
}


class Studied(NamedTuple):
    """A model's study after it ran."""

    family: Family
    folder: Path

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / "results" / self.family.model / "study" / f"{name}.csv")

    def path(self, name: str) -> Path:
        return self.folder / "results" / self.family.model / "study" / name


def section_of(model: str) -> str:
    """The heading of the page's section whose parameters have this model."""
    (head,) = [head for head, text in sections().items() if re.search(rf"^models:\n  {model}:", text, re.M)]
    return head


@pytest.fixture(scope="module", params=FAMILIES)
def studied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Studied:
    family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("clone")
    name, model, _ = prepare(section_of(family.model), folder, study=SMALL)
    assert model == family.model
    (folder / "resources").mkdir()
    (folder / "resources/study").symlink_to(ROOT / "resources/study")
    run(folder, "snakemake", "--configfile", name, "--cores", "2", "study")
    run(folder, "snakemake", "--configfile", name, "--cores", "2", "study", "--report", "report.html")
    return Studied(family, folder)


def test_every_figure_has_its_numbers_beside_it(studied: Studied) -> None:
    for name in FIGURES:
        assert not studied.table(name).empty, name
        image = Image.open(studied.path(f"{name}.png")).convert("RGB")
        assert len(image.getcolors(maxcolors=1 << 24)) > 20, name
        assert studied.path(f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_the_ablation_has_every_row_at_both_bits(studied: Studied) -> None:
    bits = ["w8a8", json.loads(studied.path("bits.json").read_text())["narrow"]]
    for variant in ("input", "output", "once"):
        table = studied.table(f"ablation_{variant}")
        rows = RECIPES if variant == "output" else [*RECIPES, "auto"]
        at = bits[1:] if variant == "once" else bits
        expected = [(b, recipe) for b in at for recipe in (*rows, "fp32")]
        assert list(zip(table["bits"], table["recipe"], strict=True)) == expected
        assert set(table["seeds"].dropna()) == {len(SEEDS)}
        assert table["output_cosine"].between(0.05, 1).all()
        assert table["attention_cosine"].between(0.05, 1).all()
    plain, twin = (studied.table(f"ablation_{variant}") for variant in ("input", "output"))
    first = [frame.set_index(["bits", "recipe"])["logits_sqnr_db"] for frame in (plain, twin)]
    assert first[0][bits[1], "layernorm"] == first[1][bits[1], "layernorm"]
    assert first[0][bits[1], "layernorm_all"] != first[1][bits[1], "layernorm_all"]


def test_the_recipe_found_is_one_for_this_model(studied: Studied) -> None:
    ranking, recipe = studied.table("ranking"), load_recipe(studied.path("auto.yaml"))
    chosen = {
        (role, block)
        for located in recipe.rules
        if located.rule.granularity == "per-channel"
        for role in located.rule.select.role or ()
        for block in located.rule.select.block or (None,)
    }
    rows = ranking[ranking["chosen"]]
    places = {(row.role, None if pd.isna(row.block) else int(row.block)) for row in rows.itertuples()}
    assert chosen == places
    assert {"norm1", "qkv", "proj", "fc1", "fc2", "residual1", "norm2", "residual2"} <= set(ranking["role"])


def test_tables_say_what_is_taken_for_the_class_token_or_that_there_is_none(studied: Studied) -> None:
    errors, activations = studied.table("errors"), studied.table("activations")
    assert errors["class_token"].str.startswith(studied.family.note).all()
    assert ("class" in set(errors["tokens"])) == studied.family.class_token
    assert ("class_minimum" in activations.columns) == studied.family.class_token
    assert errors.drop(columns="scale").notna().all(axis=None)
    assert set(errors["layer"]) == {"qkv", "proj", "fc1", "fc2"}
    assert set(errors["block"]) == set(range(7))
    assert studied.family.note in studied.path("attention_fidelity.md").read_text()


def test_rollout_is_drawn_or_said_to_be_undefined(studied: Studied) -> None:
    text = " ".join(re.findall(r"<text[^>]*>(.*?)</text>", studied.path("attention_rollout.svg").read_text()))
    assert ("Attention rollout of the class token" in text) == studied.family.class_token
    assert ("No attention rollout of this model" in text) == (not studied.family.class_token)


def test_all_models_are_in_one_table(studied: Studied) -> None:
    table = pd.read_csv(studied.folder / "results/study/models.csv")
    assert set(table["model"]) == {studied.family.model}
    narrow = table[~table["bits"].isin(["fp32", "w8a8"])]
    compared = ["vanilla", "layernorm", "customized"]
    assert narrow["recipe"].tolist() == [*compared, *compared, "auto"]
    full = table.loc[0, "value"]
    assert (table["change"] - (table["value"] - full)).abs().max() < 1e-5


def test_what_the_study_printed_is_drawn_once(studied: Studied) -> None:
    found = sorted(path.name for path in studied.folder.glob("results/**/*_published.*"))
    kinds = ("csv", "png", "png.sidecar.json", "svg")
    assert [name for name in found if name.startswith("errors")] == [f"errors_published.{k}" for k in kinds]
    assert all((studied.folder / "results/study" / name).is_file() for name in found)


def test_the_report_leads_through_the_chapters(studied: Studied) -> None:
    page = (studied.folder / "report.html").read_text()
    for chapter in (
        "1 Ablation",
        "2 Which operators",
        "3 Fusion",
        "4 Activations",
        "5 Errors",
        "6 Attention",
    ):
        assert chapter in page
    assert "Made by" in page
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=.https?://", page)


def test_a_second_run_has_nothing_to_do(studied: Studied) -> None:
    (name,) = [path.name for path in studied.folder.glob("*.yaml") if path.name != "environment.yml"]
    said = run(studied.folder, "snakemake", "--configfile", name, "--cores", "2", "study")
    assert "Nothing to be done" in said
