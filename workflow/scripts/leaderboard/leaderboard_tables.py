"""Stage leaderboard_tables: all rows in one table, differences judged, for programs and for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ptq2themoon.evaluate.row_record import Row
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.tables.leaderboard_page import page
from ptq2themoon.tables.leaderboard_rows import COSTS, KERNELS, Entry, leaderboard
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.records import read
from ptq2themoon.vocabulary.stages.leaderboard import LeaderboardTables


def main(job: LeaderboardTables) -> None:
    recipes = list(dict.fromkeys(entry[:2] for entry in job.entry))
    if not len(recipes) == len(job.kernels) == len(job.costs):
        raise UserError("--kernels and --costs: give one of each for every model and recipe of --entry")
    with Stage.of(job) as stage:
        entries = [Entry(*key, read(path, Row)) for *key, path in job.entry]
        kernels = gathered(recipes, job.kernels, ["bits", *KERNELS])
        costs = gathered(recipes, job.costs, COSTS[2:])
        table = leaderboard(entries, kernels, job.bases)
        table.to_csv(stage.temporary(job.out), index=False, float_format="%.8g")
        costs[COSTS].to_csv(stage.temporary(job.out_costs), index=False, float_format="%.8g")
        stage.temporary(job.out_md).write_text(page(table, costs), encoding="utf-8")


def gathered(
    recipes: Sequence[tuple[str, str]], paths: Sequence[Path], columns: Sequence[str]
) -> pd.DataFrame:
    """The tables of all models and recipes in one."""
    frames = [
        read_table(path, columns).assign(model=model, recipe=recipe)
        for (model, recipe), path in zip(recipes, paths, strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


if __name__ == "__main__":
    run_job(main, LeaderboardTables)
