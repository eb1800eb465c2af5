"""What fusion saves: time an image in each executor, and operators of each type."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ptq2themoon.plots.style import GREY, Series, display_name, series, styled
from ptq2themoon.vocabulary.errors import UserError

FUSIONS = ("without", "with")
COLUMNS = (
    *("model", "executor", "precision", "fusion", "executed", "quantized_tensors"),
    *("median_ms", "low_ms", "high_ms", "ratio", "batch", "threads", "rounds", "note"),
)
OPERATOR_COLUMNS = ("operator", *FUSIONS)
HEIGHT = 0.38  # of a bar, where the next pair is 1 away


class Pair(NamedTuple):
    """The rows without and with fusion that share executor and precision."""

    label: str
    rows: tuple[Any, Any]


@styled
def fusion(times: pd.DataFrame, operators: pd.DataFrame) -> Figure:
    """Times as bars from zero, without and with fusion under one another; beside them counts by type.

    Args:
        times: rows of fusion.csv, `COLUMNS`.
        operators: rows of fusion_operators.csv, `OPERATOR_COLUMNS`.
    """
    pairs = _pairs(times)
    height = max(1.4 + 0.235 * len(operators), 1.6 + 0.6 * len(pairs))
    figure = Figure(figsize=(10.6, height), layout="constrained")
    figure.suptitle(f"{times['model'].iloc[0]} with and without fusion", x=0.01, ha="left", fontsize=10.5)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    marks = _marks(times["note"])
    _draw_times(left, pairs, marks)
    left.set_xlabel(_settings(times.iloc[0], marks))
    _draw_counts(right, operators)
    right.set_xlabel(_totals(times, operators))
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return figure


SECONDS = tuple(f"seconds_per_image_{name}_fusion" for name in FUSIONS)


@styled
def fusion_published(models: pd.DataFrame) -> Figure:
    """The study's printed seconds an image, without and with fusion under one another.

    Args:
        models: resources/study/models.csv, with `model` and `SECONDS`.
    """
    figure = Figure(figsize=(7.4, 1.6 + 0.6 * len(models)), layout="constrained")
    axes = figure.subplots()
    for index, (name, column) in enumerate(zip(FUSIONS, SECONDS, strict=True)):
        for centre, (seconds, without) in enumerate(zip(models[column], models[SECONDS[0]], strict=True)):
            y = centre + (index - 0.5) * HEIGHT
            bar = _bar(axes, y, seconds, series(index))
            bar.set_label(f"_{centre}" if centre else f"{name} fusion")
            ratio = f" ({without / seconds:.2f}×)" if index else ""
            _annotate(axes, seconds, y, f"{seconds:.3f} s{ratio}", 8)
    axes.set_xlim(0, 1.35 * models[list(SECONDS)].to_numpy().max())
    axes.set_xlabel("time per image (s) of the quantized model, lower is better; ×: times as fast as without")
    _name_rows(axes, list(models["model"]))
    figure.suptitle("With and without fusion, as the study printed it", x=0.01, ha="left", fontsize=10.5)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _pairs(times: pd.DataFrame) -> list[Pair]:
    found = []
    for (executor, precision), rows in times.groupby(["executor", "precision"], sort=False):
        by_fusion = {row.fusion: row for row in rows.itertuples()}
        if sorted(rows["fusion"]) != sorted(FUSIONS):
            found_fusions = ", ".join(map(str, rows["fusion"]))
            raise UserError(
                f"fusion table, {executor}, {precision}: rows for fusion {found_fusions}; "
                f"expected one for each of {', '.join(FUSIONS)}"
            )
        name = str(executor).replace(" without ", "\nwithout ")
        label = f"{name}\n{display_name(precision).upper()}"
        found.append(Pair(label, (by_fusion[FUSIONS[0]], by_fusion[FUSIONS[1]])))
    return found


def _marks(notes: pd.Series) -> dict[str, str]:
    """`*`, `**`, ... by note, in the table's order."""
    return {note: "*" * number for number, note in enumerate(notes.dropna().unique(), 1)}


def _settings(row: Any, marks: Mapping[str, str]) -> str:
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    lines = [
        f"time per image (ms), lower is better; batch {row.batch}, {threads}",
        f"median and quartiles of {row.rounds} rounds; ×: times as fast as without fusion",
        "operators: how many the executor runs",
    ]
    notes = [line for note, mark in marks.items() for line in textwrap.wrap(f"{mark} {note}", 80)]
    return "\n".join([*lines, *notes])


def _totals(times: pd.DataFrame, operators: pd.DataFrame) -> str:
    without, with_ = (f"{operators[name].sum():,}" for name in FUSIONS)
    lines = ["operators of each type in the graph", f"all types: {without} without fusion, {with_} with"]
    tensors = times.groupby("fusion")["quantized_tensors"].max().reindex(FUSIONS)
    if tensors.gt(0).all():
        lines.append("quantized tensors: {:,.0f} without, {:,.0f} with".format(*tensors))
    return "\n".join(lines)


def _draw_times(axes: Axes, pairs: Sequence[Pair], marks: Mapping[str, str]) -> None:
    longest = 1.0
    for centre, pair in enumerate(pairs):
        for index, row in enumerate(pair.rows):
            y, mark = centre + (index - 0.5) * HEIGHT, marks.get(row.note, "")
            if not np.isfinite(row.median_ms):
                axes.text(0, y, f" not timed{mark}", va="center", color=GREY, fontsize=8)
                continue
            _bar(axes, y, row.median_ms, series(index))
            ends = [[row.median_ms - row.low_ms], [row.high_ms - row.median_ms]]
            axes.errorbar(row.median_ms, y, xerr=ends, color="black", linewidth=0.9, capsize=2)
            _annotate(axes, row.high_ms, y, _numbers(row) + mark, 8)
            longest = max(longest, row.high_ms)
    axes.set_xlim(0, 1.62 * longest)
    _name_rows(axes, [pair.label for pair in pairs])


def _numbers(row: Any) -> str:
    """`19.3 ms (1.56×), 276 operators`."""
    ratio = f" ({row.ratio:.2f}×)" if row.fusion == FUSIONS[1] and np.isfinite(row.ratio) else ""
    return f"{row.median_ms:.{1 if row.median_ms >= 10 else 2}f} ms{ratio}, {row.executed:,.0f} operators"


def _draw_counts(axes: Axes, operators: pd.DataFrame) -> None:
    for index, name in enumerate(FUSIONS):
        for centre, count in enumerate(operators[name]):
            y = centre + (index - 0.5) * HEIGHT
            bar = _bar(axes, y, count, series(index))
            bar.set_label(f"_{centre}" if centre else f"{name} fusion")
            _annotate(axes, count, y, str(count), 6.5)
    axes.set_xlim(0, 1.12 * operators[list(FUSIONS)].to_numpy().max())
    _name_rows(axes, list(operators["operator"]))


def _bar(axes: Axes, y: float, width: float, look: Series) -> Rectangle:
    (bar,) = axes.barh(y, width, height=HEIGHT, color=look.colour, edgecolor="white", linewidth=0)
    bar.set_hatch(look.hatch)
    return bar


def _annotate(axes: Axes, x: float, y: float, text: str, size: float) -> None:
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center_baseline", fontsize=size)


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
