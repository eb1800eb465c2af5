"""Activations of many images: in memory up to a budget, on disk beyond it, the same to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_methods import Case, recipe

from ptq2themoon.quantize import states as module
from ptq2themoon.quantize.program import Values
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.states import States

MIDDLE = 40  # steps


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of_family("vit")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def taken(case: Case, budget: int) -> tuple[States, list[Values]]:
    """The states after some steps taken in two goes, and what a program gives without them."""
    model = SimulatedModel(case.reference, "cpu")
    program = model.program()
    parts = [{model.input_name: part} for part in case.images.split(6)]
    plain: list[Values] = [dict(part) for part in parts]
    with torch.inference_mode():
        found = States(program, parts, "cpu", budget)
        found.advance(program.steps[:7])
        found.advance(program.steps[7:MIDDLE])
        for state in plain:
            for step in program.steps[:MIDDLE]:
                program.advance(step, state)
    return found, plain


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize(("budget", "on_disk"), [(2**30, 0), (0, 4)])
def test_parts_are_the_same_wherever_they_lie(case: Case, folder: Path, budget: int, on_disk: int) -> None:
    found, plain = taken(case, budget)
    assert len(files(folder)) == on_disk
    for mine, wanted in zip(found, plain, strict=True):
        assert mine.keys() == wanted.keys()
        assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


def test_some_lie_in_memory_and_others_on_disk(case: Case, folder: Path) -> None:
    found, plain = taken(case, 2**30)
    one = sum(value.nbytes for value in plain[0].values())
    found.close()
    found, _ = taken(case, 2 * one)
    assert 1 <= len(files(folder)) <= 3
    assert all(mine.keys() == wanted.keys() for mine, wanted in zip(found, plain, strict=True))


def test_the_folder_goes_with_the_states(case: Case, folder: Path) -> None:
    found, _ = taken(case, 0)
    with found:
        assert files(folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("method", ["gptq", "erq", "bias_correction"])
def test_a_method_gives_the_same_bits_with_all_on_disk(
    case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    calls: list[dict[str, Any]] = [{"name": method}]
    wanted = case.logits(case.quantized(recipe("papers", methods=calls), (4, 4)))
    assert not files(folder)
    monkeypatch.setattr(module, "BUDGET", 0)
    written: list[Path] = []
    plain = module.save_file
    monkeypatch.setattr(module, "save_file", lambda values, path: (written.append(path), plain(values, path)))
    assert torch.equal(case.logits(case.quantized(recipe("papers", methods=calls), (4, 4))), wanted)
    assert written
    assert not list(folder.iterdir())
