"""The commands of `ptq2themoon`; all that they do can be done with `snakemake` too."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ptq2themoon.console.parameter_file import Wish, parameters, text
from ptq2themoon.console.snakemake_run import ROOT, command, prepare, run, tool
from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.errors import UserError, lines_of, printable
from ptq2themoon.vocabulary.layout import Run
from ptq2themoon.vocabulary.onnx_data import written_data
from ptq2themoon.vocabulary.parameters import load_params

CONTEXT = {"help_option_names": ["-h", "--help"]}


class Commands(click.Group):
    """What the user can mend becomes one line on stderr, and status 2."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(context)
        except (UserError, OSError) as error:
            click.echo("\n".join(lines_of(error)), err=True)
            context.exit(2)


class Numbers(click.ParamType):
    """Numbers with commas between them, as in 0.5,0.5,0.5."""

    name = "NUMBERS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """The numbers; click's own error where a part is none."""
        try:
            return value if isinstance(value, tuple) else tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r}: give numbers with commas between them, as in 0.5,0.5,0.5", param, ctx)


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(package_name="ptq2themoon")
def main() -> None:
    """Post-training quantization of Vision Transformers."""


def _wish(function: Any) -> Any:
    """The options that say what to quantize."""
    path = click.Path(path_type=Path)
    options = [
        click.argument("model"),
        click.option("--images", type=path, required=True, help="Folder, or CSV of path and label."),
        click.option("--test", type=path, help="Images to measure on; without it, those of --images."),
        click.option("--checkpoint", type=path, help="Your own weights of a timm model."),
        click.option("--classes", type=int, help="Classes of those weights."),
        click.option("--mean", type=Numbers(), default=(), help="Of the channels, for pixels in 0..1."),
        click.option("--std", type=Numbers(), default=(), help="Of the channels, for pixels in 0..1."),
        click.option("--features", is_flag=True, help="The model gives features, not logits."),
        click.option("--recipe", "recipes", multiple=True, default=["ship"], show_default=True),
        click.option("--bits", multiple=True, default=["w8a8"], show_default=True),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@main.command(context_settings=CONTEXT)
@_wish
@click.option("-o", "--out", type=click.Path(path_type=Path), default="params.yaml", show_default=True)
def init(out: Path, **given: Any) -> None:
    """Write a commented parameter file for MODEL and its images."""
    if out.exists():
        raise UserError(f"{out}: is there already; give another name with -o")
    out.write_text(
        text(parameters(Wish(**given), ROOT / layout.RECIPES), "ptq2themoon init"), encoding="utf-8"
    )
    click.echo(f"{out} is written; next: snakemake --configfile {out}")


@main.command(context_settings=CONTEXT)
@_wish
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where the INT8 model is copied to.")
@click.option(
    "--pixels", is_flag=True, help="The INT8 model takes pixels: uint8 [images, height, width, channels]."
)
@click.option("--work", type=click.Path(path_type=Path), help="Folder of all results.")
@click.option("--cores", type=int, default=os.cpu_count() or 1, show_default=True)
def quantize(out: Path | None, pixels: bool, work: Path | None, cores: int, **given: Any) -> None:
    """Make an INT8 model of MODEL: an ONNX file, a timm name, or a folder with timm's config.json."""
    wish = Wish(**given)
    found = parameters(wish, ROOT / layout.RECIPES)
    folder, out = work or Path(f"ptq2themoon-{wish.name}"), out or Path(f"{wish.name}.int8.onnx")
    prepare(folder, text(found, "ptq2themoon quantize"))
    params = load_params(folder / "params.yaml", folder / layout.RECIPES)
    runs = layout.runs_of(params, wish.name)
    targets = [layout.fill(layout.RUNTIME, each) for each in runs]
    words = ["--cores", str(cores), *targets]
    run(folder, words)
    _show(folder, runs, cores)
    shipped = runs[0].as_mode(layout.SHIPPED)
    int8 = folder / layout.fill(layout.INT8, shipped)
    ships = ship(int8, out, pixels=pixels)
    if wish.test is None:
        click.echo("Measured on the images that calibrated; give others with --test to be sure.")
    click.echo(f"All results: {folder}; the same again: {shlex.join(command(folder, words))}")
    click.echo(f"To ship: {ships} ({shipped.recipe}, {shipped.bits}{', takes pixels' if pixels else ''})")


def ship(int8: Path, out: Path, *, pixels: bool) -> str:
    """Copy the model, or write it with its normalisation in the graph; the files to ship."""
    from ptq2themoon.deploy.pixel_input import with_pixels
    from ptq2themoon.graph.editing.model_files import copy_model, write_model
    from ptq2themoon.graph.sources.onnx_files import read_graph

    if pixels:
        write_model(with_pixels(read_graph(int8), str(int8)), out)
    else:
        copy_model(int8, out)
    return " with ".join(map(str, (out, *written_data(out))))


def _show(folder: Path, runs: list[Run], threads: int) -> None:
    """Print the table of what came out."""
    from ptq2themoon.console.outcome import outcome  # loads ONNX Runtime

    results = [outcome(folder, each, threads) for each in runs]
    first, runtimes = results[0], list(results[0].times)
    table = Table(title="One image at a time; against floating point", title_justify="left")
    table.add_column("model")
    for name in (
        "top-1\n(%)",
        "agreement\n(%)",
        "SQNR\n(dB)",
        "size\n(MB)",
        *(f"{r}\n(ms)" for r in runtimes),
    ):
        table.add_column(name, justify="right")
    plain = [f"{first.times[runtime][0]:.2f}" for runtime in runtimes]
    table.add_row("fp32", _number(first.plain_top1), "", "", f"{first.megabytes[0]:.1f}", *plain)
    for result in results:
        metrics = result.metrics
        figures = [_number(x) for x in (metrics.top1, metrics.agreement, metrics.logits_sqnr_db)]
        times = [
            f"{int8:.2f} ({faster:.2f} x)"
            for _, int8, faster in (result.times[runtime] for runtime in runtimes)
        ]
        table.add_row(
            f"{result.run.recipe} {result.run.bits}", *figures, f"{result.megabytes[1]:.1f}", *times
        )
    Console().print(table)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


@main.command(context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), default=".")
def verify(folder: Path) -> None:
    """Check that the results in FOLDER are what its params.yaml says, to the byte."""
    raise SystemExit(tool("verify", folder))


