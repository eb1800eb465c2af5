"""Copy the small part of results/ to results/example/, which git keeps: `make example`, after the verifier.

A run writes results/ alone, so the committed example stays as it is until then. Numbers are rounded,
and sidecars lose the seconds that a stage took: other seconds are no other result.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from ptq2themoon.vocabulary.layout import EXAMPLE, OF_ALL_MODELS, RESULTS, in_example
from ptq2themoon.vocabulary.parameters import load_params

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
DIGITS = 6  # that count
NEAR_ONE = 0.9  # from here on what counts is the distance from 1: decimals are kept
DECIMALS = 8


def rounded(value: float) -> float:
    """A number with the digits that the example keeps."""
    return round(value, DECIMALS) if NEAR_ONE < abs(value) < 1 else float(f"{value:.{DIGITS}g}")


def shorter(cell: str) -> str:
    """A cell of a table; only a number with more digits than the example keeps changes."""
    if not re.fullmatch(r"-?\d*\.\d+(?:e[+-]?\d+)?", cell):
        return cell
    short = f"{rounded(float(cell)):.{DECIMALS + 1}g}"
    return short if len(short) < len(cell) else cell


def rounded_in(content: Any) -> Any:
    """What a JSON file holds, with rounded numbers."""
    if isinstance(content, dict):
        return {name: rounded_in(value) for name, value in content.items()}
    if isinstance(content, list):
        return [rounded_in(value) for value in content]
    return rounded(content) if isinstance(content, float) else content


def example_of(path: Path, name: Path) -> bytes:
    """The content that the example has for a file of the results; `name` is relative to them."""
    if path.suffix == ".md":  # links that leave the results have one folder more to climb
        leaves = "](" + "../" * len(name.parts)
        return path.read_text(encoding="utf-8").replace(leaves, f"{leaves}../").encode()
    if path.suffix == ".csv":
        out = io.StringIO()
        rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
        csv.writer(out, lineterminator="\n").writerows([shorter(cell) for cell in row] for row in rows)
        return out.getvalue().encode()
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name.endswith(".sidecar.json"):
            content.pop("wall_time_s", None)
        else:
            content = rounded_in(content)
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    return path.read_bytes()


def write_example(results: Path, out: Path, models: list[str]) -> int:
    """Replace each model's folder of `out`, and single files elsewhere; returns how many files.

    Args:
        models: whose results count, besides those of all models together.
    """
    kept = [results, *(results / name for name in (*models, *OF_ALL_MODELS))]
    places = {results: [*results.iterdir()], **{place: [*place.rglob("*")] for place in kept[1:]}}
    files = sorted({path for found in places.values() for path in found if path.is_file()})
    chosen = [path.relative_to(results) for path in files]
    chosen = [name for name in chosen if in_example(name.as_posix())]
    for folder in {name.parent for name in chosen if name.parts[0] in models}:
        for old in (out / folder).glob("*"):
            if old.is_file():
                old.unlink()
    for name in chosen:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(example_of(results / name, name))
    return len(chosen)


def main() -> None:
    """Write results/example/, and its summary into the page of results."""
    models = list(load_params(ROOT / "params.yaml").models)
    count = write_example(ROOT / RESULTS, ROOT / EXAMPLE, models)
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition("<!-- summary -->\n")
    end = rest.partition("<!-- end -->")
    if not mark or not end[1]:
        sys.exit(f"error: {PAGE}: no place for the summary, between <!-- summary --> and <!-- end -->")
    summary = (ROOT / EXAMPLE / "summary.md").read_text(encoding="utf-8")
    PAGE.write_text(f"{before}{mark}\n{summary}\n{end[1]}{end[2]}", encoding="utf-8")
    print(f"{count} files in {EXAMPLE}/")


if __name__ == "__main__":
    main()
