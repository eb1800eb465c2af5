"""Folders in which the stages ran on tiny inputs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_stages


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage ran here once; only to read."""
    return tiny_stages.chain(tmp_path_factory.getbasetemp())


@pytest.fixture
def copy(chain: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    return shutil.copytree(chain, tmp_path / "copy", symlinks=True)