@main.command(context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), default=".")
@click.option("-o", "--out", default="report.html", show_default=True, help="Page to write, in FOLDER.")
def report(folder: Path, out: str) -> None:
    """Write one page with the figures and tables of FOLDER; it opens without a network."""
    load_params(folder / "params.yaml", folder / layout.RECIPES)
    run(folder, ["--report", out])
    click.echo(f"{folder / out} is written")


@main.command(context_settings=CONTEXT)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--csv", type=click.Path(path_type=Path), help="File for every figure that changed.")
def compare(first: str, second: str, csv: Path | None) -> None:
    """Say what differs between the results of A and B, and whether that is more than noise.

    A and B are folders in which `snakemake` ran, folders of results, or git revisions. Status 0: no
    difference beyond noise; 1: there is one, and it is named.
    """
    from ptq2themoon.console.comparison.page import COLUMNS, all_figures, differing, lines  # loads torch
    from ptq2themoon.console.comparison.trees import opened
    from ptq2themoon.console.comparison.whole import compared
    from ptq2themoon.tables.csv_rows import write_csv

    with opened(first) as one, opened(second) as other:
        found = compared(one, other)
    if csv:
        write_csv(csv, COLUMNS, all_figures(found))
    if found.beyond:
        Console().print(differing(found))
    for line in lines(found):
        click.echo(printable(line))
    raise SystemExit(int(found.differs))


@main.command(context_settings=CONTEXT)
def doctor() -> None:
    """Say what this machine has: Python, disk, memory, processor, GPU, and whether models can be fetched."""
    from ptq2themoon.console.machine_check import findings

    table = Table(show_header=False, box=None)
    for name, value in findings():
        table.add_row(name, value)
    Console().print(table)
