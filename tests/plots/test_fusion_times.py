from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from ptq2themoon.plots.fusion_times import COLUMNS, FUSIONS, OPERATOR_COLUMNS, fusion
from ptq2themoon.plots.style import save
from ptq2themoon.stage import Stage
from ptq2themoon.vocabulary.errors import UserError

EXECUTORS = ("PPQ's executor", "ONNX Runtime", "ONNX Runtime without optimisations")
TIMES = (32.04, 19.31, 113.9, 62.64, 7.85, 7.514, 7.66, 5.49, 8.69, 7.27, 13.5, 10.7)
OPERATORS = pd.DataFrame([("Add", 135, 25), ("Sub", 25, 0), ("Gelu", 0, 12)], columns=list(OPERATOR_COLUMNS))


def table() -> pd.DataFrame:
    rows = []
    for index, place in enumerate(product(EXECUTORS, ("fp32", "w8a8"), FUSIONS)):
        _, precision, name = place
        ms, is_with = TIMES[index], name == "with"
        tensors = 0 if precision == "fp32" else 531 if is_with else 1246
        ratio = TIMES[index - is_with] / ms
        rows.append(("demo", *place, 1000 + index, tensors, ms, 0.9 * ms, 1.2 * ms, ratio, 1, 2, 11, None))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"note": object})


def partly() -> pd.DataFrame:
    """One that could not be timed, and two of whose output is not finite."""
    found = table()
    found.loc[[2, 6], "note"] = "output not finite"
    found.loc[9, "note"] = "not timed: " + "the runtime has no such kernel " * 5
    found.loc[9, ["median_ms", "low_ms", "high_ms", "ratio", "executed"]] = None
    return found


def texts(figure: Figure, axes: int) -> list[str]:
    return [text.get_text() for text in figure.axes[axes].texts]


def test_times_carry_the_numbers_of_the_table_and_start_at_zero() -> None:
    figure = fusion(table(), OPERATORS)
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == list(TIMES)
    assert {bar.get_x() for bar in bars} == {0}
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == 2
    assert texts(figure, 0)[:4] == [
        "32.0 ms, 1,000 operators",
        "19.3 ms (1.66×), 1,001 operators",
        "113.9 ms, 1,002 operators",
        "62.6 ms (1.82×), 1,003 operators",
    ]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["PPQ's executor\nFP32", "PPQ's executor\nW8A8"]
    label = figure.axes[0].get_xlabel()
    for fact in ("lower is better", "batch 1", "2 threads", "11 rounds", "(ms)"):
        assert fact in label


def test_counts_are_those_of_the_table() -> None:
    figure = fusion(table(), OPERATORS)
    assert [bar.get_width() for bar in figure.axes[1].patches] == [135, 25, 0, 25, 0, 12]
    assert texts(figure, 1) == ["135", "25", "0", "25", "0", "12"]
    label = figure.axes[1].get_xlabel()
    assert "all types: 160 without fusion, 37 with" in label
    assert "quantized tensors: 1,246 without, 531 with" in label
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["without fusion", "with fusion"]


def test_what_is_wrong_with_a_row_is_said_below() -> None:
    figure = fusion(partly(), OPERATORS)
    found, label = texts(figure, 0), figure.axes[0].get_xlabel()
    assert [text.endswith(" operators*") for text in found] == [i in (2, 6) for i in range(12)]
    assert found[9] == " not timed**"
    assert "* output not finite" in label
    assert "** not timed: the runtime has no such kernel" in label
    assert len(figure.axes[0].patches) == 11


@pytest.mark.parametrize("make", [table, partly])
def test_nothing_lies_outside_the_figure(make: Callable[[], pd.DataFrame], inside) -> None:
    assert inside(fusion(make(), OPERATORS))
    long = [("AnOperatorWithAVeryLongNameIndeed", 1000, 999), *[(f"Type{i}", i, 0) for i in range(40)]]
    assert inside(fusion(make(), pd.DataFrame(long, columns=list(OPERATOR_COLUMNS))))


def test_a_table_with_half_a_pair_is_refused() -> None:
    with pytest.raises(UserError, match="PPQ's executor, fp32: rows for fusion with; expected one for each"):
        fusion(table().iloc[1:], OPERATORS)


def test_script_writes_the_same_bytes_as_any_other_process(tmp_path: Path, script) -> None:
    partly().to_csv(tmp_path / "fusion.csv", index=False)
    OPERATORS.to_csv(tmp_path / "operators.csv", index=False)
    png, svg = tmp_path / "a" / "fusion.png", tmp_path / "a" / "fusion.svg"
    options = ["--table", tmp_path / "fusion.csv", "--operators", tmp_path / "operators.csv", "--dpi", 60]
    done = script("plot_study_fusion.py", *options, "--out-png", png, "--out-svg", svg)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "a" / "fusion.png.sidecar.json").read_text())["parameters"] == {"dpi": 60}
    again = [tmp_path / "b.png", tmp_path / "b.svg"]
    with Stage("plot", inputs=[], outputs=again, parameters={}) as stage:
        save(fusion(pd.read_csv(tmp_path / "fusion.csv"), OPERATORS), stage, *again, 60)
    assert [path.read_bytes() for path in again] == [png.read_bytes(), svg.read_bytes()]


def test_script_names_the_missing_column(tmp_path: Path, refusal) -> None:
    table().drop(columns="ratio").to_csv(tmp_path / "fusion.csv", index=False)
    OPERATORS.to_csv(tmp_path / "operators.csv", index=False)
    line = refusal(
        "plot_study_fusion.py", "--table", tmp_path / "fusion.csv", "--operators", tmp_path / "operators.csv",
        "--out-png", tmp_path / "f.png", "--out-svg", tmp_path / "f.svg",
    )  # fmt: skip
    assert line.startswith(f"error: {tmp_path / 'fusion.csv'}: no column 'ratio'; valid: model, ")
