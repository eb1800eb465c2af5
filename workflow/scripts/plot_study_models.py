"""Draw every model's full precision and compared quantizers."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.plots.arguments import add_figure
from ptq2themoon.plots.models import MODELS_COLUMNS, models
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_frames import read_table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, required=True, help="models.csv")
    add_figure(parser)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_dpi(args.dpi)
    outputs = [args.out_png, args.out_svg]
    with Stage(
        "plot_study_models", inputs=[args.table], outputs=outputs, parameters={"dpi": args.dpi}
    ) as stage:
        figure = models(read_table(args.table, MODELS_COLUMNS))
        save(figure, stage, args.out_png, args.out_svg, args.dpi)


if __name__ == "__main__":
    run(main)
