"""Results held against their own sidecars, quickly: what was cut short or changed with its time kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ptq2themoon.safety.sidecars import SIDECAR, sha256

SMALL = 1_000_000  # bytes: Snakemake too holds content against content up to here, and times above


@dataclass(frozen=True)
class Doubt:
    """A file that is not what a sidecar says of it.

    Attributes:
        what: is wrong, after the file's name.
        again: the results that must be made again.
    """

    file: Path
    what: str
    again: tuple[Path, ...]


def doubts(results: Path) -> Iterator[Doubt]:
    """Files that are not as long as they were when a result was made, or, up to `SMALL`, of other content.

    Of inputs that no stage made, only those count that are older than the result: Snakemake sees the rest.
    """
    found = {path: _record(path) for path in sorted(_sidecars(results))}
    outputs = {sidecar: _outputs(sidecar, record) for sidecar, record in found.items()}
    content = cache(sha256)  # of each file once
    made = {path for paths in outputs.values() for path in paths}
    for sidecar, record in found.items():
        again = tuple(path for path in outputs[sidecar] if path.is_file())
        if record is None:
            yield Doubt(sidecar, "not readable", again)
            continue
        given = [path for path in map(Path, record["inputs"]) if path not in made and _older(path, sidecar)]
        for path in (*outputs[sidecar], *given):
            digest = {**record["inputs"], **record["outputs"]}[path.as_posix()]
            if what := _otherwise(path, digest, record.get("bytes", {}).get(path.as_posix()), content):
                yield Doubt(path, what, again)


def _sidecars(results: Path) -> Iterator[Path]:
    """Every sidecar; folders that are links are entered, each once."""
    seen = set()
    for folder, folders, names in os.walk(results, followlinks=True):
        if (place := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(place)
        yield from (
            Path(folder, name) for name in names if name.endswith(SIDECAR) and not name.startswith(".")
        )


def _record(sidecar: Path) -> Mapping[str, Any] | None:
    """What a sidecar holds; None where it is no longer whole."""
    try:
        record = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError:
        return None
    whole = isinstance(record, dict) and all(
        isinstance(record.get(key), dict) for key in ("inputs", "outputs")
    )
    return record if whole else None


def _outputs(sidecar: Path, record: Mapping[str, Any] | None) -> list[Path]:
    """Files that a sidecar tells of; of one that is not whole, those that its name may stand for."""
    if record is not None:
        return [Path(name) for name in record["outputs"]]
    stem, beside = sidecar.name.removesuffix(SIDECAR), sidecar.parent.iterdir()
    found = [path for path in beside if path != sidecar and stem in (path.name, path.stem)]
    return sorted(path for path in found if not path.name.startswith("."))


def _older(path: Path, sidecar: Path) -> bool:
    return path.is_file() and path.stat().st_mtime_ns <= sidecar.stat().st_mtime_ns


def _otherwise(path: Path, digest: str, size: int | None, content: Callable[[Path], str]) -> str:
    """How a file differs from what is recorded of it; nothing where it does not, or is not there."""
    if not path.is_file():
        return ""
    now = path.stat().st_size
    if size is not None and now != size:
        return f"{now} bytes, {size} when it was recorded"
    return "other content than was recorded" if now <= SMALL and content(path) != digest else ""
