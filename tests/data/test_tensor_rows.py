"""Rows of tensors written and read a few at a time, against safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ptq2themoon.data.tensor_rows import RowsFile, TensorRows
from ptq2themoon.evaluate.attention import write_tensors

TENSORS = {
    "output": torch.randn(7, 3),
    "attention": torch.randn(7, 2, 4),
    "kl": torch.randn(7, dtype=torch.float64),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Written in batches of three."""
    with RowsFile(tmp_path / "rows.safetensors", 7, {"version": "1", "graph": "a"}) as file:
        for start in range(0, 7, 3):
            file.add(**{name: tensor[start : start + 3] for name, tensor in TENSORS.items()})
    return tmp_path / "rows.safetensors"


def test_the_bytes_are_those_of_safetensors(path: Path, tmp_path: Path) -> None:
    write_tensors(tmp_path / "whole.safetensors", TENSORS, {"version": "1", "graph": "a"})
    assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert all(torch.equal(TENSORS[name], found) for name, found in load_file(path).items())


@pytest.mark.parametrize("name", TENSORS)
def test_rows_are_read_as_an_index_of_the_tensor_reads_them(path: Path, name: str) -> None:
    whole, rows = TENSORS[name], TensorRows(path, name)
    assert (len(rows), rows.shape) == (7, tuple(whole.shape))
    for index in (slice(None), slice(2, 5), slice(6, 99), slice(3, 3)):
        assert torch.equal(rows[index], whole[index])
    assert torch.equal(rows[[4, 0, 4]], whole[[4, 0, 4]])
    assert torch.equal(torch.cat(list(rows.split(2))), whole)
    part = rows.part(range(2, 6))
    assert torch.equal(part[:], whole[2:6])
    assert torch.equal(torch.cat(list(part.part(range(1, 3)).split(1))), whole[3:5])


@pytest.mark.parametrize("count", [6, 8])
def test_another_number_of_rows_than_announced_is_an_error(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match="7 rows"), RowsFile(tmp_path / "rows", count, {}) as file:
        file.add(**TENSORS)


def test_a_file_without_rows_is_whole_too(tmp_path: Path) -> None:
    with RowsFile(tmp_path / "rows.safetensors", 0, {"shard": "4-of-4"}):
        pass
    assert load_file(tmp_path / "rows.safetensors") == {}


def test_a_file_that_lacks_the_tensor_or_its_end_is_refused(path: Path, tmp_path: Path) -> None:
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-1])
    for name in ("other", "cut"):
        with pytest.raises(SafetensorError):
            TensorRows(tmp_path / f"{name}.safetensors", "output")
