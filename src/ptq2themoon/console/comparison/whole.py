"""The whole comparison of two trees."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ptq2themoon.console.comparison.findings import Comparison, changes
from ptq2themoon.console.comparison.runs import figures, same_images, where
from ptq2themoon.console.comparison.scales import moved
from ptq2themoon.console.comparison.trees import Tree, kept
from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.layout import FP32, RESULTS
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.records import parsed

MODELS = f"{RESULTS}/models/"
# A tool's, the study's, and what is drawn for the keys of all runs: each a part of its own.
APART = ("*timings.csv", "rollout.safetensors", "calibration-n*-s*.safetensors")
SHOWN = 20  # files that only one side has, at most, of each


def compared(first: Tree, second: Tree) -> Comparison:
    """What differs between two sets of results.

    Raises:
        UserError: a file that cannot be read.
    """
    try:
        return _compared(first, second)
    except UserError as error:  # in the user's words, not with the path of a scratch folder
        text = str(error)
        for tree in (first, second):
            text = text.replace(f"{tree.root}/", f"{tree.name}: ")
        raise UserError(text) from None


def _compared(first: Tree, second: Tree) -> Comparison:
    found = Comparison(list(figures(first, second)))
    if not found.figures:
        raise UserError(
            f"{first.name} and {second.name}: have no run, and no row of the leaderboard, in common"
        )
    found.made = [*_images(first, second), *_recipes(first, second), *_parameters(first, second)]
    found.alone = [*_alone(first, second), *_alone(second, first)]
    found.notes += [*_not_made(first, second), *_not_made(second, first)]
    if first.heavy and second.heavy:
        found.scales = list(moved(first, second))
    else:
        less = " and ".join(tree.name for tree in (first, second) if not tree.heavy)
        found.notes.append(f"scales not compared: {less} without {MODELS}, which DVC keeps")
    found.notes += _versions(first, second)
    return found


def _parts(name: str) -> Iterator[str]:
    """What a file is made with: its model, and the study, a recipe, the benchmarks, … of it."""
    parts = name.split("/")
    if any(fnmatchcase(parts[-1], pattern) for pattern in APART):
        yield name
    depth = 3 if name.startswith(MODELS) else 2
    depths = (depth,) if parts[1] in layout.OF_ALL_MODELS else (depth, depth + 1)
    yield from ("/".join(parts[:each]) for each in depths if len(parts) > each)


def _lacking(tree: Tree, other: Tree) -> set[str]:
    """Parts of `tree` of which `other` has no file: it did not make them."""
    own, others = ({part for name in each.files for part in _parts(name)} for each in (tree, other))
    return own - others


def _not_made(tree: Tree, other: Tree) -> Iterator[str]:
    """A line that names what only `tree` made; of a model or a file of it once."""
    lacking = _lacking(tree, other)
    parts = [part for part in lacking if not part.startswith(MODELS) and kept(part)]
    names = sorted(part for part in parts if part.rpartition("/")[0] not in lacking)
    if names:
        yield f"not compared, for only {tree.name} has them: {', '.join(names)}"


def _alone(tree: Tree, other: Tree) -> Iterator[str]:
    """Files of parts that both made, which `other` lacks; what an example lacks counts if both are more."""
    heavy, whole = tree.heavy and other.heavy, tree.whole and other.whole
    lacking = _lacking(tree, other)
    found = {name for name in tree.files - other.files if lacking.isdisjoint(_parts(name))}
    names = sorted(n for n in found if (heavy if n.startswith(MODELS) else whole or kept(n)))
    yield from (f"only in {tree.name}: {name}" for name in names[:SHOWN])
    if len(names) > SHOWN:
        yield f"only in {tree.name}: {len(names) - SHOWN} more files"


def _images(first: Tree, second: Tree) -> Iterator[str]:
    for name in first.found(f"{RESULTS}/*/evaluation.csv"):
        model = name.split("/")[1]
        if not same_images(first, second, model):
            yield f"{model}: measured on other images ({name}); its figures are not judged"


def _recipes(first: Tree, second: Tree) -> Iterator[str]:
    """Recipes of runs that both sides have, where they say something else."""
    runs = f"{RESULTS}/*/*/w*a*-n*-s*/metrics.json", f"{RESULTS}/*/leaderboard/*/w*a*-n*.json"
    used = [
        {name.split("/")[-3 if name.endswith("metrics.json") else -2] for p in runs for name in tree.found(p)}
        for tree in (first, second)
    ]
    for recipe in sorted((used[0] & used[1]) - {FP32}):
        paths = [tree.root / layout.recipe_file(recipe) for tree in (first, second)]
        if all(path.is_file() for path in paths):
            what = changes(_resolved(paths[0]), _resolved(paths[1]))
            yield from (f"recipe {recipe}: {line}" for line in what)


def _resolved(path: Path) -> dict[str, Any]:
    """What a recipe says; its text where this version cannot read it."""
    try:
        return load_recipe(path).resolved()
    except UserError:
        return {"text": path.read_text(encoding="utf-8")}


def _sidecars(first: Tree, second: Tree) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(where, sidecar, the other side's) of runs."""
    for name in first.found(f"{RESULTS}/**/w*a*-n*/*.sidecar.json"):
        if (second.root / name).is_file():
            try:
                sides = [parsed((t.root / name).read_text(encoding="utf-8")) for t in (first, second)]
            except ValueError as error:
                raise UserError(f"{name}: not readable as JSON ({error})") from None
            if not all(isinstance(side, dict) for side in sides):
                raise UserError(f"{name}: no sidecar; run its stage again")
            yield f"{where(name)}, {sides[0].get('stage')}", *sides


def _parameters(first: Tree, second: Tree) -> Iterator[str]:
    for place, one, other in _sidecars(first, second):
        what = changes(one.get("parameters"), other.get("parameters"))
        yield from (f"{place}: {line}" for line in what)


def _versions(first: Tree, second: Tree) -> list[str]:
    """Versions and devices that differ, each once: other numerics, not another result."""
    keys = ("versions", "device")
    found = [
        line
        for _, one, other in _sidecars(first, second)
        for line in changes({key: one.get(key) for key in keys}, {key: other.get(key) for key in keys})
    ]
    return list(dict.fromkeys(found))
