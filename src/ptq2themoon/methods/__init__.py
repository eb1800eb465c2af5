"""Published methods: each module of this package is one, found by its name; nothing else lists them."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.training_settings import PresetSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ptq2themoon.methods.base import Method
    from ptq2themoon.vocabulary.recipe_language import MethodCall

NO_METHODS = ("base",)


@cache
def method_names() -> tuple[str, ...]:
    """Names of all methods, as recipes write them; no method is imported."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NO_METHODS)


def method_class(name: str) -> type[Method]:
    """The method of that name, which must be one of `method_names`."""
    module = importlib.import_module(f"{__name__}.{name}")
    found: type[Method] = module.METHOD
    return found


def made(call: MethodCall) -> Method:
    """The method that a recipe calls, with its settings."""
    found = method_class(call.name)
    return found(found.Settings(**call.settings))


def labelled(call: MethodCall) -> str:
    """The method's name, and the preset of one that trains: figures of `quick` are not those of the paper."""
    settings = made(call).settings
    return f"{call.name} ({settings.preset})" if isinstance(settings, PresetSettings) else call.name


def all_made(calls: Iterable[MethodCall]) -> list[Method]:
    """The methods that a recipe calls, in its order.

    Raises:
        UserError: a method called twice, or two that decide the same thing, of which the later would undo
            the earlier.
    """
    methods: list[Method] = []
    decided: dict[str, tuple[str, str]] = {}
    names: set[str] = set()
    for call in calls:
        if call.name in names:
            raise UserError(
                f"{call.name} is called twice; methods of a recipe that is extended come first: name it once"
            )
        names.add(call.name)
        methods.append(made(call))
        for what, setting in methods[-1].decides().items():
            if what in decided:
                raise UserError(_both(what, decided[what], (call.name, setting)))
            decided[what] = call.name, setting
    return methods


def _both(what: str, *two: tuple[str, str]) -> str:
    (first, _), (second, _) = two
    ways = [f"{setting} for {name}" for name, setting in two if setting]
    say = f"say {' or '.join(ways)}, or leave" if ways else "leave"
    return f"{first} and {second} both decide {what}; {say} one of them out"
