"""Draw the error of every operator along the network, one series a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ptq2themoon.plots.arguments import add_figure
from ptq2themoon.plots.errors_along_network import errors_along_network
from ptq2themoon.plots.network import COLUMNS, MODES
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_frames import named_paths, read_table
from ptq2themoon.vocabulary.errors import UserError, nearest


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--table",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="operators.csv of a recipe; repeat",
    )
    parser.add_argument(
        "--mode-images",
        action="append",
        default=[],
        metavar="MODE=N",
        help="images behind a mode's numbers, named in its title; repeat",
    )
    parser.add_argument("--worst", type=int, default=3, help="operators named, a recipe and mode")
    add_figure(parser)
    return parser.parse_args()


def mode_images(values: Sequence[str]) -> dict[str, int]:
    """`["local=64", …]` -> `{"local": 64, …}`."""
    found = {}
    for value in values:
        mode, _, count = value.partition("=")
        if mode not in MODES:
            raise UserError(f"--mode-images {value}: unknown mode {mode!r}; {nearest(mode, MODES)}")
        if not count.isdecimal() or int(count) < 1:
            raise UserError(f"--mode-images {value}: must read MODE=N, as in --mode-images local=64")
        found[mode] = int(count)
    return found


def main() -> None:
    args = arguments()
    check_dpi(args.dpi)
    if args.worst < 0:
        raise UserError(f"--worst {args.worst}: must be 0 or more")
    paths, images = named_paths(args.table, "--table"), mode_images(args.mode_images)
    parameters = {"recipes": list(paths), "mode_images": images, "worst": args.worst, "dpi": args.dpi}
    outputs = [args.out_png, args.out_svg]
    with Stage("plot_errors", inputs=list(paths.values()), outputs=outputs, parameters=parameters) as stage:
        tables = {name: read_table(path, COLUMNS) for name, path in paths.items()}
        figure = errors_along_network(tables, images, args.worst)
        save(figure, stage, args.out_png, args.out_svg, args.dpi)


if __name__ == "__main__":
    run(main)
