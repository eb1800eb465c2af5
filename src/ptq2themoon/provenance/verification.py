"""Sidecars against files and params.yaml: every difference as one line that says what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from ptq2themoon.provenance.expected import Result
from ptq2themoon.safety.sidecars import sha256, sidecar_path
from ptq2themoon.vocabulary.job import ANY
from ptq2themoon.vocabulary.onnx_data import data_beside
from ptq2themoon.vocabulary.records import parsed
from ptq2themoon.vocabulary.validation import Key, dotted

Record = Mapping[str, Any]


class Verifier:
    """Finds what is wrong with results; each file is hashed once and each cause named once.

    Args:
        schema: of a sidecar, as read from JSON.
        heavy: the folder of what DVC keeps, which a clone lacks until `dvc pull`.
    """

    def __init__(self, schema: Mapping[str, Any], heavy: Path) -> None:
        self._validator = Draft202012Validator(schema)
        self._heavy = heavy
        self._hashes: dict[Path, str | None] = {}
        self._made: dict[str, str] = {}  # output: the hash that its own sidecar records
        self._absent: set[Path] = set()

    def problems(self, results: Iterable[Result]) -> Iterator[str]:
        """One line per problem; `results` must come in the order in which they are made."""
        results = list(results)
        self._hash({path for result in results for path in (*result.inputs, *result.outputs)})
        for result in results:
            yield from self._absences(result)
            sidecar = sidecar_path(result.outputs[0])
            if sidecar.is_file():
                yield from self._sidecar(sidecar, result)
            elif result.outputs[0] not in self._absent:
                yield f"{sidecar}: missing beside {result.outputs[0].name}; {_again(result)}"

    def _sidecar(self, sidecar: Path, result: Result) -> Iterator[str]:
        try:
            record = parsed(sidecar.read_text(encoding="utf-8"))
        except ValueError as error:
            yield f"{sidecar}: not readable as JSON ({error}); {_again(result)}"
            return
        flaws = sorted(self._validator.iter_errors(record), key=lambda flaw: [str(p) for p in flaw.path])
        for flaw in flaws:
            where = dotted(tuple(flaw.path))
            yield f"{sidecar}: {where + ': ' if where else ''}{_brief(flaw.message)}; {_again(result)}"
        if flaws:
            return
        for what in (*_differences(record, result), *self._inputs(record, result)):
            yield f"{sidecar}: {what}; {_again(result)}"
        yield from self._outputs(sidecar, record, result)

    def _absences(self, result: Result) -> Iterator[str]:
        for path in (*result.inputs, *result.outputs):
            if path in self._absent or self._hashes[path]:
                continue
            self._absent.add(path)
            made = next((output for output in result.outputs if data_beside(output) == path), path)
            if path in result.inputs:
                yield f"{path}: missing, and {result.outputs[0]} is made from it; put it back"
            elif self._heavy in path.parents:
                yield f"{path}: missing, DVC keeps it; run `dvc pull` or `snakemake {made}`"
            else:
                yield f"{path}: missing; run `snakemake {made}`"

    def _inputs(self, record: Record, result: Result) -> Iterator[str]:
        """Inputs of other content; what a stage made counts as that stage recorded it, once for all."""
        for path in result.inputs:
            recorded = record["inputs"].get(path.as_posix())
            expected = self._made.get(path.as_posix()) or self._hashes[path]
            if recorded and expected and recorded != expected:
                yield f"input {path}: recorded sha256 {_short(recorded)}, expected {_short(expected)}"

    def _outputs(self, sidecar: Path, record: Record, result: Result) -> Iterator[str]:
        for path in result.outputs:
            recorded, now = record["outputs"].get(path.as_posix()), self._hashes[path]
            if recorded:
                self._made[path.as_posix()] = recorded
            if recorded and now and recorded != now:
                yield (
                    f"{path}: changed since it was made: sha256 {_short(now)}, "
                    f"{sidecar.name} records {_short(recorded)}; {_again(result)}"
                )

    def _hash(self, paths: Set[Path]) -> None:
        """Read each file once, on all cores."""
        new = sorted(path for path in paths if path not in self._hashes)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self._hashes |= dict(zip(new, pool.map(_digest, new), strict=True))


def _digest(path: Path) -> str | None:
    """None when there is no such file."""
    return sha256(path) if path.is_file() else None


def _again(result: Result) -> str:
    return f"run `snakemake --forcerun {result.outputs[0]}`"


def _short(digest: str | None) -> str:
    return f"{digest[:12]}…" if digest else "none"


def _differences(record: Record, result: Result) -> Iterator[str]:
    """What a sidecar records otherwise than params.yaml, the recipes and the rules have it."""
    expected = {
        "stage": result.stage,
        "parameters": result.parameters,
        "seed": result.seed,
        "device": result.device,
    }
    for key, recorded, value in differing({name: record[name] for name in expected}, expected):
        yield f"{dotted(key)}: recorded {_shown(recorded)}, expected {_shown(value)}"
    if result.code not in (ANY, record["code"]):
        sums = f"recorded {_short(record['code'])}, expected {_short(result.code)}"
        yield f"code: made by other code than is here: {sums}"
    for kind, paths in (("inputs", result.inputs), ("outputs", result.outputs)):
        names = {path.as_posix() for path in paths}
        for name in sorted(names - set(record[kind])):
            yield f"{kind}: {name} expected, not recorded"
        for name in sorted(set(record[kind]) - names):
            yield f"{kind}: {name} recorded, not expected"


MISSING = object()


def differing(recorded: Any, expected: Any, key: Key = ()) -> Iterator[tuple[Key, Any, Any]]:
    """(key, recorded, expected) of every value that differs; `ANY` equals all but `MISSING`."""
    if expected is ANY and recorded is not MISSING:
        return
    if isinstance(recorded, dict) and isinstance(expected, dict):
        for name in {**expected, **recorded}:
            yield from differing(recorded.get(name, MISSING), expected.get(name, MISSING), (*key, name))
    elif isinstance(recorded, list) and isinstance(expected, list) and len(recorded) == len(expected):
        for index, pair in enumerate(zip(recorded, expected, strict=True)):
            yield from differing(*pair, (*key, index))
    elif type(recorded) is not type(expected) or recorded != expected:
        yield key, recorded, expected


def _shown(value: Any) -> str:
    if value is MISSING:
        return "nothing"
    return "a value" if value is ANY else _brief(json.dumps(value, ensure_ascii=False))


def _brief(text: str, most: int = 100) -> str:
    """`text` on one line that is not much longer than a screen is wide."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
