"""`snakemake benchmark`: what it plans, and the parts that run without the other tools."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from clones import ROOT, clone, run
from safetensors.torch import load_file

from ptq2themoon.benchmark.random_models import random_images, random_weights
from ptq2themoon.vocabulary.errors import UserError

MODELS = 4  # the demo's, the same with outlier channels, and two architectures
RECIPES = 4  # those of the pipeline, and ship


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clone(tmp_path_factory.mktemp("clone"))
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "resources", folder / "resources")
    return folder


@pytest.mark.slow
def test_benchmark_needs_the_other_tools_and_all_else_does_not(tree: Path) -> None:
    assert "make peers" in run(tree, "snakemake", "--dry-run", "--cores", "2", "benchmark", status=1)
    assert "benchmark_" not in run(tree, "snakemake", "--dry-run", "--cores", "2")


@pytest.mark.slow
def test_every_model_is_timed_with_all_recipes_and_modes(tree: Path) -> None:
    python = tree / ".venv-peers/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    said = run(tree, "snakemake", "--dry-run", "--cores", "2", "benchmark")
    table = said.rpartition("Job stats:")[2].partition("\n\n")[0]
    planned = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
    assert planned["benchmark_runtimes"] == planned["benchmark_simulation"] == MODELS
    assert planned["deploy"] == (MODELS * RECIPES + 2) * 2  # one that learns, for real weights
    assert planned["benchmark_weights"] == 2
    assert planned["benchmark_images"] == MODELS - 2  # of those with weights of their own
    assert "evaluate_quantized" not in planned


def test_random_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    first, again, other = (tmp_path / f"{name}.safetensors" for name in ("first", "again", "other"))
    shape = random_weights("test_vit", 0, first)
    random_weights("test_vit", 0, again)
    random_weights("test_vit", 1, other)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    random_images(3, shape, 0, again)
    found = load_file(again)
    assert found["images"].shape == (3, *shape)
    assert found["images"].float().std() > 10
    assert found["labels"].tolist() == [-1] * 3


def test_unknown_architecture_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown timm model 'test_vti'; did you mean 'test_vit"):
        random_weights("test_vti", 0, tmp_path / "weights.safetensors")
