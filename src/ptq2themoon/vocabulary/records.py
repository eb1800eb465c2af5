"""JSON files that one stage writes and others read: each a model, with a version, strict both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ValidationError

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict, place, problems, shown

R = TypeVar("R", bound="Record")


class Record(Strict):
    """What such a file holds; a change of its form needs another version."""

    stage: ClassVar[str]
    """That writes it: what a message says to run again."""

    version: Literal[1] = 1


DEEPEST = 100  # lists and objects within each other; readers call themselves for each
DEEP = f"lists and objects lie more than {DEEPEST} deep"


def parsed(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: no JSON, or lists and objects more than `DEEPEST` deep.
    """
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError(DEEP) from None
    if _is_deep(data):
        raise ValueError(DEEP)
    return data


def _is_deep(data: Any) -> bool:
    level = [data]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def read(path: Path, model: type[R]) -> R:
    """The record in a file.

    Raises:
        UserError: no JSON, another form or another version, in one line that says which stage to run.
    """
    again = f"run the {model.stage} stage again"
    try:
        text = path.read_text(encoding="utf-8")
        data = parsed(text)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run the {model.stage} stage") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {again}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must hold an object, not {shown(data)}; {again}")
    if data.get("version") != 1:
        found = shown(data["version"]) if "version" in data else "missing"
        raise UserError(f"{path}: version: {found}; this ptq2themoon reads version 1; {again}")
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        (key, what), *others = problems(error.errors(), data, model.model_json_schema())
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(f"{place(path, key)}: {what}{more}; {again}") from None


def write(path: Path, record: Record) -> None:
    """`read` gives the same record."""
    write_json(path, record.model_dump(mode="json"))


def write_json(path: Path, data: Any) -> None:
    """JSON with stable formatting; refuses NaN and infinity, which JSON has no words for."""
    path.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
