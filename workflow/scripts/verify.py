"""Check that results/ is what params.yaml and the recipes say, to the byte.

Exit status 2 and a line for each problem otherwise. Results that params.yaml does not name are ignored.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ptq2themoon.provenance.results import expected_results
from ptq2themoon.provenance.study import study_results
from ptq2themoon.provenance.verification import Verifier
from ptq2themoon.stage import run
from ptq2themoon.vocabulary.parameters import load_params

SCHEMA = Path(__file__).resolve().parents[1] / "schemas" / "sidecar.schema.json"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--recipes-dir", type=Path, default=Path("recipes"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--study", action="store_true", help="check the results of `snakemake study` too")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    params = load_params(args.params, args.recipes_dir)
    results = expected_results(params, args.recipes_dir, args.results)
    if args.study:
        results += study_results(params, args.results)
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    problems = list(Verifier(schema, args.results / "models").problems(results))
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        raise SystemExit(2)
    print(f"{len(results)} results verified")


if __name__ == "__main__":
    run(main)
