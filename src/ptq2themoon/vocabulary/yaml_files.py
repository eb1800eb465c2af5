"""YAML files that anybody may have written: plain data in, or one line that says what is wrong and where."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ptq2themoon.vocabulary.errors import UserError, lines_of
from ptq2themoon.vocabulary.validation import shown

DEEPEST = 60  # lists and mappings within each other; readers call themselves for each
MOST = 10_000  # entries, with all that aliases stand for written out
LARGEST = 250_000  # bytes
LONGEST = 4096  # characters of one value: no path is longer
TEMPLATE = "__use_yte__"  # Snakemake's reader runs the code of a file that holds this key
# What constructors raise on a value that looks like their type: a date in month 99, `!!int x`.
NOT_OF_TYPE = (ValueError, OverflowError, KeyError, AttributeError, TypeError, IndexError)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; only plain data, no key twice, nothing that a reader would not end with."""
    try:
        text = _text(path)
        _refuse_endless(text)
        loader = PlainSafeLoader(text)
        root = loader.get_single_node()
        _refuse_repeated_keys(root, path)
        data = None if root is None else loader.construct_document(root)
    except _Slip as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except yaml.MarkedYAMLError as error:
        if hint := _slip_of_the_pen(text, error):
            raise UserError(f"{path}: {hint}") from None
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: of PyYAML's scanner
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: must hold a mapping (key: value), not {shown(data)}")
    if TEMPLATE in data:
        raise UserError(f"{path}: {TEMPLATE}: templates run code, so none is read; write plain values")
    return data


def _text(path: Path) -> str:
    """What is in a file that is one, and small enough to be written by people; no pipe is waited for."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is {'a folder' if path.is_dir() else 'no regular file'}; give a YAML file")
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UserError(f"{path}: more than {LARGEST} bytes; parameters and recipes are small")
    return content.decode("utf-8")


# A key, a colon and a value with nothing between them; `//` and what follows is an address.
NO_BLANK = re.compile(r"\s*(?:- )?([A-Za-z_]\w*):(?!//)([^\s:].*)")


def _slip_of_the_pen(text: str, error: yaml.MarkedYAMLError) -> str:
    """What is known of a file that does not parse: a tab, or no blank after a colon; else nothing."""
    if error.problem_mark is None:
        return ""
    lines, last = text.splitlines(), error.problem_mark.line
    first = error.context_mark.line if error.context_mark else max(last - 1, 0)
    for number in range(min(last, len(lines) - 1), first - 1, -1):
        line = lines[number]
        if "\t" in line[: len(line) - len(line.lstrip())]:
            return f"line {number + 1}: begins with a tab; YAML is indented with blanks"
        if found := NO_BLANK.fullmatch(line.split(" #")[0].rstrip()):
            return f"line {number + 1}: no blank after the colon; write '{found[1]}: {found[2]}'"
    return ""


class _Slip(Exception):
    """What is wrong in a line of a file, which this does not know."""

    def __init__(self, mark: yaml.Mark, what: str) -> None:
        super().__init__(f"line {mark.line + 1}: {what}")


class PlainSafeLoader(yaml.SafeLoader):
    """PyYAML's loader of plain data, which says where a value is none of its type."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node."""
        kind = node.tag.rpartition(":")[2]
        if isinstance(node, yaml.ScalarNode):
            _refuse_unusable(node, kind)
        try:
            value = super().construct_object(node, deep)
        except NOT_OF_TYPE:
            hint = "; put quotes around it if it is text" if isinstance(node, yaml.ScalarNode) else ""
            raise _Slip(node.start_mark, f"{_start(node)} is no {kind}{hint}") from None
        if isinstance(value, int) and abs(value) >= 2**63:
            raise _Slip(node.start_mark, f"{_start(node)} is larger than 64 bits hold")
        return value


def _start(node: yaml.Node) -> str:
    """The beginning of a value."""
    text = node.value if isinstance(node, yaml.ScalarNode) else "what stands there"
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _refuse_unusable(node: yaml.ScalarNode, kind: str) -> None:
    """Values that no path, name or number can have."""
    if len(node.value) > LONGEST or (kind == "int" and len(node.value) > 100):
        raise _Slip(node.start_mark, f"{_start(node)}: {len(node.value)} characters are too many")
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in node.value):
        raise _Slip(node.start_mark, f"{_start(node)} holds a character that is none of any text")


@dataclass
class _Open:
    """A list or mapping that is being read: its entries so far, and how deep they go."""

    anchor: str | None
    entries: int = 1
    depth: int = 1

    def add(self, entries: int, depth: int) -> None:
        self.entries += entries
        self.depth = max(self.depth, depth + 1)


def _refuse_endless(text: str) -> None:
    """Files that are small but stand for very much, by aliases, or that lie too deep."""
    found: dict[str, _Open] = {}
    waiting = [_Open(None)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            waiting.append(_Open(event.anchor))
        elif isinstance(event, yaml.CollectionEndEvent):
            done = waiting.pop()
            if done.anchor:
                found[done.anchor] = done
            waiting[-1].add(done.entries, done.depth)
        elif isinstance(event, yaml.ScalarEvent):
            waiting[-1].add(1, 0)
        elif isinstance(event, yaml.AliasEvent):
            if any(one.anchor == event.anchor for one in waiting):
                raise _Slip(event.start_mark, f"*{event.anchor} stands within what it names")
            there = found.get(event.anchor, _Open(None, 1, 0))
            waiting[-1].add(there.entries, there.depth)
        if max(len(waiting), waiting[-1].depth + len(waiting) - 1) > DEEPEST:
            raise _Slip(event.start_mark, f"lists and mappings lie more than {DEEPEST} deep")
        if waiting[-1].entries > MOST:
            raise _Slip(event.start_mark, f"more than {MOST} entries, with aliases written out")


def _refuse_repeated_keys(root: yaml.Node | None, path: Path) -> None:
    waiting, seen = [root] if root else [], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = set()
            for key, value in node.value:
                waiting.append(value)
                if not isinstance(key, yaml.ScalarNode):  # the loader refuses it
                    continue
                if key.value in keys:
                    line = key.start_mark.line + 1
                    raise UserError(f"{path}: key {key.value!r} is given twice, again in line {line}")
                keys.add(key.value)


def configfiles(arguments: Sequence[str]) -> Iterator[Path]:
    """What Snakemake's option `--configfile`, or as much of `--configfiles` as tells it apart, names."""
    named = False
    for word in arguments:
        option, equals, value = word.partition("=")
        if word.startswith("-"):
            meant = option.startswith("--configf") and "--configfiles".startswith(option)
            named = meant and not equals
            if meant and equals:
                yield Path(value)
        elif named:
            yield Path(word)


def check_configfiles(arguments: Sequence[str] | None = None) -> None:
    """End the process with a line where Snakemake is told to read a parameter file that `read_yaml` refuses.

    Snakemake reads the files of `--configfile` before the Snakefile speaks, and would run their templates.
    Its profile calls this first.

    Args:
        arguments: of Snakemake; those of the process by default.
    """
    try:
        for path in configfiles(sys.argv[1:] if arguments is None else arguments):
            read_yaml(path)
    except UserError as error:
        print(*lines_of(error), sep="\n", file=sys.stderr)
        raise SystemExit(1) from None
