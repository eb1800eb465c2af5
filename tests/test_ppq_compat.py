"""PPQ on this stack: imported silently, by one module, and refused clearly when it is another version."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("src", "workflow") for path in (ROOT / folder).rglob("*.py"))


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has imported nothing of ours."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        check=False,
    )


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    packages: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            packages.add((node.module or "").partition(".")[0])
    return packages


def test_import_says_nothing_and_leaves_no_stand_in_that_others_could_meet() -> None:
    checks = """
import sys, onnx
had = hasattr(onnx, "mapping")
import ptq2themoon.ppq_compat as compat
assert compat.ppq.__name__ == "ppq"
assert had or not hasattr(onnx, "mapping")
assert had or "onnx.mapping" not in sys.modules
print("still here")  # standard output is the process's own again
"""
    done = python(checks)
    assert (done.returncode, done.stdout, done.stderr) == (0, "still here\n", "")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            "raise importlib.metadata.PackageNotFoundError(name)",
            "ppq is not installed; install ppq==0.6.6 (`make env`)",
        ),
        ("return '0.6.5'", "ppq 0.6.5 is installed, ptq2themoon needs 0.6.6 (`make env`)"),
    ],
)
def test_missing_or_other_ppq_is_a_line_that_says_so(version: str, message: str) -> None:
    done = python(
        f"""
import importlib.metadata, sys
real = importlib.metadata.version
def version(name):
    if name != "ppq":
        return real(name)
    {version}
importlib.metadata.version = version
from ptq2themoon.vocabulary.errors import UserError
try:
    import ptq2themoon.ppq_compat
except UserError as error:
    print(error)
assert "ppq" not in sys.modules
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{message}\n", "")


def test_one_module_imports_ppq() -> None:
    assert [path.name for path in SOURCES if "ppq" in imported(path)] == ["ppq_compat.py"]


def test_the_scan_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "from . import ppq_compat\ndef f():\n    from ppq.core import x\n    import numpy as np\n"
    )
    assert imported(path) == {"ppq", "numpy"}
