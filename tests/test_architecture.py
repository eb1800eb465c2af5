"""The contracts of pyproject.toml on who imports whom hold, and each of them is seen to break."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ptq2themoon"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
# One forbidden import for each contract, in the contracts' order.
VIOLATIONS = [
    ("evaluate/metrics.py", "import ptq2themoon.study.names"),
    ("vocabulary/bits.py", "def late() -> None:\n    import numpy"),
    ("graph/editing/onnx_run.py", "import ptq2themoon.graph.forms.gelu"),
    ("quantize/quantizers/base.py", "from ptq2themoon.quantize import plan"),
    ("methods/repq_vit.py", "from ptq2themoon.methods import bias_correction"),
    ("plots/style.py", "import torch"),
    ("graph/forms/gelu.py", "from ppq.core import TargetPlatform"),
]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """What `lint-imports` says of the package in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "COLUMNS": "200"}
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with the package and its contracts, to change."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def verdicts(output: str) -> dict[str, str]:
    return dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", output, re.MULTILINE))


def test_every_import_goes_in_a_direction_of_the_architecture() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert verdicts(done.stdout) == {contract["name"]: "KEPT" for contract in CONTRACTS}


@pytest.mark.parametrize(
    ("contract", "module", "line"),
    [(contract["name"], *violation) for contract, violation in zip(CONTRACTS, VIOLATIONS, strict=True)],
)
def test_a_forbidden_import_breaks_its_contract(package: Path, contract: str, module: str, line: str) -> None:
    path = package / "src" / "ptq2themoon" / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    done = lint(package)
    assert done.returncode != 0
    assert [name for name, verdict in verdicts(done.stdout).items() if verdict == "BROKEN"] == [contract]


def test_a_new_room_must_be_given_its_layer(package: Path) -> None:
    room = package / "src" / "ptq2themoon" / "attic"
    room.mkdir()
    (room / "__init__.py").write_text('"""A room that no contract knows."""\n')
    done = lint(package)
    assert done.returncode != 0
    assert "attic" in done.stdout


def test_the_folders_of_tests_are_the_rooms_of_the_package() -> None:
    """But for: helpers, golden files, whole workflows, and the embedded model and images."""
    others = {"support", "golden", "workflow", "demo"}
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    rooms = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("__init__.py")}
    assert {folder for folder in folders if not others & {*folder.parts}} <= rooms


def test_the_pictures_of_packages_and_stages_are_the_code() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "architecture.py"))
    for name in ("packages", "stages"):
        page, text = tool["drawn"](name)
        assert page.read_text(encoding="utf-8") == text, "run `make architecture`"
        assert text.count(f"<!-- {name} -->\n```mermaid") == 1
    page, text = tool["drawn"]("packages")
    described = re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)
    assert sorted(described) == sorted(tool["packages"]())
    assert "evaluate" in tool["read_by"]()["calibrate"]


def test_no_module_name_occurs_twice() -> None:
    """But for a kind of quantizer and the method that brings it: recipes call both by one name."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "base")]
    for room in ("methods", "quantizers"):
        names = [path.stem for path in paths if path.parent.name != room]
        assert sorted(names) == sorted(set(names))


def test_an_edited_default_of_the_study_makes_no_job_of_the_pipeline_run_again() -> None:
    """A job runs again when a module that its script imports, directly or not, has changed."""
    graph = grimp.build_graph("ptq2themoon", exclude_type_checking_imports=True)
    for script in (ROOT / "workflow/scripts/pipeline").glob("*.py"):
        read = re.findall(r"^from (ptq2themoon[\w.]*) import", script.read_text(), re.MULTILINE)
        behind = {name for module in read for name in (module, *graph.find_upstream_modules(module))}
        assert behind, script
        assert not {name for name in behind if name.endswith("parameters")}, script
