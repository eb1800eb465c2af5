"""Running a stage's script: in a process of its own, as the workflow does, or quickly in this one."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from scripts import script_path

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script with arguments in a process of its own."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script_path(name), *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
            check=False,
        )

    return run


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script with arguments in this process; the one line with which it refuses them."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(script_path(name)), run_name="__main__")
        line, end, rest = capsys.readouterr().err.partition("\n")
        assert (end, rest) == ("\n", "")
        return line

    return run


@pytest.fixture
def inside() -> Callable[[Figure], bool]:
    """Whether all that a figure draws lies on its page (half a pixel may stand over)."""

    def check(figure: Figure) -> bool:
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        return min(box.x0, box.y0) > -0.005 and box.x1 < width + 0.005 and box.y1 < height + 0.005

    return check
