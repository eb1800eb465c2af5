"""Folders that stand for classes; apart from the sources of images, which need torch."""

from __future__ import annotations

from pathlib import Path


def class_folders(path: Path) -> list[str]:
    """Names of the folders in a folder, sorted; those that begin with a dot are no classes."""
    if not path.is_dir():
        return []
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
