"""Draw time an image with and without fusion, and the operators of each type."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.plots.arguments import add_figure
from ptq2themoon.plots.fusion import COLUMNS, OPERATOR_COLUMNS, fusion
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_frames import read_table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, required=True, help="fusion.csv")
    parser.add_argument("--operators", type=Path, required=True, help="fusion_operators.csv")
    add_figure(parser)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_dpi(args.dpi)
    inputs, outputs = [args.table, args.operators], [args.out_png, args.out_svg]
    with Stage("plot_study_fusion", inputs=inputs, outputs=outputs, parameters={"dpi": args.dpi}) as stage:
        times, operators = read_table(args.table, COLUMNS), read_table(args.operators, OPERATOR_COLUMNS)
        save(fusion(times, operators), stage, args.out_png, args.out_svg, args.dpi)


if __name__ == "__main__":
    run(main)
