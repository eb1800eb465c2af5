"""A whole workflow whose evaluations are shared out over jobs: its results are those of one pass."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import yaml
from tiny_run import snakemake, tiny_clone

PARAMS = {**tiny_run.PARAMS, "deploy": {"modes": ["fast"]}}


def write_params(folder: Path, shards: int) -> None:
    evaluation = {**PARAMS["evaluation"], "shards": shards}
    (folder / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "evaluation": evaluation}))


def results(folder: Path) -> dict[str, Any]:
    """Of each file its bytes, or what a sidecar says but for the time that it took."""
    found: dict[str, Any] = {}
    for path in (folder / "results").rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            sidecar = name.endswith(".sidecar.json")
            found[name] = json.loads(path.read_bytes()) | {"wall_time_s": 0} if sidecar else path.read_bytes()
    return found


@pytest.mark.slow
def test_shards_change_no_result_and_leave_nothing(tmp_path: Path) -> None:
    """40 images in batches of 16 are three: of eight shards five are empty."""
    folder = tiny_clone(tmp_path)
    write_params(folder, 1)
    snakemake(folder)
    wanted = results(folder)
    for shards in (3, 8):
        write_params(folder, shards)
        said = snakemake(folder, "--forcerun", "reference")
        table = said.partition("Job stats:")[2].partition("\n\n")[0]
        counted = dict(re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE))
        parts = ("reference_part", "evaluate_part", "runtime_part")
        assert [counted[name] for name in parts] == [str(shards)] * 3
        assert "calibrate" not in counted
        assert results(folder) == wanted
    assert "Nothing to be done" in snakemake(folder)
