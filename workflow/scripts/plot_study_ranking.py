"""Draw which places gain from a scale a channel, and how the recipe auto was found."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.plots.arguments import add_figure
from ptq2themoon.plots.ranking import RANKING_COLUMNS, SEARCH_COLUMNS, ranking
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run
from ptq2themoon.study.bits_record import NarrowBits
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.records import read


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="what the table or figure calls the model")
    parser.add_argument("--ranking", type=Path, required=True, help="of study_auto")
    parser.add_argument("--search", type=Path, required=True, help="of study_auto")
    parser.add_argument("--bits-from", type=Path, required=True, help="bits.json of study_bits")
    parser.add_argument("--share", type=float, required=True, help="as study_auto was asked for")
    add_figure(parser)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_dpi(args.dpi)
    with Stage(
        "plot_study_ranking",
        inputs=[args.ranking, args.search, args.bits_from],
        outputs=[args.out_png, args.out_svg],
        parameters={"model": args.name, "share": args.share, "dpi": args.dpi},
    ) as stage:
        table = read_table(args.ranking, RANKING_COLUMNS)
        search = read_table(args.search, SEARCH_COLUMNS)
        figure = ranking(table, search, args.name, read(args.bits_from, NarrowBits).narrow, args.share)
        save(figure, stage, args.out_png, args.out_svg, args.dpi)


if __name__ == "__main__":
    run(main)
