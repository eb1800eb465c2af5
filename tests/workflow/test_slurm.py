"""The pipeline through a Slurm of two nodes on this machine, one job cancelled and one node drained."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import tiny_run
import yaml
from clones import ROOT
from tiny_stages import write_weights

MISSING = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
MISSING += [] if find_spec("snakemake_executor_plugin_slurm") else ["snakemake-executor-plugin-slurm"]
MISSING += [] if os.geteuid() == 0 else ["root"]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}")
def test_results_through_slurm_are_those_of_a_local_run(tmp_path: Path) -> None:
    params = {**tiny_run.PARAMS, "recipes": ["papers", "vanilla", "ship"], "deploy": {"modes": ["fast"]}}
    params["evaluation"] = {**params["evaluation"], "shards": 3}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    write_weights(tmp_path / "weights")
    script = [
        sys.executable,
        str(ROOT / "tools/slurm_check.py"),
        "--weights",
        "weights",
        "--out",
        "slurm.csv",
    ]
    variables = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests/support'}"}
    done = subprocess.run(script, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "slurm.csv").set_index("run")
    remote = table.loc[["slurm", "slurm, disturbed"]]
    assert list(remote["differing_files"]) == [0, 0]
    assert table["jobs"].nunique() == 1
    assert (
        0 < table.loc["slurm", "slurm_jobs"] < table.loc["slurm", "jobs"] - 5
    )  # grouped, and tables are made here
    assert list(table.loc["slurm, disturbed", ["cancelled", "drained"]]) == ["calibrate", "n2"]
