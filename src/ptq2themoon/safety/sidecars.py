"""The sidecar beside a result, by name, and the sum of a file's content that it records."""

from __future__ import annotations

import hashlib
from pathlib import Path

SIDECAR = ".sidecar.json"  # the end of its name


def sidecar_path(output: Path) -> Path:
    """`qparams.json` -> `qparams.sidecar.json`; `top1.png` -> `top1.png.sidecar.json`.

    A figure's keeps the suffix: the table that it shows has its name.
    """
    stem = output.name if output.suffix == ".png" else output.stem
    return output.with_name(f"{stem}{SIDECAR}")


def sha256(path: Path) -> str:
    """Hexadecimal sum of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
