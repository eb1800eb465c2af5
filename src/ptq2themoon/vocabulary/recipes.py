"""Recipes: which tensor of which operator is quantized how, in a few lines of YAML.

A recipe either states its `defaults` or `extends` another one of the same folder. Rules are read in
order, those of the extended recipe first; for each setting the last rule that selects a tensor
decides. Fixed for all: round half to even.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ptq2themoon.methods import all_made, method_class, method_names
from ptq2themoon.vocabulary.contradictions import refuse_contradictions
from ptq2themoon.vocabulary.errors import UserError, nearest
from ptq2themoon.vocabulary.operators import ROLES, Operator, Role
from ptq2themoon.vocabulary.recipe_language import (
    MOST_RULES,
    OPERANDS,
    Activations,
    Axis,
    Defaults,
    Granularity,
    MethodCall,
    Observer,
    Operand,
    RecipeFile,
    Rule,
)
from ptq2themoon.vocabulary.tensor_spec import TensorSpec, refuse_contradiction
from ptq2themoon.vocabulary.validation import failure, place, validate
from ptq2themoon.vocabulary.yaml_files import LARGEST, read_yaml

__all__ = [
    "OPERANDS", "ROLES", "Axis", "Granularity", "Observer", "Operand", "Operator", "Recipe",
    "Role", "TensorSpec", "load_recipe",
]  # fmt: skip

# Roles of operators with a matrix; one without a role may have one too.
LINEAR_ROLES: frozenset[Role] = frozenset(
    {"patch_embed", "qkv", "q", "k", "v", "qk", "kv", "proj", "fc1", "fc2", "head"}
)

MOST_REPEATS = 1_000_000  # of whatever a method does; no paper asks for a tenth of it
LONGEST_CHAIN = 20  # of recipes that extend each other


@dataclass(frozen=True)
class LocatedRule:
    """A rule and where it stands."""

    source: Path
    index: int
    rule: Rule
    method: str = ""  # that added it

    def at(self, *key: str | int) -> str:
        """Where a key of the rule stands: file and path of keys, or the method that made it."""
        if self.method:
            return f"{self.source}: method {self.method}"
        return place(self.source, ("rules", self.index, *key))


@dataclass(frozen=True)
class Recipe:
    """A recipe with all that it extends.

    Attributes:
        rules, methods, sources: of the whole chain of files, the one that extends none first.
        activations: whether an operator's output is quantized by it and by its readers, or by these alone.
    """

    name: str
    description: str
    defaults: Defaults
    rules: list[LocatedRule]
    methods: list[MethodCall]
    sources: list[Path]
    activations: Activations = "twice"

    def resolved(self) -> dict[str, Any]:
        """All that decides a result, as one recipe that extends none."""
        return {
            "activations": self.activations,
            "defaults": self.defaults.model_dump(),
            "rules": [
                located.rule.model_dump(exclude_none=True, exclude_defaults=True) for located in self.rules
            ],
            "methods": [method.model_dump() for method in self.methods],
        }

    def with_rule(self, rule: Rule, method: str = "") -> Recipe:
        """A copy with one more rule, which comes last and so wins.

        Args:
            method: what messages name in the rule's place.
        """
        return replace(
            self, rules=[*self.rules, LocatedRule(self.sources[-1], len(self.rules), rule, method)]
        )

    @property
    def has_weight_channels(self) -> bool:
        """Whether the weight of a linear layer may have per-channel scales, so that its axis counts."""
        return self.defaults.granularity == "per-channel" or any(
            located.rule.granularity == "per-channel"
            and (located.rule.select.operand is None or "weight" in located.rule.select.operand)
            and (located.rule.select.role is None or not LINEAR_ROLES.isdisjoint(located.rule.select.role))
            for located in self.rules
        )

    def check(self, operators: Iterable[Operator]) -> None:
        """`UserError` where a rule selects no operator, or a block that the model does not have."""
        operators = list(operators)
        lines = [
            f"{located.at('select', *key)}: {problem}"
            for located in self.rules
            if not located.rule.optional
            for key, problem in located.rule.select.misses(operators)
        ]
        if lines:
            raise UserError("\n".join(lines))

    def check_tensors(self, tensors: Iterable[tuple[Operator, Operand, int]]) -> None:
        """`UserError` where a rule selects operators, but none of their tensors.

        Args:
            tensors: operator, operand and position of each.
        """
        tensors = list(tensors)
        lines = []
        for located in self.rules:
            select = located.rule.select
            if located.rule.optional or any(select.matches(*tensor) for tensor in tensors):
                continue
            found = [(operand, position) for o, operand, position in tensors if select.finds(o)]
            if select.operand is None or not {operand for operand, _ in found}.isdisjoint(select.operand):
                there = sorted({str(p) for operand, p in found if operand in (select.operand or OPERANDS)})
                what = ", ".join(map(str, select.position or ()))
                lines.append(
                    f"{located.at('select', 'position')}: selects nothing: no position {what} there; "
                    f"these operators have {', '.join(there)}"
                )
            else:
                there = sorted({operand for operand, _ in found})
                what = ", ".join(select.operand)
                lines.append(
                    f"{located.at('select', 'operand')}: selects nothing: no {what} there; "
                    f"these operators have {', '.join(there)}"
                )
        if lines:
            raise UserError("\n".join(lines))

    def spec(
        self,
        operator: Operator,
        operand: Operand,
        weight_bits: int,
        activation_bits: int,
        position: int = 0,
    ) -> TensorSpec:
        """How the tensor at a position among the operator's inputs or outputs is quantized.

        Where no rule sets bits, weights and biases have `weight_bits`, inputs and outputs `activation_bits`.

        Raises:
            UserError: the settings that meet here contradict each other.
        """
        bits = activation_bits if operand in ("input", "output") else weight_bits
        matching = [one for one in self.rules if one.rule.select.matches(operator, operand, position)]
        return self.settled(matching, operator, operand, bits)

    def settled(
        self, rules: Sequence[LocatedRule], operator: Operator, operand: Operand, bits: int
    ) -> TensorSpec:
        """What the defaults and the rules that match a tensor make of it; raises as `spec` does."""
        values = {"bits": bits, **self.defaults.model_dump()}
        for located in rules:
            values |= located.rule.settings

        def origin(name: str) -> str:
            last = next((one for one in reversed(rules) if name in one.rule.settings), None)
            return last.at(name) if last else place(self.sources[0], ("defaults", name))

        spec = TensorSpec(**values)
        if spec.quantize:
            refuse_contradiction(spec, origin, operator, operand)
        return spec


def load_recipe(path: Path, bits: Iterable[tuple[int, int]] = ((8, 8),)) -> Recipe:
    """Read a recipe and all that it extends.

    Args:
        bits: of weights and activations; settings must not contradict each other with any of them.

    Raises:
        UserError: one line for each thing wrong, with file, key, value and the nearest valid one.
    """
    defaults, chain = _chain(path)
    recipe = Recipe(
        name=path.stem,
        description=chain[path].description,
        defaults=defaults,
        rules=[LocatedRule(at, i, rule) for at, file in chain.items() for i, rule in enumerate(file.rules)],
        methods=[method for file in chain.values() for method in file.methods],
        sources=list(chain),
        activations=next((f.activations for f in reversed(chain.values()) if f.activations), "twice"),
    )
    try:
        all_made(recipe.methods)
    except UserError as error:
        raise failure(path, [(("methods",), str(error))]) from None
    refuse_contradictions(recipe, list(bits))
    return recipe


def _chain(path: Path) -> tuple[Defaults, dict[Path, RecipeFile]]:
    """The defaults, and the files from the one that states them to `path`."""
    recipes = {other.stem: other for other in sorted(path.parent.glob("*.yaml"))}
    chain: dict[Path, RecipeFile] = {}
    while True:
        file = _read(path)
        chain = {path: file, **chain}
        if sum(len(one.rules) for one in chain.values()) > MOST_RULES:
            raise failure(path, [(("rules",), f"with all that it extends more than {MOST_RULES} rules")])
        if len(chain) > LONGEST_CHAIN:
            raise failure(path, [(("extends",), f"more than {LONGEST_CHAIN} recipes extend each other")])
        if file.defaults is not None:
            return file.defaults, chain
        name = file.extends or ""
        parent = recipes.get(name)
        if parent is None:
            hint = nearest(name, [stem for stem in recipes if recipes[stem] not in chain] or ["none yet"])
            raise failure(path, [(("extends",), f"unknown recipe {name!r} in {path.parent}; {hint}")])
        if parent in chain:
            circle = " <- ".join(repr(other.stem) for other in (parent, *chain))
            raise failure(path, [(("extends",), f"{name!r} closes a circle: {circle}")])
        path = parent


def _read(path: Path) -> RecipeFile:
    """One file; of the same content it is understood once, for each job of a recipe asks for it again."""
    try:
        content = path.read_bytes() if path.stat().st_size <= LARGEST and path.is_file() else None
    except OSError:
        content = None
    return _understood(path, content)


@lru_cache(maxsize=256)
def _understood(path: Path, _content: bytes | None) -> RecipeFile:
    file = validate(RecipeFile, read_yaml(path), str(path))
    for index, method in enumerate(file.methods):
        _check_method(path, index, method)
    if file.extends is None and file.defaults is None:
        what = "missing; a recipe that extends none must state granularity, observer, percentile, weight_axis"
        raise failure(path, [(("defaults",), what)])
    if file.extends is not None and file.defaults is not None:
        what = "not together with 'extends'; give a rule with 'select: {}' instead"
        raise failure(path, [(("defaults",), what)])
    return file


def _check_method(path: Path, index: int, method: MethodCall) -> None:
    if method.name not in method_names():
        hint = nearest(method.name, method_names())
        raise failure(path, [(("methods", index, "name"), f"unknown method {method.name!r}; {hint}")])
    for key, value in method.settings.items():
        if isinstance(value, int) and value > MOST_REPEATS:
            what = f"{value} is too large; at most {MOST_REPEATS}"
            raise failure(path, [(("methods", index, key), what)])
    settings = method_class(method.name).Settings
    validate(settings, method.settings, place(path, ("methods", index)))
