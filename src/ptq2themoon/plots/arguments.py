"""The arguments that scripts which draw have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.plots.heatmap import check_colormap
from ptq2themoon.plots.style import check_dpi
from ptq2themoon.vocabulary.errors import at_least


def add_figure(parser: argparse.ArgumentParser) -> None:
    """The resolution and the two files of a figure."""
    parser.add_argument("--dpi", type=int, default=150)
    parser.add_argument("--out-png", type=Path, required=True)
    parser.add_argument("--out-svg", type=Path, required=True)


def add_maps(parser: argparse.ArgumentParser, file: str) -> None:
    """The maps, how many images and how they look; `file` is what the stage before writes."""
    parser.add_argument(
        "--maps",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help=f"{file} of one graph; repeat, the reference (fp32) first",
    )
    parser.add_argument("--label-names", type=Path, help="JSON list of class names, or a model.json")
    parser.add_argument("--rows", type=int, default=4, help="images below each other, at most")
    parser.add_argument("--colormap", default="viridis", help="any colormap of matplotlib")
    parser.add_argument("--dpi", type=int, default=150)


def check_maps(args: argparse.Namespace) -> None:
    """Refuse values before anything is read."""
    check_dpi(args.dpi)
    check_colormap(args.colormap)
    at_least(1, args.rows, "--rows")
