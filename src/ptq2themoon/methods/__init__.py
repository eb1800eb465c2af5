"""Published methods: each module of this package is one, found by its name; nothing else lists them."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
