"""Check that results/ is what params.yaml and the recipes say, to the byte.

Exit status 2 and a line for each problem otherwise. Results that params.yaml does not name are ignored.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import tyro

from ptq2themoon.provenance.expected import (
    expected_data_free,
    expected_leaderboard,
    expected_learning_curve,
    expected_results,
    expected_study,
)
from ptq2themoon.provenance.verification import Verifier
from ptq2themoon.stage import run
from ptq2themoon.vocabulary.errors import printable
from ptq2themoon.vocabulary.layout import RESULTS
from ptq2themoon.vocabulary.parameters import load_params

SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "sidecar.schema.json"


def verify(
    params: Path = Path("params.yaml"),
    study: bool = False,
    leaderboard: bool = False,
    data_free: bool = False,
    learning_curve: bool = False,
    current: bool = False,
) -> None:
    """Check that results/ is what the parameters and the recipes say, to the byte.

    Args:
        params: the parameter file.
        study: check the results of `snakemake study` too.
        leaderboard: check those of `snakemake leaderboard` too.
        data_free: check those of `snakemake data_free` too.
        learning_curve: check those of `snakemake learning_curve` too.
        current: give all files of results/ one time, now, if nothing is wrong. What `dvc pull` fetched is as
            old as its download, file by file, and Snakemake would make again what came before its inputs.
    """
    asked = load_params(params)
    results = expected_results(asked)
    results += expected_study(asked) if study else []
    results += expected_leaderboard(asked) if leaderboard else []
    results += expected_data_free(asked) if data_free else []
    results += expected_learning_curve(asked) if learning_curve else []
    once = {result.outputs[0]: result for result in results}.values()
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    problems = list(Verifier(schema, Path(RESULTS, "models")).problems(once))
    if problems:
        print(*map(printable, problems), sep="\n", file=sys.stderr)
        raise SystemExit(2)
    print(f"{len(once)} results verified")
    if current:
        now = time.time()
        for path in filter(Path.is_file, Path(RESULTS).rglob("*")):
            os.utime(path, (now, now))


if __name__ == "__main__":
    run(lambda: tyro.cli(verify))
