"""Images listed in a CSV file: columns path and, where known, label."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ptq2themoon.data.sources import ImageFiles
from ptq2themoon.vocabulary.csv_lines import short_lines
from ptq2themoon.vocabulary.errors import UserError, nearest

COLUMNS = ("path", "label")


class CsvSource(ImageFiles):
    """Rows of path and label; paths count from the CSV's own folder and may not leave it.

    Without the column `label` no image has one; with it, every image has: a whole number from 0 on.
    Keys are the paths, in the order of the file.
    """

    classes = None

    def __init__(self, path: Path) -> None:
        super().__init__(path, path.parent)
        self.files = [path]
        self._lines: dict[str, int] = {}
        rows = self._rows()
        _, header = next(rows, (0, []))
        if not header:
            raise UserError(f"{path}: is empty; a first line path,label expected")
        columns = [name.strip() for name in header]
        self._check_columns(columns)
        where = {name: columns.index(name) for name in columns}
        labels = []
        for line, row in rows:
            if len(row) != len(columns):
                raise self._error(line, f"{len(row)} fields, but {len(columns)} columns")
            self._add(row[where["path"]], line)
            labels.append(self._label(row[where["label"]].strip(), line) if "label" in where else -1)
        if not labels:
            raise UserError(f"{path}: lists no images; give a line of {','.join(columns)} for each")
        self.keys = list(self._lines)
        self.labels = np.array(labels, dtype=np.int64)

    def _error(self, line: int, what: str) -> UserError:
        return UserError(f"{self.path}:{line}: {what}")

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The header and each row that is not empty, with the number of its line; none is kept."""
        if self.path.exists() and not self.path.is_file():
            raise UserError(f"{self.path}: can't be read as CSV: it is no regular file")
        try:
            with open(self.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                reader = csv.reader(short_lines(file), strict=True, skipinitialspace=True)
                yield from ((reader.line_num, row) for row in reader if row)
        except FileNotFoundError:
            raise UserError(f"{self.path}: not found; give a CSV file of path,label") from None
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{self.path}: can't be read as CSV: {error}") from error

    def _check_columns(self, columns: Sequence[str]) -> None:
        for name in columns:
            if name.startswith("PK\x03\x04"):
                raise self._error(1, "an archive, as Excel writes; save the table as CSV")
            if "\0" in name:
                raise self._error(1, "text in UTF-16; save the file as UTF-8")
            if len(columns) == 1 and any(mark in name for mark in ";\t"):
                raise self._error(1, f"{name!r}: commas expected between fields")
            if name not in COLUMNS:
                raise self._error(1, f"unknown column {name!r}; {nearest(name, COLUMNS)}")
            if columns.count(name) > 1:
                raise self._error(1, f"column {name!r} is there twice")
        if "path" not in columns:
            raise self._error(1, "no column 'path'; columns path,label expected, label where known")

    def _add(self, path: str, line: int) -> None:
        if not path.strip():
            raise self._error(line, "no path")
        key = self._key(path, line) or self._key(path.strip(), line)
        if key is None:
            hint = "; write / between folders" if "\\" in path else ""
            hint = (
                "; save the table as UTF-8"
                if any("\udc80" <= letter <= "\udcff" for letter in path)
                else hint
            )
            raise self._error(line, f"{path!r}: no such file in {self.root}{hint}")
        if key in self._lines:
            raise self._error(line, f"{path!r} is listed twice, first in line {self._lines[key]}")
        self._lines[key] = line

    def _key(self, path: str, line: int) -> str | None:
        """The path from the CSV's folder, of a file that is there."""
        inside = PurePosixPath(os.path.normpath(path))
        for root in (self.root.absolute(), self.root.resolve()):
            inside = inside.relative_to(root) if inside.is_relative_to(root) else inside
        if inside.is_absolute() or ".." in inside.parts:
            raise self._error(line, f"{path!r} lies outside of {self.root}; paths count from there")
        try:
            return inside.as_posix() if (self.root / inside).is_file() else None
        except OSError as error:
            raise self._error(line, f"{path[:40]!r}...: {error.strerror}") from error

    def _label(self, text: str, line: int) -> int:
        if not (text.isascii() and text.isdecimal()):
            raise self._error(line, f"label {text[:40]!r} is no whole number from 0 on")
        if len(text.lstrip("0")) > 9:
            raise self._error(line, f"label {text[:40]} is larger than any number of classes")
        return int(text)
