"""Draw top-1 of full precision and of each recipe of one model; without top-1, the error of its output."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.plots.arguments import add_figure
from ptq2themoon.plots.output_error import output_error
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.plots.summary_rows import COLUMNS
from ptq2themoon.plots.top1 import has_accuracy, top1
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_frames import read_table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--summary", type=Path, required=True, help="summary.csv")
    parser.add_argument("--model", required=True, help="the model whose rows are drawn")
    add_figure(parser)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_dpi(args.dpi)
    parameters = {"model": args.model, "dpi": args.dpi}
    outputs = [args.out_png, args.out_svg]
    with Stage("plot_top1", inputs=[args.summary], outputs=outputs, parameters=parameters) as stage:
        table = read_table(args.summary, COLUMNS)
        draw = top1 if has_accuracy(table, args.model) else output_error
        figure = draw(table, args.model)
        save(figure, stage, args.out_png, args.out_svg, args.dpi)


if __name__ == "__main__":
    run(main)
