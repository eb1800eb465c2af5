"""Plain data in, a checked model out; what is wrong is said with file, key, value and nearest valid one."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from ptq2themoon.vocabulary.errors import UserError, nearest, printable

Key = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

MOST_SHOWN = 20  # things wrong in one file that a message lists
LONGEST_KEY = 100  # characters of a key, as a message shows it

EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "a mapping",
    "string_type": "text",
}


class Strict(BaseModel):
    """A model that converts nothing, knows every key and never changes; docstrings reach its schema."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def one_or_many(value: Any) -> Any:
    """`fc2` -> `[fc2]`; lists stay, and what is neither is left for the type check to refuse."""
    return [value] if isinstance(value, str | int | float) else value


def no_repeats(values: list[Any]) -> list[Any]:
    """The list as it is; raises `ValueError` where a value is listed twice."""
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{shown(value)} is listed twice")
        seen.add(value)
    return values


Positive = Annotated[int, Field(ge=1)]
# Of a list, besides its type: nothing twice; and at least one.
UNIQUE = (Field(json_schema_extra={"uniqueItems": True}), AfterValidator(no_repeats))
SOME = (Field(min_length=1, json_schema_extra={"uniqueItems": True}), AfterValidator(no_repeats))


def validate(model: type[M], data: Mapping[str, Any], source: str) -> M:
    """`data` as a `model`, or a `UserError` with one line for each thing wrong in it."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        errors = error.errors()
        first = problems(errors[:MOST_SHOWN], data, model.model_json_schema())
        raise failure(source, first, max(0, len(errors) - MOST_SHOWN)) from None


def failure(source: str | Path, problems: Iterable[tuple[Key, str]], more: int = 0) -> UserError:
    """The error that lists `problems`, one per line: `params.yaml: models.demo.opset: …`.

    Args:
        more: how many others there are that are not listed.
    """
    lines = [f"{place(source, key)}: {printable(what)}" for key, what in problems]
    more, lines = more + max(0, len(lines) - MOST_SHOWN), lines[:MOST_SHOWN]
    return UserError("\n".join([*lines, *([f"{source}: and {more} more like these"] if more else [])]))


def place(source: str | Path, key: Key) -> str:
    """`params.yaml: models.demo.opset`, where a message points to."""
    return f"{source}: {dotted(key)}" if key else f"{source}"


def dotted(key: Key) -> str:
    """`("rules", 1, "select")` -> `rules[1].select`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_key(part)}" for part in key).lstrip(".")


def _key(part: str) -> str:
    text = printable(part)
    return text if len(text) <= LONGEST_KEY else f"{text[: LONGEST_KEY - 3]}..."


def shown(value: Any) -> str:
    """`value` as a message shows it."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        return repr(value if len(value) <= 200 else f"{value[:200]}...")
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):  # a date, or a list that holds itself
        text = reprlib.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def problems(errors: list[ErrorDetails], data: Any, schema: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    """(key, what is wrong there) of pydantic's errors in `data`, by the schema of the model."""
    found = [(*_find(data, error["loc"]), error) for error in errors]
    guesses = {}
    for key, _, error in found:
        if error["type"] == "extra_forbidden":
            known = [name for node in _nodes(schema, key[:-1]) for name in node.get("properties", ())]
            guesses[key] = nearest(key[-1], known)
    for key, value, error in found:
        if key in guesses:
            yield key, f"unknown key; {guesses[key]}"
        elif error["type"] == "missing":
            # The unknown key beside it already says what it should have been.
            if not any(k[:-1] == key[:-1] and g == f"did you mean {key[-1]!r}?" for k, g in guesses.items()):
                yield key, "missing"
        else:
            yield key, _complaint(error, value, _nodes(schema, error["loc"]))


def _complaint(error: ErrorDetails, value: Any, nodes: list[dict[str, Any]]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        valid = [choice for node in nodes for choice in node.get("enum", [node.get("const")])]
        return f"unknown value {shown(value)}; {nearest(value, valid)}"
    if kind in EXPECTED:
        return f"must be {EXPECTED[kind]}, not {shown(value)}"
    if kind == "greater_than_equal":
        return f"{shown(value)} is too small; nearest valid: {context['ge']}"
    if kind == "less_than_equal":
        return f"{shown(value)} is too large; nearest valid: {context['le']}"
    if kind == "invalid_key":
        return "unknown key; a key must be text"
    if kind == "too_short":
        least = context.get("min_length", 1)
        return "is empty; give at least one" if least == 1 else f"too few; give at least {least}"
    if kind == "too_long":
        return f"{context['actual_length']} entries; at most {context['max_length']}"
    if kind == "value_error":
        return str(context["error"])
    return f"{shown(value)}: {error['msg']}"


def _find(data: Any, location: Key) -> tuple[Key, Any]:
    """The key as the user wrote it, and the value there: `role: fc3` stands for `role: [fc3]`."""
    key: list[str | int] = []
    for part in location:
        if part == "[key]":  # pydantic's mark: the key itself is wrong
            return tuple(key), key[-1]
        if isinstance(data, Mapping):
            key.append(str(part))
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            key.append(part)
            data = data[part]
    return tuple(key), data


def _nodes(schema: dict[str, Any], location: Key) -> list[dict[str, Any]]:
    """The nodes of a JSON schema that rule the value at `location`, references followed."""

    def options(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        if "anyOf" not in node:
            yield node
        for option in node.get("anyOf", ()):
            yield from options(option)

    def child(node: dict[str, Any], part: str | int) -> Any:
        if isinstance(part, int):
            return node.get("items")
        others = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
        return node.get("properties", {}).get(part, others[0])

    nodes = list(options(schema))
    for part in location:
        children = [child(node, part) for node in nodes]
        nodes = [option for node in children if isinstance(node, dict) for option in options(node)]
    return nodes
