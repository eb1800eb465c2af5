"""Activations of many images at one place of a program: in memory up to a budget, on disk beyond it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from ptq2themoon.quantize.program import Program, Step, Values

BUDGET = 2**30  # bytes in memory


class States:
    """The values of each part of the images, before one step of a program.

    Parts that exceed the budget lie in a temporary folder (`TMPDIR` says where) and are read one at a
    time. Close it, or use it as a context: then the folder goes.

    Args:
        parts: the values before the first step.
        device: that the program runs on.
        budget: bytes that stay in memory; `BUDGET` by default.
    """

    def __init__(
        self, program: Program, parts: Iterable[Values], device: str, budget: int | None = None
    ) -> None:
        self._program, self._device = program, device
        self._budget = BUDGET if budget is None else budget
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._parts: list[Values | Path] = []
        self._bytes: list[int] = []  # of what is in memory
        for values in parts:
            self._parts.append({})
            self._bytes.append(0)
            self._keep(len(self._parts) - 1, values)

    def __iter__(self) -> Iterator[Values]:
        """Part by part; a change of what is given is not kept."""
        for part in self._parts:
            yield dict(part) if isinstance(part, dict) else load_file(part, self._device)

    def advance(self, steps: Sequence[Step]) -> None:
        """Take all parts past these steps, which come next."""
        if not steps:
            return
        for index, values in enumerate(self):
            self._parts[index], self._bytes[index] = {}, 0
            for step in steps:
                self._program.advance(step, values)
            self._keep(index, values)

    def _keep(self, index: int, values: Values) -> None:
        size = sum(value.nbytes for value in values.values())
        if sum(self._bytes) + size <= self._budget:
            self._parts[index], self._bytes[index] = values, size
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ptq2themoon-")
        path = Path(self._folder.name) / f"{index}.safetensors"
        # Copies: values may share memory, which the format refuses.
        save_file({name: value.detach().cpu().clone().contiguous() for name, value in values.items()}, path)
        self._parts[index] = path

    def close(self) -> None:
        """Forget all values, on disk too."""
        self._parts.clear()
        self._bytes.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> States:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
