"""The summary: its table, what people read, what DVC compares, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ptq2themoon.deploy.deploy_records import RuntimeMetrics
from ptq2themoon.plots.summary_rows import COLUMNS as PLOTTED
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.tables.summary import (
    COLUMNS,
    NOTHING,
    RUNTIME,
    Entry,
    headline,
    parse_entry,
    parse_runtime,
    summarize,
    to_html,
    to_markdown,
)
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.layout import HEADLINES

ROOT = Path(__file__).resolve().parents[2]
FLOAT = {
    "version": 1,
    "images": 3000,
    "top1": 91.5,
    "top5": 100.0,
    "loss": 0.22862961207867802,
    "agreement": 100.0,
    "logits_nsr": None,
    "logits_sqnr_db": None,
    "output_cosine": None,
    "attention_cosine": None,
    "attention_kl": None,
}
QUANTIZED = {
    **FLOAT,
    "protocol": "all-operators",
    "top1": 91.43333333333334,
    "agreement": 99.15,
    "logits_nsr": 0.00133,
    "logits_sqnr_db": 28.74564257373864,
    "output_cosine": 0.9993421,
    "attention_cosine": 0.9938348290920258,
    "attention_kl": 0.14976362116795858,
}


SHOWN = [column for column in COLUMNS if column not in RUNTIME]  # in Markdown, where nothing is deployed


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    """Two models; the first with two seeds of a recipe."""

    def entry(metrics: dict[str, Any], *key: Any) -> Entry:
        path = tmp_path / f"{'-'.join(map(str, key))}.json"
        path.write_text(json.dumps(metrics))
        return Entry(*key, path)

    return [
        entry(FLOAT, "demo", "fp32", "fp32", None, None),
        entry(QUANTIZED, "demo", "vanilla", "w8a8", 256, 0),
        entry({**QUANTIZED, "top1": 91.50001}, "demo", "vanilla", "w8a8", 256, 1),
        entry({**QUANTIZED, "attention_kl": None}, "swin", "vanilla", "w4a8", 32, 0),
        entry({**FLOAT, "top1": 80.0}, "swin", "fp32", "fp32", None, None),
    ]


def test_the_table_has_the_drop_from_the_same_models_floating_point(entries: list[Entry]) -> None:
    table = summarize(entries)
    assert tuple(table.columns) == COLUMNS
    assert table["top1_drop"].tolist() == [0, 0.06666667, -0.00001, -11.43333333, 0]
    assert table["seed"].tolist() == [pd.NA, 0, 1, 0, pd.NA]


def test_markdown_is_rounded_for_reading(entries: list[Entry]) -> None:
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in to_markdown(summarize(entries)).splitlines()
    ]
    heads, rule, full, first, second, *_ = (dict(zip(SHOWN, line, strict=True)) for line in lines)
    assert heads["top1_drop"] == "Top-1 drop (points)"
    assert heads["attention_kl"] == "Attention KL (nats)"
    assert rule["loss"].endswith("-:")
    assert not rule["recipe"].endswith(":")
    assert (full["top1"], full["seed"], full["logits_sqnr_db"]) == ("91.50", NOTHING, NOTHING)
    assert (first["top1"], first["top1_drop"], first["loss"], first["seed"]) == (
        "91.43",
        "0.07",
        "0.2286",
        "0",
    )
    assert second["top1_drop"] == "0.00"
    assert len({len(line) for line in to_markdown(summarize(entries)).splitlines()}) == 1


def test_a_headline_is_one_column_by_model_and_run_without_nulls(entries: list[Entry]) -> None:
    table = summarize(entries)
    demo = headline(table, "top1")["demo"]
    assert list(demo) == ["fp32", "vanilla/w8a8-n256-s0", "vanilla/w8a8-n256-s1"]
    assert demo["fp32"] == 91.5
    sqnr = headline(table, "logits_sqnr_db")
    assert sqnr["demo"]["vanilla/w8a8-n256-s0"] == QUANTIZED["logits_sqnr_db"]
    assert "fp32" not in sqnr["demo"]


def test_rows_of_other_numbers_of_images_are_not_mixed(entries: list[Entry], tmp_path: Path) -> None:
    """As after an interrupted run with another `evaluation.images`."""
    path = tmp_path / "fewer.json"
    path.write_text(json.dumps({**QUANTIZED, "images": 500}))
    mixed = [entries[0], entries[1]._replace(metrics=path)]
    with pytest.raises(UserError, match=r"fewer\.json: measured on 500 images, floating point on 3000"):
        summarize(mixed)


NO_ACCURACY = dict.fromkeys(("top1", "top5", "loss", "agreement"))


@pytest.fixture
def mixed(entries: list[Entry], tmp_path: Path) -> list[Entry]:
    """Beside models with accuracy one without."""
    found = list(entries)
    for name, metrics in (("fp32", FLOAT), ("vanilla", QUANTIZED)):
        path = tmp_path / f"features-{name}.json"
        path.write_text(json.dumps({**metrics, **NO_ACCURACY}))
        key = ("fp32", None, None) if name == "fp32" else ("w8a8", 256, 0)
        found.append(Entry("features", name, *key, path))
    return found


def test_a_model_without_accuracy_stands_beside_others(mixed: list[Entry], entries: list[Entry]) -> None:
    table = summarize(mixed)
    pd.testing.assert_frame_equal(table.iloc[: len(entries)], summarize(entries))
    float_row, row = table.iloc[-2], table.iloc[-1]
    for name in (*NO_ACCURACY, "top1_drop"):
        assert pd.isna(float_row[name])
        assert pd.isna(row[name])
    assert (row["output_cosine"], row["images"]) == (QUANTIZED["output_cosine"], 3000)
    cells = [cell.strip() for cell in to_markdown(table).splitlines()[-1].split("|")[1:-1]]
    shown = dict(zip(SHOWN, cells, strict=True))
    assert (shown["top1"], shown["top1_drop"], shown["agreement"]) == (NOTHING,) * 3
    assert (shown["logits_sqnr_db"], shown["output_cosine"]) == ("28.75", "0.9993")
    assert headline(table, "top1")["features"] == {}
    assert list(headline(table, "logits_sqnr_db")["features"]) == ["vanilla/w8a8-n256-s0"]


def test_nothing_but_models_without_accuracy(mixed: list[Entry]) -> None:
    table = summarize(mixed[-2:])
    assert table["top1"].isna().all()
    assert table["top1"].dtype == "float64"
    assert NOTHING in to_markdown(table)


def test_a_model_needs_floating_point(entries: list[Entry]) -> None:
    with pytest.raises(UserError, match=r"0\.json: model 'demo' has no fp32 entry"):
        summarize(entries[1:])


def test_an_entry_stands_once(entries: list[Entry]) -> None:
    with pytest.raises(UserError, match="demo vanilla w8a8 256 0: given twice"):
        summarize([*entries, entries[1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "must hold an object, not []; run the evaluate stage again"),
        (json.dumps({**FLOAT, "loss": "low"}), "loss: must be a number, not 'low'"),
        (json.dumps({**FLOAT, "images": None}), "images: must be an integer, not empty"),
        (json.dumps({**FLOAT, "version": 0}), "version: 0; this ptq2themoon reads version 1"),
        (json.dumps({k: v for k, v in FLOAT.items() if k != "version"}), "version: missing; "),
        (json.dumps({**FLOAT, "top1": None}), "top1 only here or only in fp32"),
        (
            json.dumps({("agreements" if k == "agreement" else k): v for k, v in FLOAT.items()}),
            "unknown key; did you mean 'agreement'?",
        ),
    ],
)
def test_files_without_metrics_are_refused(entries: list[Entry], text: str, message: str) -> None:
    entries[0].metrics.write_text(text)
    with pytest.raises(UserError) as error:
        summarize(entries)
    assert message in str(error.value)
    assert str(entries[1 if "only in fp32" in message else 0].metrics) in str(error.value)


@pytest.mark.parametrize(
    "values", ["m fp32 fp32 256 0 f", "m vanilla w8a8 - 0 f", "m vanilla w8a8 256 -1 f", "m fp32 fp32 - 0 f"]
)
def test_bad_entries_are_refused(values: str) -> None:
    with pytest.raises(UserError, match="--entry m"):
        parse_entry(values.split())


def test_the_page_names_the_model_to_ship(entries: list[Entry]) -> None:
    page = to_html(summarize(entries), {"demo/vanilla": (Path("fast/int8.onnx"), 2_300_000)})
    assert '<td>demo/vanilla</td><td>fast/int8.onnx</td><td class="n">2.3</td>' in page


def test_the_script_writes_two_forms_of_one_table_and_its_headlines(
    entries: list[Entry], tmp_path: Path
) -> None:
    outputs = {kind: tmp_path / f"summary.{kind}" for kind in ("csv", "md", "html")}
    arguments = [f"--out-{kind}={path}" for kind, path in outputs.items()]
    arguments += ["--out-headlines", *(str(tmp_path / f"{name}.json") for name in HEADLINES)]
    arguments += ["--entry"]
    for entry in entries:
        *values, _ = entry
        arguments += ["-" if value is None else str(value) for value in values]
    script = [sys.executable, str(ROOT / "workflow/scripts/pipeline/summarize.py")]
    subprocess.run([*script, *arguments], check=True)
    table = read_table(outputs["csv"], PLOTTED)
    assert tuple(table.columns) == COLUMNS
    assert table["calibration_images"].isna().tolist() == [True, False, False, False, True]
    assert (
        outputs["csv"]
        .read_text()
        .splitlines()[2]
        .startswith("demo,vanilla,all-operators,w8a8,256,0,3000,91.433333,0.06666")
    )
    assert outputs["md"].read_text() == to_markdown(summarize(entries))
    page = outputs["html"].read_text()
    assert "<td>demo</td><td>fp32</td>" in page
    for name in HEADLINES:
        assert json.loads((tmp_path / f"{name}.json").read_text()) == headline(summarize(entries), name)
    recorded = json.loads((tmp_path / "summary.sidecar.json").read_text())
    assert recorded["parameters"]["entries"][:2] == [
        ["demo", "fp32", "fp32", None, None], ["demo", "vanilla", "w8a8", 256, 0]
    ]  # fmt: skip
    assert [*recorded["inputs"]] == [entry.metrics.as_posix() for entry in entries]


RUNTIME_METRICS = {
    **dict.fromkeys(RuntimeMetrics.model_fields),
    **{"images": 3000, "agreement_simulation": 99.5, "operators": 160, "departing": 0},
    **{"largest_code_difference": 1, "codes_that_differ": 1e-6, "kernels": {}},
}


# Deployed -----------------------------------------------------------------------------------------


@pytest.fixture
def runtime(tmp_path: Path) -> list[str]:
    """`--runtime` of one entry, in both modes; no labels in the second."""
    path = tmp_path / "runtime.json"
    modes = {"faithful": 91.4, "fast": None}
    found = {mode: {**RUNTIME_METRICS, "top1": top1} for mode, top1 in modes.items()}
    path.write_text(json.dumps({"version": 1, "runtime": "ONNX Runtime", **found}))
    return ["demo", "vanilla", "w8a8", "256", "1", str(path)]


def test_the_runtime_stands_beside_the_simulation(entries: list[Entry], runtime: list[str]) -> None:
    table = summarize(parse_runtime(entries, [runtime]))
    assert table["faithful_top1"].tolist()[2] == 91.4
    assert table["faithful_top1"].isna().sum() == 4
    assert table["fast_top1"].isna().all()
    assert table["fast_agreement"].tolist()[2] == 99.5
    pd.testing.assert_frame_equal(table[SHOWN], summarize(entries)[SHOWN])
    head, *lines = to_markdown(table).splitlines()
    assert "| Top-1 in ONNX Runtime, faithful (%) |" in head
    assert "fast" not in head
    assert " 91.40 |" in lines[3]
    assert headline(table, "faithful_top1")["demo"] == {"vanilla/w8a8-n256-s1": 91.4}


def test_a_mode_that_is_not_deployed_is_left_out(entries: list[Entry], runtime: list[str]) -> None:
    fast = {"version": 1, "runtime": "ONNX Runtime", "fast": {**RUNTIME_METRICS, "top1": 90.0}}
    Path(runtime[-1]).write_text(json.dumps(fast))
    table = summarize(parse_runtime(entries, [runtime]))
    assert table["faithful_top1"].isna().all()
    assert table["fast_top1"].tolist()[2] == 90


def test_a_runtime_result_of_nothing_is_refused(entries: list[Entry], runtime: list[str]) -> None:
    with pytest.raises(UserError, match="--runtime demo vanilla w8a8 256 7: no --entry of this model"):
        parse_runtime(entries, [[*runtime[:4], "7", runtime[-1]]])


def test_a_runtime_file_without_a_metric_is_named(entries: list[Entry], runtime: list[str]) -> None:
    metrics = {name: value for name, value in RUNTIME_METRICS.items() if name != "agreement_simulation"}
    whole = {"version": 1, "runtime": "ONNX Runtime", "faithful": metrics}
    Path(runtime[-1]).write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"runtime\.json: faithful\.agreement_simulation: missing"):
        summarize(parse_runtime(entries, [runtime]))
