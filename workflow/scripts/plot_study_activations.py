"""Draw the ranges of the layers' inputs by channel: of one block closely, and of all blocks."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.plots.activations import (
    CHANNEL_COLUMNS,
    LARGEST_COLUMNS,
    activations,
    activations_block,
    of_block,
)
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_frames import read_table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=Path, required=True, help="activations.csv")
    parser.add_argument("--largest", type=Path, required=True, help="activations_largest.csv")
    parser.add_argument("--block", type=int, required=True, help="drawn closely; from the end when negative")
    parser.add_argument("--dpi", type=int, default=150)
    parser.add_argument("--out-png", type=Path, required=True)
    parser.add_argument("--out-svg", type=Path, required=True)
    parser.add_argument("--out-block", type=Path, required=True, help="CSV of that block")
    parser.add_argument("--out-block-png", type=Path, required=True)
    parser.add_argument("--out-block-svg", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_dpi(args.dpi)
    with Stage(
        "plot_study_activations",
        inputs=[args.channels, args.largest],
        outputs=[args.out_png, args.out_svg, args.out_block, args.out_block_png, args.out_block_svg],
        parameters={"block": args.block, "dpi": args.dpi},
    ) as stage:
        channels = read_table(args.channels, CHANNEL_COLUMNS)
        largest = read_table(args.largest, LARGEST_COLUMNS)
        rows = of_block(channels, args.block)
        rows.to_csv(stage.temporary(args.out_block), index=False, float_format="%.5g")
        save(activations_block(rows, largest), stage, args.out_block_png, args.out_block_svg, args.dpi)
        save(activations(channels, largest), stage, args.out_png, args.out_svg, args.dpi)


if __name__ == "__main__":
    run(main)
