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
@pytest.mark.faults
@pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}")
def test_results_through_slurm_are_those_of_a_local_run(tmp_path: Path) -> None:
    params = {**tiny_run.PARAMS, "recipes": ["papers", "vanilla"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    write_weights(tmp_path / "weights")
    options = ["--weights", "weights", "--quick", "--out", "slurm.csv"]
    variables = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests/support'}"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/slurm_check.py"), *options],
        cwd=tmp_path, env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    local, remote = pd.read_csv(tmp_path / "slurm.csv").to_dict("records")
    assert (remote["differing_files"], remote["cancelled"], remote["drained"]) == (0, "calibrate", "n2")
    assert local["jobs"] == remote["jobs"]
    assert 0 < remote["slurm_jobs"] < local["jobs"] - 4  # small jobs are grouped, and tables are made here
