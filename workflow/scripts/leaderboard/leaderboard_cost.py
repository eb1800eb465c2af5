"""Stage leaderboard_cost: seconds and peak memory of each calibration, as Snakemake measured them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.stages.leaderboard import LeaderboardCost

COLUMNS = ("bits", "seed", "seconds", "memory_mb")
NOT_SEEN = "NA"  # of a job that ended before Snakemake looked


def main(job: LeaderboardCost) -> None:
    runs = [(bits, seed) for bits in job.bits for seed in job.seeds]
    if not len(runs) == len(job.qparams) == len(job.times):
        raise UserError("--qparams and --times: give one of each for every bits and seed")
    with Stage.of(job) as stage:
        rows = []
        for (bits, seed), qparams, times in zip(runs, job.qparams, job.times, strict=True):
            check(qparams, bits)
            rows.append({"bits": bits, "seed": seed, **measured(times, qparams)})
        write_csv(stage.temporary(job.out), COLUMNS, rows)


def check(qparams: Path, bits: str) -> None:
    """Refuse what is not a calibration at these bits."""
    try:
        found = json.loads(qparams.read_text(encoding="utf-8"))["bits"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{qparams}: not quantization parameters ({error}); calibrate again") from None
    if found != bits:
        raise UserError(f"{qparams}: parameters of {found}, not of {bits}; calibrate again")


def measured(times: Path, qparams: Path) -> dict[str, float | None]:
    """Seconds and megabytes of the last time that the calibration ran."""
    try:
        with open(times, encoding="utf-8", newline="") as file:
            row = list(csv.DictReader(file, delimiter="\t"))[-1]
        memory = None if row["max_rss"] == NOT_SEEN else round(float(row["max_rss"]), 1)
        return {"seconds": round(float(row["s"]), 2), "memory_mb": memory}
    except (OSError, ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
        raise UserError(
            f"{times}: holds no times of a calibration ({error}); run `snakemake --forcerun {qparams}`"
        ) from None


if __name__ == "__main__":
    run_job(main, LeaderboardCost)
