"""What a training keeps of itself on disk, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ptq2themoon.progress import warn
from ptq2themoon.safety.durable import publish


@dataclass(frozen=True)
class State:
    """Files of one training in a folder of its own; a file of another training is not read.

    Attributes:
        folder: made when the first file is written.
        key: of all that decides the training's result.
    """

    folder: Path
    key: str

    def save(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write a file under its final name when it is whole and on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, part = self._path(name), self._path(f".{name}")
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
            part,
            metadata={"key": self.key, "facts": json.dumps(facts)},
        )
        publish({part: path})

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved under this name; None where nothing was, or by another training."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata()
                if facts["key"] != self.key:
                    warn(f"{path}: of a training with other inputs or settings; it starts anew")
                    return None
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names}, json.loads(facts["facts"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            warn(f"{path}: cannot be read ({error}); this part of the training starts anew")
            return None

    def remove(self) -> None:
        """Remove all files: the training is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
