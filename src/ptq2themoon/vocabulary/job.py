"""What a stage is told, declared once: rule, command line, sidecar and verifier all follow from it.

A subclass of `Job` is one stage. Each field is an option of the stage's command; the mark in its annotation
says what the workflow gives for it. A field without a mark keeps its default in the workflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.layout import fill

# A pattern with wildcards, or a function of the parameters (params.yaml) and the wildcards.
Ask = str | tuple[str, ...] | Callable[[Any, Any], Any]
# A value that params.yaml leaves open, such as device `auto`.
ANY = object()


@dataclass(frozen=True)
class Input:
    """Files that a stage reads.

    Attributes:
        path: what the command names.
        files: of what it names, the files that count; itself if None.
    """

    path: Ask
    files: Callable[[Path], Sequence[Path]] | None = None


@dataclass(frozen=True)
class Output:
    """Files that a stage writes; the first of a job is its main one."""

    path: Ask


@dataclass(frozen=True)
class Setting:
    """A parameter of a stage.

    Attributes:
        value: a dotted key of params.yaml, a pattern of wildcards, or a function of both.
        recorded: whether the sidecar names it among the parameters.
    """

    value: str | Callable[[Any, Any], Any]
    recorded: bool = True


@dataclass(frozen=True)
class Machine:
    """What the machine decides, and no result depends on: the text that the rule's command has."""

    value: str


@dataclass(frozen=True)
class Parts:
    """Files that shards wrote for a stage, where its work is scattered: no result depends on it.

    Attributes:
        path: a pattern; its wildcard `scatteritem` is the shard.
    """

    path: str


Mark = Input | Output | Setting | Machine | Parts


class Job(BaseModel):
    """One call of a stage.

    Attributes:
        stage: its name, which is that of its script and in its sidecar.
        where: the folder of its log, a pattern.
        runs_on: the device of a stage that has no field `device`.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    stage: ClassVar[str]
    where: ClassVar[str] = "{model}"
    runs_on: ClassVar[str | None] = None

    @classmethod
    def marks(cls) -> dict[str, Mark | None]:
        """The mark of each field, None of those without one."""
        kinds = (Input, Output, Setting, Machine, Parts)
        return {
            name: next((mark for mark in field.metadata if isinstance(mark, kinds)), None)
            for name, field in cls.model_fields.items()
        }

    @classmethod
    def marked(cls, kind: type[Mark] | tuple[type[Mark], ...]) -> dict[str, Any]:
        """The fields with a mark of this kind, or of one of these, and their marks."""
        return {name: mark for name, mark in cls.marks().items() if isinstance(mark, kind)}

    @classmethod
    def is_optional(cls, name: str) -> bool:
        """Whether the command may leave the option out."""
        return not cls.model_fields[name].is_required()

    @classmethod
    def given(cls, name: str, params: Any, wildcards: Any) -> Any:
        """What the workflow gives for a marked field; None or nothing leaves the option out."""
        mark = cls.marks()[name]
        if isinstance(mark, Input | Output):
            return asked(mark.path, params, wildcards)
        assert isinstance(mark, Setting)
        if callable(mark.value):
            return mark.value(params, wildcards)
        if "{" in mark.value:
            return fill(mark.value, wildcards)
        return reduce(getattr, mark.value.split("."), params)

    @classmethod
    def of(cls, params: Any, wildcards: Any) -> Self:
        """The job as the workflow calls it."""
        given = {
            name: cls.given(name, params, wildcards)
            for name, mark in cls.marks().items()
            if isinstance(mark, Input | Output | Setting)
        }
        return cls(**{name: value for name, value in given.items() if value not in (None, [], ())})

    def inputs(self) -> list[Path]:
        """Every file that the stage reads, once."""
        marks = self.marked(Input)
        named = [file for name, mark in marks.items() for file in files_behind(mark, getattr(self, name))]
        return list(dict.fromkeys([*named, *self.unmarked_inputs()]))

    def unmarked_inputs(self) -> Sequence[Path]:
        """Files that the stage reads and that no mark names."""
        return ()

    def outputs(self) -> list[Path]:
        """Every file that the stage writes, the main one first."""
        return [path for name in self.marked(Output) for path in paths(getattr(self, name))]

    def parameters(self) -> dict[str, Any]:
        """All that decides the result besides the inputs, of JSON types."""
        return {
            name: plain(getattr(self, name))
            for name, mark in self.marks().items()
            if mark is None or (isinstance(mark, Setting) and mark.recorded)
        }

    def found_out(self) -> Sequence[str]:
        """Names of parameters that only show while the stage runs; the stage adds them."""
        return ()

    def methods_called(self) -> tuple[str, ...]:
        """Names of the methods that the stage is told to call; they are imported by their names."""
        return ()

    def drawn_with(self) -> int | None:
        """The seed in force."""
        return getattr(self, "seed", None)


def asked(path: Ask, params: Any, wildcards: Any) -> Any:
    """Patterns filled; what a function gives."""
    if callable(path):
        return path(params, wildcards)
    if isinstance(path, str):
        return fill(path, wildcards)
    return [fill(one, wildcards) for one in path]


def words(value: Any) -> list[str]:
    """A value as a command line has it: one word, or one for each of several."""
    if value is None:
        return []
    values = value if isinstance(value, list | tuple) else [value]
    return [word for one in values for word in (words(one) if isinstance(one, list | tuple) else [str(one)])]


def paths(value: Any) -> Iterator[Path]:
    """The paths of a field: one, several, none, or those behind names in NAME=PATH."""
    if value is None:
        return
    for one in value if isinstance(value, tuple | list) else [value]:
        _, equals, path = ("", "", "") if isinstance(one, Path) else one.partition("=")
        yield Path(path if equals else one)


def files_behind(mark: Input, value: Any) -> list[Path]:
    """The files that count of those that a field names."""
    return [file for path in paths(value) for file in (mark.files(path) if mark.files else [path])]


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Path):
        return value.as_posix()
    return [plain(one) for one in value] if isinstance(value, tuple) else value


def named(names: Sequence[str], files: Sequence[str]) -> list[str]:
    """NAME=PATH of each."""
    return [f"{name}={file}" for name, file in zip(names, files, strict=True)]


def named_paths(values: Sequence[str], option: str) -> dict[str, Path]:
    """`["vanilla=a.csv", …]` -> `{"vanilla": Path("a.csv"), …}`, in the order given."""
    found: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise UserError(f"{option} {value}: must read NAME=PATH, as in {option} vanilla=FILE")
        if name in found:
            raise UserError(f"{option} {value}: the name {name!r} is given twice")
        found[name] = Path(path)
    return found
