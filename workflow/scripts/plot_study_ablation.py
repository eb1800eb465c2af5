"""Draw one table of the ablation beside the study's published figures."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.plots.ablation import ABLATION_COLUMNS, ablation
from ptq2themoon.plots.arguments import add_figure
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run
from ptq2themoon.study.names import READ_AS, VARIANTS
from ptq2themoon.tables.csv_frames import read_table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="what the table or figure calls the model")
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--table", type=Path, required=True, help="of study_table")
    add_figure(parser)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_dpi(args.dpi)
    with Stage(
        "plot_study_ablation",
        inputs=[args.table],
        outputs=[args.out_png, args.out_svg],
        parameters={"model": args.name, "variant": args.variant, "dpi": args.dpi},
    ) as stage:
        table = read_table(args.table, ABLATION_COLUMNS)
        title = f"What {args.name} needs per channel\n{READ_AS[args.variant]}"
        figure = ablation(table, title)
        save(figure, stage, args.out_png, args.out_svg, args.dpi)


if __name__ == "__main__":
    run(main)
