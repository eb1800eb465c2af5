"""The code that makes a result: a stage's script and the modules that it imports, directly or not."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from ptq2themoon.safety.sidecars import sha256

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "ptq2themoon"
METHODS = "src/ptq2themoon/methods"
OBSERVERS = "src/ptq2themoon/quantize/observers"


def script_of(stage: str, root: Path = ROOT) -> Path | None:
    """The script of that name, in whichever theme's folder; None where there is none."""
    return next(root.glob(f"workflow/scripts/*/{stage}.py"), None)


@cache
def modules_behind(stage: str, methods: Sequence[str] = (), root: Path = ROOT) -> list[Path]:
    """A stage's script, the modules that it imports, and the methods that it calls by their names."""
    script = script_of(stage, root)
    found = [] if script is None else [script, *(root / METHODS / f"{name}.py" for name in methods)]
    for path in found:
        found += [module for module in imported(path, root) if module not in found]
        if path == root / OBSERVERS / "__init__.py":  # which imports them by their names
            found += [module for module in sorted((root / OBSERVERS).glob("*.py")) if module not in found]
    return found


@cache
def code_sum(stage: str, methods: Sequence[str] = (), root: Path = ROOT) -> str | None:
    """One sum of the names and contents of all modules behind a stage; None where it has no script."""
    modules = modules_behind(stage, methods, root)
    if not modules:
        return None
    whole = hashlib.sha256()
    for path in sorted(modules):
        whole.update(f"{path.relative_to(root).as_posix()} {sha256(path)}\n".encode())
    return whole.hexdigest()


@cache
def imported(path: Path, root: Path = ROOT) -> list[Path]:
    """The modules of the package that a file imports itself when it runs."""
    found: dict[Path, None] = {}
    for node in _executed(ast.parse(path.read_text(encoding="utf-8")).body):
        if not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)):
            continue
        place = root.joinpath("src", *(node.module or "").split("."))
        names = [(place / alias.name).with_suffix(".py") for alias in node.names]
        packages = [
            folder / "__init__.py" for folder in (place, *place.parents) if root / "src" in folder.parents
        ]
        for module in (place.with_suffix(".py"), *packages, *names):
            if module.is_file():
                found[module] = None
    return list(found)


def _executed(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module at every depth, but for what only type checkers read."""
    for node in statements:
        yield node
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for name in ("orelse",) if for_types else ("body", "orelse", "finalbody"):
            yield from _executed(getattr(node, name, ()))
        for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            yield from _executed(part.body)
