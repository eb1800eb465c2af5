"""Which sites gain from per-channel scales: role by block, and what choosing the best of them removes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ptq2themoon.plots.style import GREY, series, styled
from ptq2themoon.vocabulary.errors import UserError

RANKING_COLUMNS = (
    "rank",
    "role",
    "block",
    "nsr_per_tensor",
    "nsr_per_channel",
    "gain",
    "range_largest",
    "chosen",
)
SEARCH_COLUMNS = ("tried", "sites", "error", "share")
OUTSIDE = "–"  # the column of what lies in no block
CELL = 0.3  # inches
NUMBERED = 10  # ranks written into their cells


@styled
def ranking(table: pd.DataFrame, search: pd.DataFrame, model: str, bits: str, share: float) -> Figure:
    """Gain and channel range as heat maps, chosen sites framed; the error of every candidate set.

    Args:
        table, search: ranking.csv and search.csv of the stage study_auto.
        share: of the removable error that was asked for, 0 to 1.
    """
    roles = [str(role) for role in dict.fromkeys(_in_graph_order(table))]
    blocks = _blocks(table)
    wide, high = CELL * len(blocks) + 1.6, CELL * len(roles) * 0.9
    figure = Figure(figsize=(max(2 * wide, 9.4), 2 * high * 0.5 + high * 0.5 + 4.4), layout="constrained")
    figure.suptitle(
        f"Which operators of {model} gain from per-channel scales, {bits.upper()}",
        x=0.01, ha="left", fontsize=10.5,
    )  # fmt: skip
    panels = figure.subplot_mosaic([["gain", "range"], ["search", "search"]], height_ratios=(high + 1.2, 2.9))
    _gain(panels["gain"], table, roles, blocks)
    _range(panels["range"], table, roles, blocks)
    panels["range"].tick_params(labelleft=False)
    _search(panels["search"], search, share)
    return figure


def _in_graph_order(table: pd.DataFrame) -> list[str]:
    known = [
        "norm1",
        "qkv",
        "q",
        "k",
        "v",
        "qk",
        "kv",
        "proj",
        "residual1",
        "norm2",
        "fc1",
        "fc2",
        "residual2",
        "norm",
    ]
    found = list(dict.fromkeys(table["role"]))
    return sorted(found, key=lambda role: known.index(role) if role in known else len(known))


def _blocks(table: pd.DataFrame) -> list[str]:
    inside = sorted(int(block) for block in table["block"].dropna().unique())
    return [*map(str, inside), *([OUTSIDE] if table["block"].isna().any() else [])]


def _cells(table: pd.DataFrame, column: str, roles: Sequence[str], blocks: Sequence[str]) -> np.ndarray:
    """[roles, blocks]; NaN where there is no such site."""
    found = np.full((len(roles), len(blocks)), np.nan)
    for row in table.itertuples():
        block = OUTSIDE if pd.isna(row.block) else str(int(row.block))
        found[roles.index(row.role), blocks.index(block)] = getattr(row, column)
    return found


def _gain(axes: Axes, table: pd.DataFrame, roles: Sequence[str], blocks: Sequence[str]) -> None:
    values = _cells(table, "gain", roles, blocks)
    most = float(np.nanmax(np.abs(values))) or 1.0
    scale = SymLogNorm(linthresh=most / 100, vmin=-most, vmax=most)
    _heat(axes, values, scale, "PuOr_r", roles, blocks)
    bar = axes.figure.colorbar(axes.images[0], ax=axes, location="bottom", shrink=0.9, aspect=40)
    bar.set_label(
        "output NSR per tensor less that per channel,\nonly the site itself quantized (above 0: a gain)"
    )
    bar.ax.minorticks_off()
    ticks = [most / 10**power for power in (0, 1, 2)]
    bar.set_ticks([*(-tick for tick in ticks), 0, *reversed(ticks)])
    bar.ax.set_xticklabels([f"{tick:.1e}".replace("e-0", "e-") if tick else "0" for tick in bar.get_ticks()])
    axes.set_title("Gain (numbers: rank; \N{MINUS SIGN}: loss; frames: chosen for auto)")
    for row in table[table["rank"] <= NUMBERED].itertuples():
        x, y = _place(row, roles, blocks)
        axes.text(x, y, str(row.rank), ha="center", va="center", fontsize=7.5, color=_on(row.gain, most))
    for row in table[table["gain"] < 0].itertuples():
        x, y = _place(row, roles, blocks)
        axes.text(x, y, "\N{MINUS SIGN}", ha="center", va="center", fontsize=8, color=_on(row.gain, most))
    _frames(axes, table, roles, blocks)


def _on(gain: float, most: float) -> str:
    """A colour that reads on that of a cell."""
    return "white" if abs(gain) > most / 4 else "black"


def _range(axes: Axes, table: pd.DataFrame, roles: Sequence[str], blocks: Sequence[str]) -> None:
    values = _cells(table, "range_largest", roles, blocks)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if not low > 0:
        raise UserError("the ranking's ranges must be above 0")
    _heat(axes, values, LogNorm(low, max(high, low * 1.01)), "viridis", roles, blocks)
    bar = axes.figure.colorbar(axes.images[0], ax=axes, location="bottom", shrink=0.9, aspect=40)
    bar.set_label("largest range of a channel of the input,\nin the activation's own unit")
    bar.ax.minorticks_off()
    bar.set_ticks(np.geomspace(low, high, 5).tolist())
    bar.ax.set_xticklabels([f"{tick:.2g}" for tick in bar.get_ticks()])
    axes.set_title("Largest channel range, FP32")
    _frames(axes, table, roles, blocks)


def _heat(
    axes: Axes,
    values: np.ndarray,
    scale: Normalize,
    colormap: str,
    roles: Sequence[str],
    blocks: Sequence[str],
) -> None:
    axes.set_facecolor("#EEEEEE")
    axes.imshow(values, cmap=colormap, norm=scale, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(blocks)), blocks)
    axes.set_yticks(range(len(roles)), roles)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"block ({OUTSIDE}: outside the blocks)" if OUTSIDE in blocks else "block")


def _place(row: object, roles: Sequence[str], blocks: Sequence[str]) -> tuple[int, int]:
    block = OUTSIDE if pd.isna(row.block) else str(int(row.block))  # type: ignore[attr-defined]
    return blocks.index(block), roles.index(row.role)  # type: ignore[attr-defined]


def _frames(axes: Axes, table: pd.DataFrame, roles: Sequence[str], blocks: Sequence[str]) -> None:
    for row in table[table["chosen"].astype(bool)].itertuples():
        x, y = _place(row, roles, blocks)
        frame = Rectangle((x - 0.42, y - 0.42), 0.84, 0.84, fill=False, edgecolor="black", linewidth=1.3)
        axes.add_patch(frame)


def _search(axes: Axes, search: pd.DataFrame, share: float) -> None:
    """Error by number of sites: beginnings of the ranking, and what leaving one out makes of them."""
    prefix = ~search["tried"].str.startswith("without")
    for rows, number, name in (
        (search[prefix], 0, "the best of the ranking"),
        (search[~prefix], 1, "with one left out"),
    ):
        look = series(number)
        axes.plot(
            rows["sites"], rows["error"], look.marker, color=look.colour, markersize=5 - number,
            fillstyle="full" if number == 0 else "none", linestyle="none", label=name,
        )  # fmt: skip
    worst, best = (float(search["error"].iloc[number]) for number in (0, 1))
    wanted = worst - share * (worst - best)
    axes.axhline(wanted, color=GREY, linewidth=0.9, linestyle="--")
    axes.text(
        float(search["sites"].max()),
        wanted,
        f"{100 * share:g} % removed ",
        ha="right",
        va="bottom",
        fontsize=8,
    )
    kept = search[search["share"] >= share]
    if not kept.empty:
        last = kept[kept["sites"] == kept["sites"].min()].iloc[-1]
        axes.plot(last["sites"], last["error"], "*", color="black", markersize=11, label="chosen")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sites per channel, all others per tensor")
    axes.set_ylabel("output error, 1 − cosine\n(lower is better)")
    axes.grid(axis="y")
    axes.legend(loc="upper right", ncols=3)
