"""The leaderboard for people: Markdown, a block for each model, protocol and bits, best top-1 first."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ptq2themoon.evaluate.paired import LEVEL
from ptq2themoon.tables.leaderboard_rows import mean_costs
from ptq2themoon.tables.markdown import aligned_table, signed
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.layout import FP32

NOTHING, EQUAL = "–", "≈"
PROTOCOLS = {
    "products": "inputs of matrix products and weights are quantized, as in most papers",
    "all-operators": "LayerNorm, GELU, softmax or residual sums are quantized too",
}


def page(table: pd.DataFrame, costs: pd.DataFrame) -> str:
    """The whole page.

    Args:
        table: as `leaderboard` makes it.
        costs: seconds and memory of each model, recipe, bits and seed.
    """
    shown = table.merge(mean_costs(costs), how="left", on=["model", "recipe", "bits"])
    lines = ["# Leaderboard", "", *_legend()]
    for model, own in shown.groupby("model", sort=False):
        lines += _of_model(str(model), own)
    return "\n".join(lines) + "\n"


def _legend() -> list[str]:
    return [
        "Figures are means ± standard deviation over draws of calibration images. Changes are in percentage",
        f"points, on the same images; {EQUAL} marks what is no difference (exact test of paired images,",
        f"two-sided p ≥ {LEVEL}). Rows of different blocks are not to be compared: another protocol",
        "quantizes something else. Seconds and memory are of one calibration as Snakemake measured it, the",
        "start of Python among them. [The page about it](../../docs/leaderboard.md) says more;",
        "leaderboard.csv has every column. (quick): trained by the preset for a CPU, less than its paper.",
    ]


def _of_model(model: str, own: pd.DataFrame) -> list[str]:
    full, rows = own[own["recipe"] == FP32].iloc[0], own[own["recipe"] != FP32]
    first = rows.iloc[0]
    lines = ["", f"## {model}", ""]
    lines.append(
        f"{int(first['images'])} images, {int(first['seeds'])} draws of {int(first['calibration_images'])} "
        f"calibration images; FP32 has a top-1 of {_plain(full['top1'], 2)} %."
    )
    for protocol, block in rows.groupby("protocol", sort=False):
        lines += ["", f"### {model}, protocol `{protocol}`: {PROTOCOLS[str(protocol)]}"]
        for bits, group in block.groupby("bits", sort=False):
            lines += ["", f"#### {model}, `{protocol}`, {str(bits).upper()}", "", *_rows(group)]
        lines += ["", f"#### {model}, `{protocol}`: where each runs", "", *_where(block)]
    return lines


def _rows(group: pd.DataFrame) -> list[str]:
    ordered = group.sort_values(["top1", "logits_sqnr_db"], ascending=False, kind="stable")
    bases = ordered["base"].dropna().unique()
    base = f"`{bases[0]}`" if len(bases) else "its base"
    header = [
        "Recipe", "Top-1 (%)", "against FP32", f"against {base}", "against the best", "Agreement (%)",
        "Output SQNR (dB)", "Attention cosine", "Calibration (s)", "Memory (MB)", "Runs on",
    ]  # fmt: skip
    body = [
        [
            _recipe(row),
            _spread(row, "top1", 2),
            _change(row, "fp32"),
            _change(row, "base"),
            _change(row, "best"),
            _spread(row, "agreement", 2),
            _spread(row, "logits_sqnr_db", 2),
            _spread(row, "attention_cosine", 4),
            _plain(row["seconds"], 1),
            _plain(row["memory_mb"], 0),
            _plain_text(row["runs_on"]),
        ]
        for row in ordered.to_dict("records")
    ]
    return aligned_table(header, body, [True, *[False] * 9, True])


def _recipe(row: dict[str, Any]) -> str:
    """The recipe's name; with the mean bits of its weights where a method chose others than asked for.

    And a mark where it trained by the preset for a CPU.
    """
    asked, found = parse_bits(row["bits"])[0], row["weight_bits"]
    chosen = not pd.isna(found) and abs(found - asked) > 0.005
    quick = " (quick)" if "(quick)" in str(row["methods"]) else ""
    return f"`{row['recipe']}`{quick}" + (f" (weights {found:.2f} bits)" if chosen else "")


def _where(block: pd.DataFrame) -> list[str]:
    """One line per recipe and what is the same of it at several bits."""
    header = [
        "Recipe",
        "Bits",
        "Methods",
        "Runs on",
        "Work in integers",
        "Products in float",
        "In floating point",
    ]
    texts = ["recipe", "methods", "runs_on", "float_products", "floating"]
    known = block.assign(**{name: block[name].astype(object).fillna("") for name in texts})
    body = []
    for _, rows in known.groupby([*texts, "integer_share"], sort=False, dropna=False):
        row = rows.iloc[0]
        share = NOTHING if pd.isna(row["integer_share"]) else f"{100 * row['integer_share']:.1f} %"
        bits = ", ".join(rows["bits"])
        said = (row["methods"], row["runs_on"], share, row["float_products"], row["floating"])
        body.append([f"`{row['recipe']}`", bits, *(text or NOTHING for text in said)])
    return aligned_table(header, body, [True, True, True, True, False, True, True])


def _spread(row: dict[str, Any], name: str, decimals: int) -> str:
    text = _plain(row[name], decimals)
    deviation = row[f"{name}_std"]
    return text if pd.isna(row[name]) or pd.isna(deviation) else f"{text} ± {deviation:.{decimals}f}"


def _change(row: dict[str, Any], against: str) -> str:
    change = row[f"{against}_change"]
    if pd.isna(change):
        return NOTHING
    return signed(change) + (f" {EQUAL}" if row[f"{against}_verdict"] == "no difference" else "")


def _plain(value: Any, decimals: int) -> str:
    return NOTHING if pd.isna(value) else f"{value:.{decimals}f}"


def _plain_text(value: Any) -> str:
    return NOTHING if pd.isna(value) else str(value)
