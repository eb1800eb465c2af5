"""Results held against their own sidecars, quickly: what was cut short or changed with its time kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ptq2themoon.safety.sidecars import SIDECAR, sha256
from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.onnx_data import data_beside
from ptq2themoon.vocabulary.records import parsed

SMALL = 1_000_000  # bytes: Snakemake too holds content against content up to here, and times above
LARGEST = 50_000_000  # bytes of a sidecar: one with a line for each of 200,000 files


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
    It does not know of the weights beside an ONNX file: those that are gone or later than recorded count too.
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
        digests, sizes = {**record["inputs"], **record["outputs"]}, record.get("bytes", {})
        beside = {data_beside(path) for path in again}.intersection(outputs[sidecar])
        unseen = {path for path in beside if not _older(path, sidecar)}
        given = [name for name in record["inputs"] if Path(name) not in made and _older(Path(name), sidecar)]
        for name in (*record["outputs"], *given):
            path = Path(name)
            if what := _otherwise(path, digests[name], sizes.get(name), content, unseen=path in unseen):
                yield Doubt(path, what, again)


def _sidecars(results: Path) -> Iterator[Path]:
    """Every sidecar of a run here; folders that are links are entered, each once.

    Those of the committed example name the same files, as another machine made them.
    """
    seen = {os.path.realpath(results / Path(layout.EXAMPLE).name)}
    for folder, folders, names in os.walk(results, followlinks=True):
        if (place := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(place)
        yield from (
            Path(folder, name) for name in names if name.endswith(SIDECAR) and not name.startswith(".")
        )


def _record(sidecar: Path) -> Mapping[str, Any] | None:
    """What a sidecar holds; None where it is not whole, or no file: a pipe is not waited for."""
    try:
        if not sidecar.is_file() or sidecar.stat().st_size > LARGEST:
            return None
        record = parsed(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    whole = [_maps_to(record.get(key), str) for key in ("inputs", "outputs")]
    return record if all(whole) and _maps_to(record.get("bytes", {}), int) else None


def _maps_to(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(one, kind) for one in value.values())


def _outputs(sidecar: Path, record: Mapping[str, Any] | None) -> list[Path]:
    """Files that a sidecar tells of; of one that is not whole, those that its name may stand for."""
    if record is not None:
        return [Path(name) for name in record["outputs"]]
    stem, beside = sidecar.name.removesuffix(SIDECAR), sidecar.parent.iterdir()
    found = [path for path in beside if path != sidecar and stem in (path.name, path.stem)]
    return sorted(path for path in found if not path.name.startswith("."))


def _older(path: Path, sidecar: Path) -> bool:
    return path.is_file() and path.stat().st_mtime_ns <= sidecar.stat().st_mtime_ns


def _otherwise(
    path: Path, digest: str, size: int | None, content: Callable[[Path], str], *, unseen: bool
) -> str:
    """How a file differs from what is recorded of it; nothing where it does not.

    Args:
        unseen: Snakemake does not see that it is not there, or later than what was recorded.
    """
    if not path.is_file():
        return "not there" if unseen else ""
    now = path.stat().st_size
    if size is not None and now != size:
        return f"{now} bytes, {size} when it was recorded"
    try:
        looked_at = unseen or now <= SMALL
        return "other content than was recorded" if looked_at and content(path) != digest else ""
    except OSError as error:
        return f"not readable ({error.strerror})"
