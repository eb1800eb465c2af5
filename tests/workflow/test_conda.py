"""`--sdm conda` with a stand-in for conda: jobs in the environment that it makes, without this package."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from clones import ROOT, environment, run
from tiny_run import PARAMS, tiny_clone

MADE = "results/models/tiny/fused.onnx"
# What it makes has the packages beside this Python, without what is installed there in editable mode.
CONDA = f"""#!/usr/bin/env bash
set -eu
here=$(dirname "$(dirname "$0")")
case "$1 ${{2:-}}" in
  "--version ") echo conda 25.1.0 ;;
  "info --json") echo '{{"conda_prefix": "'"$here"'", "platform": "linux-64"}}' ;;
  "clean -y") ;;
  "config --get") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
  "env create")
    while [[ $1 != --file ]]; do shift; done; cp "$2" "$here/asked.yml"
    while [[ $1 != --prefix ]]; do shift; done
    {sys.executable} -m venv --without-pip "$2"
    echo "{sysconfig.get_path("purelib")}" >"$2/lib/python3.11/site-packages/beside.pth" ;;
  *) echo "not known here: $*" >&2; exit 1 ;;
esac
"""
ACTIVATE = """
unset PYTHONPATH
export PATH="$1/bin:$PATH"
here=$(dirname "$(dirname "${BASH_SOURCE[0]}")")
python -c 'import ptq2themoon' 2>/dev/null || echo "$1" >>"$here/without"
"""


@pytest.mark.slow
def test_jobs_run_in_the_environment_of_environment_yml(tmp_path: Path) -> None:
    folder, conda = tmp_path / "clone", tmp_path / "conda"
    folder.mkdir()
    tiny_clone(folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (conda / "bin").mkdir(parents=True)
    (conda / "bin/conda").write_text(CONDA)
    (conda / "bin/conda").chmod(0o755)
    (conda / "bin/activate").write_text(ACTIVATE)
    seen = environment(folder)
    seen["PATH"] = f"{conda / 'bin'}{os.pathsep}{seen['PATH']}"
    run(folder, "snakemake", "--cores", "2", "--sdm", "conda", "--", MADE, env=seen)
    assert (folder / MADE).is_file()
    assert (conda / "asked.yml").read_text() == (ROOT / "environment.yml").read_text()
    (made,) = (folder / ".snakemake/conda").glob("*_/")
    jobs = (conda / "without").read_text().splitlines()
    assert set(jobs) == {str(made)}
    assert len(jobs) == len(list((folder / "logs").rglob("*.log"))) > 1
    assert subprocess.run([made / "bin/python", "-c", "import timm, onnx"], check=False).returncode == 0
