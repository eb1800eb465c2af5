"""The leaderboard: the runs' figures, differences judged within a protocol, published figures apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.evaluate.paired import judged
from ptq2themoon.evaluate.row_record import Drawn, Row, as_hits, as_marks
from ptq2themoon.tables.leaderboard_page import EQUAL, NOTHING, page
from ptq2themoon.tables.leaderboard_rows import COLUMNS, KERNELS, Entry, leaderboard
from ptq2themoon.tables.published import COLUMNS as PUBLISHED_COLUMNS
from ptq2themoon.tables.published import MODELS, published_page
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 40
FP32 = "1" * 36 + "0" * 4


def wrong(count: int, start: int = 0) -> str:
    """Right but for so many images from `start` on, and the last 4."""
    marks = np.array(list(FP32))
    marks[start : start + count] = "0"
    return "".join(marks)


def row(rights: Sequence[str | None], protocol: str = "products", **changes: Any) -> Row:
    draws = []
    for seed, right in enumerate(rights):
        top1 = None if right is None else 100 * float(as_hits(right).mean())
        metrics = Metrics(
            protocol=protocol, images=IMAGES, top1=top1, top5=None, loss=None, agreement=90.0 + seed,
            logits_nsr=0.01, logits_sqnr_db=20.0 + seed, output_cosine=0.99, attention_cosine=0.9,
            attention_kl=0.1,
        )  # fmt: skip
        agreeing = FP32 if right is None else right
        draws.append(Drawn(seed=seed, metrics=metrics, right=right, agreeing=agreeing))
    labelled = rights[0] is not None
    whole = {
        "fp32_top1": 90.0 if labelled else None,
        "fp32_right": FP32 if labelled else None,
        "draws": draws,
    }
    return Row(**{**whole, **changes})


def entries() -> list[Entry]:
    """Two bits; a base, one alike, one better, and two of another protocol."""
    found = []
    for bits, less in (("w8a8", 0), ("w4a4", 20)):
        several = {
            "papers": row([wrong(less), wrong(less, 1)]),
            "alike": row([wrong(less, 2), wrong(less, 1)]),
            "finer": row([wrong(less // 4), wrong(less // 4)]),
            "vanilla": row([wrong(less), wrong(less)], "all-operators"),
            "other": row([wrong(less), wrong(less // 2)], "all-operators"),
        }
        found += [Entry("demo", name, bits, 32, each) for name, each in several.items()]
    return found


def kernels(rows: Sequence[Entry]) -> pd.DataFrame:
    facts = dict.fromkeys(KERNELS, "")
    numbers = {"weight_bits": 4.0, "activation_bits": 4.1, "integer_share": 1.0}
    more = {**facts, **numbers, "runs_on": "integer kernels", "floating": "LayerNorm; biases"}
    return pd.DataFrame([{"model": e.model, "recipe": e.recipe, "bits": e.bits, **more} for e in rows])


def table(rows: Sequence[Entry] | None = None, bases: Sequence[str] = ("papers", "vanilla")) -> pd.DataFrame:
    rows = entries() if rows is None else rows
    return leaderboard(rows, kernels(rows), bases)


def costs(rows: Sequence[Entry]) -> pd.DataFrame:
    keys = [(e.model, e.recipe, e.bits, draw.seed) for e in rows for draw in e.row.draws]
    found = pd.DataFrame(keys, columns=["model", "recipe", "bits", "seed"])
    return found.assign(seconds=10.0 + found["seed"], memory_mb=700.0 + found["seed"])


def at(found: pd.DataFrame, recipe: str, bits: str) -> pd.Series:
    (one,) = found[(found["recipe"] == recipe) & (found["bits"] == bits)].to_dict("records")
    return one


def test_one_row_for_each_recipe_and_bits_after_floating_point() -> None:
    found = table()
    assert list(found.columns) == COLUMNS
    keys = list(zip(found["recipe"], found["bits"], strict=True))
    assert keys == [("fp32", "fp32"), *((e.recipe, e.bits) for e in entries())]
    assert found["seeds"].dropna().unique().tolist() == [2]
    assert found["calibration_images"].dropna().unique().tolist() == [32]


def test_figures_are_means_and_deviations_of_the_runs() -> None:
    found = at(table(), "other", "w4a4")
    values = [100 * 16 / IMAGES, 100 * 26 / IMAGES]
    assert (found["top1"], found["top1_std"]) == (np.mean(values), round(np.std(values, ddof=1), 8))
    assert (found["agreement"], found["logits_sqnr_db"]) == (90.5, 20.5)
    alone = at(table([Entry("m", "papers", "w8a8", 8, row([FP32]))]), "papers", "w8a8")
    assert alone["top1"] == 90.0
    assert np.isnan(alone["top1_std"])


def test_differences_are_those_of_the_paired_test() -> None:
    found, own = table(), {(e.recipe, e.bits): e.row for e in entries()}

    def hits(recipe: str) -> np.ndarray:
        return np.stack([as_hits(draw.right or "") for draw in own[recipe, "w4a4"].draws])

    for recipe, base in (("finer", "papers"), ("alike", "papers"), ("other", "vanilla")):
        seen, expected = at(found, recipe, "w4a4"), judged(hits(recipe), hits(base))
        assert (seen["base"], seen["judged_by"]) == (base, "top1")
        assert (seen["base_change"], seen["base_p"], seen["base_verdict"]) == (*expected, expected.verdict)
    assert at(found, "finer", "w4a4")["base_verdict"] == "better"
    assert at(found, "alike", "w4a4")["base_verdict"] == "no difference"
    assert at(found, "finer", "w4a4")["fp32_verdict"] == "no difference"
    assert at(found, "papers", "w4a4")["fp32_verdict"] == "worse"
    assert at(found, "papers", "w8a8")["fp32_change"] == 0


def test_a_base_is_of_the_same_protocol_and_never_judged_against_itself() -> None:
    found = table()
    assert pd.isna(at(found, "papers", "w4a4")["base"])
    assert pd.isna(at(found, "vanilla", "w4a4")["base"])
    only = table(bases=("papers",))
    assert pd.isna(at(only, "other", "w4a4")["base_change"])
    assert at(only, "finer", "w4a4")["base"] == "papers"


def test_every_row_is_judged_against_the_best_beside_it() -> None:
    found = table()
    assert pd.isna(at(found, "finer", "w4a4")["best"])
    for recipe in ("papers", "alike"):
        seen = at(found, recipe, "w4a4")
        assert (seen["best"], seen["best_verdict"]) == ("finer", "worse")
    assert at(found, "vanilla", "w4a4")["best"] == "other"
    assert at(found, "finer", "w8a8")["best"] == "papers"  # of equal ones the first
    assert at(found, "finer", "w8a8")["best_verdict"] == "no difference"


def test_a_model_without_labels_is_judged_by_agreement() -> None:
    rows = [Entry("m", name, "w8a8", 8, row([None, None])) for name in ("papers", "finer")]
    rows[1].row.draws[0].__dict__["agreeing"] = wrong(9)
    seen = at(table(rows), "finer", "w8a8")
    assert pd.isna(seen["top1"])
    assert pd.isna(seen["fp32_change"])
    assert (seen["judged_by"], seen["base_change"]) == ("agreement", -100 * 9 / (2 * IMAGES))
    assert NOTHING in page(table(rows), costs(rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Entry("demo", "finer", "w8a8", 32, row([FP32, FP32])), "demo, finer, w8a8: given twice"),
        (
            Entry("demo", "new", "w8a8", 32, row([FP32, FP32], fp32_right=wrong(1))),
            "demo, new, w8a8: was measured on other images than papers, w8a8",
        ),
        (Entry("demo", "new", "w8a8", 32, row([FP32])), "demo, new, w8a8: has other seeds than papers"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: Entry, message: str) -> None:
    with pytest.raises(UserError, match=message):
        table([*entries(), change])


# For people -------------------------------------------------------------------------------------------


def block(text: str, head: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    lines = text.partition(f"{head}\n\n")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_protocols_share_no_table_and_each_has_its_header() -> None:
    text = page(table(), costs(entries()))
    for protocol, recipes in (
        ("products", {"papers", "alike", "finer"}),
        ("all-operators", {"vanilla", "other"}),
    ):
        assert f"### demo, protocol `{protocol}`: " in text
        for bits in ("W8A8", "W4A4"):
            _, _, *rows = block(text, f"#### demo, `{protocol}`, {bits}")
            assert {cells[0].strip("`").partition("`")[0] for cells in rows} == recipes
    assert "FP32 has a top-1 of 90.00 %" in text


def test_the_best_stands_first_and_what_is_no_difference_is_marked() -> None:
    head, _, *rows = block(page(table(), costs(entries())), "#### demo, `products`, W4A4")
    shown = {cells[0]: dict(zip(head, cells, strict=True)) for cells in rows}
    assert list(shown) == ["`finer`", "`papers`", "`alike`"]
    assert shown["`finer`"]["Top-1 (%)"] == "77.50 ± 0.00"
    assert shown["`finer`"]["against FP32"] == f"−12.50 {EQUAL}"
    assert shown["`finer`"]["against `papers`"] == "+37.50"
    assert shown["`alike`"]["against `papers`"].endswith(EQUAL)
    assert shown["`papers`"]["against `papers`"] == NOTHING
    assert shown["`finer`"]["against the best"] == NOTHING
    assert shown["`alike`"]["against the best"] == "−37.50"
    assert shown["`papers`"]["Calibration (s)"] == "10.5"
    assert shown["`papers`"]["Memory (MB)"] == "701"


def test_bits_that_a_method_chose_are_said() -> None:
    text = page(table(), costs(entries()))
    _, _, *rows = block(text, "#### demo, `products`, W8A8")
    assert {cells[0] for cells in rows} == {
        f"`{n}` (weights 4.00 bits)" for n in ("papers", "alike", "finer")
    }


def test_a_row_that_was_trained_by_the_preset_for_a_cpu_says_so() -> None:
    trained = table()
    trained.loc[trained["recipe"] == "finer", "methods"] = "relu_mlp (quick) + glf_q (quick)"
    _, _, *rows = block(page(trained, costs(entries())), "#### demo, `products`, W4A4")
    assert {cells[0] for cells in rows} == {"`papers`", "`alike`", "`finer` (quick)"}


def test_where_each_runs_has_a_line_for_each_recipe() -> None:
    _, _, *rows = block(page(table(), costs(entries())), "#### demo, `products`: where each runs")
    assert [cells[0] for cells in rows] == ["`papers`", "`alike`", "`finer`"]
    assert rows[0] == [
        "`papers`",
        "w8a8, w4a4",
        NOTHING,
        "integer kernels",
        "100.0 %",
        NOTHING,
        "LayerNorm; biases",
    ]


# Its file ---------------------------------------------------------------------------------------------


def test_a_row_survives_its_file(tmp_path: Path) -> None:
    first = row([FP32, wrong(3)])
    records.write(tmp_path / "row.json", first)
    assert records.read(tmp_path / "row.json", Row) == first
    assert as_marks(as_hits(FP32)) == FP32
    (tmp_path / "row.json").write_text((tmp_path / "row.json").read_text().replace(FP32, "1 0"))
    with pytest.raises(UserError, match=r"fp32_right: .*; run the leaderboard_row stage again"):
        records.read(tmp_path / "row.json", Row)


# Published figures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    return pd.read_csv(ROOT / "resources/published/imagenet.csv")


def test_published_figures_are_whole(published: pd.DataFrame) -> None:
    assert tuple(published.columns) == PUBLISHED_COLUMNS
    assert published["top1"].between(0, 100).all()
    assert published["source"].notna().all()
    assert not published.duplicated(["method", "model", "bits", "source"]).any()
    known = published[published["fp32"].notna() & (published["method"] != "I-ViT")]
    assert (known["top1"] < known["fp32"]).all()  # one that is not would be of another checkpoint


def test_published_figures_stand_apart_with_what_they_cannot_be_compared_for(published: pd.DataFrame) -> None:
    text = published_page(published)
    assert "Nothing here was measured by this project" in text
    assert text.index("Not with the leaderboard's own rows") < text.index("## W8A8")
    head, _, floating, *rows = block(text, "## W4A4")
    assert head[1:-2] == list(MODELS)
    assert floating[1:-2] == ["81.39", "84.54", "72.21", "79.85", "81.80", "83.23", "85.27"]
    repq = dict(zip(head, next(cells for cells in rows if cells[0] == "RepQ-ViT"), strict=True))
    assert (repq["ViT-S"], repq["Swin-B"]) == ("65.05", NOTHING)
    assert repq["Source"] == "official repository README of RepQ-ViT"
    shown = [
        float(cell.split()[0])
        for bits in published["bits"].unique()
        for cells in block(text, f"## {bits.upper()}")[3:]
        for cell in cells[1:-2]
        if cell != NOTHING
    ]
    assert sorted(shown) == sorted(published["top1"])


def test_another_checkpoint_is_marked(published: pd.DataFrame) -> None:
    head, _, _, *rows = block(published_page(published), "## W8A8")
    fq_vit = dict(zip(head, next(cells for cells in rows if cells[0] == "FQ-ViT"), strict=True))
    assert fq_vit["Swin-B"] == "82.97 (83.60)"
    assert fq_vit["Note"].startswith("LayerNorm and softmax quantized too; ")
    assert "Swin-B: pretrained on 1k classes" in fq_vit["Note"]
    head, _, _, *rows = block(published_page(published), "## W6A6")
    adalog = dict(zip(head, next(cells for cells in rows if cells[0] == "AdaLog"), strict=True))
    assert adalog["ViT-B"] == "84.80 *"
