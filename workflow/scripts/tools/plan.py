"""Say what a run will take: jobs, core hours, memory and storage, by the costs of measured stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import tyro

from ptq2themoon.provenance.expected import Call, jobs_of
from ptq2themoon.provenance.forecast import as_markdown, forecast
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary.cost_model import cost_of
from ptq2themoon.vocabulary.errors import UserError, at_least
from ptq2themoon.vocabulary.layout import fill
from ptq2themoon.vocabulary.parameters import Params, load_params
from ptq2themoon.vocabulary.times import times_of

COLUMNS = ("stage", "jobs", "planned_s", "measured_s", "planned_mb", "measured_mb")


def plan(
    params: Path = Path("params.yaml"),
    study: bool = False,
    leaderboard: bool = False,
    cores: int = 1,
    against: Path | None = None,
    out: Path | None = None,
) -> None:
    """Print a table of what a run from scratch will take.

    Args:
        params: the parameter file; its models and images need not be there yet.
        study: with `snakemake study`.
        leaderboard: with `snakemake leaderboard`.
        cores: that share the work.
        against: folder of a finished run of these parameters, to hold the plan against.
        out: CSV of that: seconds of all jobs of a stage and memory of the largest, planned and measured.
    """
    at_least(1, cores, "--cores")
    asked = load_params(params)
    calls = jobs_of(asked, study, leaderboard)
    lines = forecast(asked, calls)
    print(*as_markdown(lines), sep="\n")
    hours = max(lines[-1].hours / cores, lines[-1].longest)
    print(f"\nOn {cores} cores like those measured: {hours:,.2f} hours or more.")
    if against is not None:
        rows = compared(asked, calls, against)
        print(*(",".join(map(str, row)) for row in (COLUMNS, *rows)), sep="\n")
        if out is not None:
            with Stage("plan", inputs=[params], outputs=[out], parameters={}) as stage:
                write_csv(stage.temporary(out), COLUMNS, (dict(zip(COLUMNS, r, strict=True)) for r in rows))


def compared(
    params: Params, calls: Sequence[Call], folder: Path
) -> list[tuple[str, int, int, int, int, int]]:
    """A row per stage, and one for all, of the jobs that were measured."""
    found: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
    for kind, wildcards in calls:
        file = folder / fill(times_of(kind), wildcards)
        if file.is_file():
            row, cost = pd.read_csv(file, sep="\t").iloc[-1], cost_of(kind, params, wildcards)
            found[kind.stage].append((cost.seconds, float(row["s"]), cost.mb, float(row["max_rss"])))
    if not found:
        raise UserError(f"{folder}: holds no benchmarks of these jobs")
    found["all"] = [job for jobs in list(found.values()) for job in jobs]
    return [_row(stage, jobs) for stage, jobs in found.items()]


def _row(stage: str, jobs: Sequence[tuple[float, ...]]) -> tuple[str, int, int, int, int, int]:
    planned, measured, expected_mb, seen_mb = zip(*jobs, strict=True)
    seconds = (round(sum(values)) for values in (planned, measured))
    memory = (round(max(values)) for values in (expected_mb, seen_mb))
    return stage, len(jobs), next(seconds), next(seconds), next(memory), next(memory)


if __name__ == "__main__":
    run(lambda: tyro.cli(plan))
