"""Write the share of the library's lines that the last measured tests ran (`make coverage`)."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from coverage import Coverage

FIGURE = Path(__file__).parents[1] / "docs" / "coverage.json"

if __name__ == "__main__":
    measured = Coverage()
    measured.load()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        measured.json_report(outfile=str(report))
        totals = json.loads(report.read_text())["totals"]
    figure = {"lines": totals["num_statements"], "percent": round(totals["percent_covered"], 1)}
    FIGURE.write_text(json.dumps(figure) + "\n", encoding="utf-8")
    print(f"{FIGURE.name}: {figure['percent']} % of {figure['lines']} lines")
