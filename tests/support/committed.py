"""Committed results, `results/example/`, and the pages that quote them; no run touches either."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]


@cache
def read(name: str) -> bytes:
    """Content of a file; `name` is relative to the project's folder, with slashes."""
    return (ROOT / name).read_bytes()


def text(name: str) -> str:
    return read(name).decode("utf-8")


def table(name: str, **options: Any) -> pd.DataFrame:
    """A CSV file; `options` go to pandas."""
    return pd.read_csv(BytesIO(read(name)), **options)


def names(pattern: str) -> list[str]:
    """Files that match a pattern such as `results/example/*/study/*.png`, sorted."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
