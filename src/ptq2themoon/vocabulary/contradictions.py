"""Whether the rules of a recipe contradict each other, tried on all that they tell apart."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from ptq2themoon.vocabulary.operators import Operator, Role
from ptq2themoon.vocabulary.recipe_language import OPERANDS, Operand, Select
from ptq2themoon.vocabulary.validation import failure

if TYPE_CHECKING:
    from ptq2themoon.vocabulary.recipes import Recipe

MOST_SELECTED = 100_000  # tensors that rules tell apart: each is tried when a recipe is read


def refuse_contradictions(recipe: Recipe, bits: Iterable[tuple[int, int]]) -> None:
    """Try what each rule selects; without a block it stands for those that no rule names."""
    weights, activations = ({pair[i] for pair in bits} for i in (0, 1))
    for (role, block), tensors in _selected(recipe).items():
        operator = Operator("", "", role, block)
        rules = [one for one in recipe.rules if one.rule.select.finds(operator)]
        for operand, position in tensors:
            matching = [one for one in rules if one.rule.select.matches(operator, operand, position)]
            for each in activations if operand in ("input", "output") else weights:
                recipe.settled(matching, operator, operand, each)


def _selected(recipe: Recipe) -> dict[tuple[Role, int | None], dict[tuple[Operand, int], None]]:
    """The operands and positions that any rule selects, by role and block.

    Raises:
        UserError: more of them than can be tried in a short time.
    """
    selects = [Select(), *(located.rule.select for located in recipe.rules)]
    parts = [
        (
            s.roles,
            tuple(dict.fromkeys(s.block or (None,))),
            tuple(dict.fromkeys(s.operand or OPERANDS)),
            tuple(dict.fromkeys(s.position or (0,))),
        )
        for s in selects
    ]
    if sum(prod(map(len, part)) for part in set(parts)) > MOST_SELECTED:
        what = f"rules select more than {MOST_SELECTED} tensors one by one; leave out keys that need not be"
        raise failure(recipe.sources[-1], [(("rules",), what)])
    found: dict[tuple[Role, int | None], dict[tuple[Operand, int], None]] = {}
    for roles, blocks, operands, positions in dict.fromkeys(parts):
        for role, block in product(roles, blocks):
            found.setdefault((role, block), {}).update(dict.fromkeys(product(operands, positions)))
    return found
