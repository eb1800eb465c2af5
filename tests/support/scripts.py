"""Where the stages' scripts lie."""

from __future__ import annotations

from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "workflow" / "scripts"


def script_path(name: str) -> Path:
    """The script of that file name, in whichever theme's folder."""
    (found,) = SCRIPTS.glob(f"*/{name}")
    return found
