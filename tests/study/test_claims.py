"""docs/study.md: no claim without its row. Every number of its findings is one of a table, and still is."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import committed
import pytest

PAGE = committed.text("docs/study.md")
ROW = re.compile(r"^(\S+\.(?:csv|json))\[(.*)\]\.(\w+) = (\S+)$")
FENCE = re.compile(r"^```text rows\n(.*?)^```$", re.M | re.S)


class Claim(NamedTuple):
    """`errors.csv[fc2, 5, patch, per tensor].mse = 1.2e-4`: the row that holds all these values, a column.

    Where a value stands in other columns too, `column=value` names its own.
    """

    file: str
    keys: tuple[str, ...]
    column: str
    value: str


def sections() -> dict[str, str]:
    """Text of each section that ends with its rows, by heading."""
    parts = [part.partition("\n") for part in re.split(r"^## ", PAGE, flags=re.M)[1:]]
    return {head: text for head, _, text in parts if FENCE.search(text)}


def claims(text: str) -> list[Claim]:
    found = []
    for line in "".join(FENCE.findall(text)).splitlines():
        match = ROW.match(line)
        assert match, f"{line!r}: FILE[VALUE, …].COLUMN = NUMBER expected"
        keys = tuple(key.strip() for key in match[2].split(",") if key.strip())
        found.append(Claim(match[1], keys, match[3], match[4]))
    return found


CLAIMS = [claim for text in sections().values() for claim in claims(text)]


def place(file: str) -> str:
    """In the demo's study unless the name says otherwise."""
    return file if "/" in file else f"results/example/demo/study/{file}"


def value_of(claim: Claim) -> float:
    name = place(claim.file)
    if name.endswith(".json"):
        found = json.loads(committed.read(name))
        for key in claim.keys:
            found = found[int(key)] if isinstance(found, list) else found[key]
        return float(found[claim.column])
    table = committed.table(name, dtype=str, keep_default_na=False)
    for key in claim.keys:
        column, equals, wanted = key.partition("=")
        holds = table[column] == wanted if equals else (table == key).any(axis=1)
        table = table[holds]
    (value,) = table[claim.column].unique()  # one row, or rows that say the same
    return float(value)


def as_written(value: float, like: str) -> str:
    """`value` with as many decimals as `like` has, in its form."""
    mantissa, _, exponent = like.partition("e")
    decimals = len(mantissa.partition(".")[2])
    if not exponent:
        return f"{value:.{decimals}f}"
    return re.sub(r"e([+-])0*(?=\d)", r"e\1", f"{value:.{decimals}e}").replace("e+", "e")


@pytest.mark.parametrize(
    "claim", CLAIMS, ids=lambda claim: f"{claim.file}[{', '.join(claim.keys)}].{claim.column}"
)
def test_the_row_says_so(claim: Claim) -> None:
    assert as_written(value_of(claim), claim.value) == claim.value


@pytest.mark.parametrize("head", sections())
def test_every_number_of_a_finding_has_its_row(head: str) -> None:
    """Numbers with decimals; whole ones are of blocks, bits and images."""
    text = sections()[head]
    known = {claim.value for claim in claims(text)}
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", FENCE.sub("", text))
    said = set(re.findall(r"(?<![\w.])\d+\.\d+(?:e-?\d+)?", prose))
    assert said <= known, f"without a row: {sorted(said - known)}"


def test_the_time_that_the_page_and_the_readme_claim_was_measured() -> None:
    timings = committed.table("results/example/study_timings.csv", index_col="rule")
    seconds = timings.loc["from first to last", "seconds"]
    assert seconds < 15 * 60
    for page in (PAGE, committed.text("README.md")):
        assert f"**{seconds:.0f} seconds**" in page


def test_there_are_findings_for_every_part_of_the_study() -> None:
    heads = " ".join(sections()).lower()
    for part in ("ablation", "operators", "fusion", "activations", "errors", "attention", "models"):
        assert part in heads
    assert len(CLAIMS) > 100
