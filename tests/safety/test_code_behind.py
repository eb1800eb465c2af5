"""The sum of the code behind a stage changes with each module that the stage runs, and with no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ptq2themoon.safety import code_behind
from ptq2themoon.safety.code_behind import ROOT, code_sum, modules_behind

PARTS = ("src", "workflow")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    return folder


def summed(root: Path, *of: object) -> str | None:
    """Of what is on the disk now."""
    for each in (code_sum, modules_behind, code_behind.imported):
        each.cache_clear()
    return code_sum(*of, root)


@pytest.mark.parametrize(
    ("module", "stage", "methods", "changes"),
    [
        ("src/ptq2themoon/evaluate/metrics.py", "evaluate", (), True),
        ("src/ptq2themoon/evaluate/metrics.py", "plot_top1", (), False),
        ("src/ptq2themoon/plots/style.py", "plot_top1", (), True),
        ("workflow/scripts/pipeline/plot_top1.py", "plot_top1", (), True),
        ("src/ptq2themoon/methods/gptq.py", "calibrate", (), False),
        ("src/ptq2themoon/methods/gptq.py", "calibrate", ("gptq",), True),
        ("src/ptq2themoon/quantize/observers/minmax.py", "calibrate", (), True),
    ],
)
def test_a_changed_module_counts_where_it_runs(
    copied: Path, module: str, stage: str, methods: tuple[str, ...], changes: bool
) -> None:
    before, path = summed(copied, stage, methods), copied / module
    text = path.read_text()
    path.write_text(f"{text}\n")
    assert (summed(copied, stage, methods) != before) == changes
    path.write_text(text)
    assert summed(copied, stage, methods) == before


def test_it_does_not_depend_on_where_the_code_lies(copied: Path) -> None:
    assert summed(copied, "calibrate", ("gptq",)) == summed(ROOT, "calibrate", ("gptq",))


def test_what_only_type_checkers_read_is_no_code(copied: Path) -> None:
    path = copied / "workflow/scripts/pipeline/only_types.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ptq2themoon.plots.style import styled\n"
        "else:\n    from ptq2themoon import quiet\n"
        "def late():\n    try:\n        from ptq2themoon import device\n    finally:\n        pass\n"
    )
    names = {module.stem for module in modules_behind("only_types", (), copied)}
    assert {"quiet", "device", "only_types"} <= names
    assert "style" not in names


def test_a_stage_without_a_script_has_no_code() -> None:
    assert code_sum("no stage") is None
