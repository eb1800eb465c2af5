"""What the tests of several methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tiny_methods import Case

from ptq2themoon.quantize.factors import Product
from ptq2themoon.quantize.learning import reconstruct
from ptq2themoon.quantize.tools import Tools


@pytest.fixture(scope="session")
def vit() -> Case:
    """A small ViT and its images; no test changes it."""
    return Case.of_family("vit")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Product]:
    """All that `Tools.search_scales` gives in a test, filled while it is called."""
    kept: list[Product] = []
    plain: Callable[..., list[Product]] = Tools.search_scales

    def search_scales(*arguments: Any, **more: Any) -> list[Product]:
        found = plain(*arguments, **more)
        kept.extend(found)
        return found

    monkeypatch.setattr(Tools, "search_scales", search_scales)
    return kept


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Losses of all units that a method trains in a test, by the unit's name."""
    found: dict[str, list[float]] = {}
    plain = reconstruct.reconstruct

    def noted(*arguments: Any, **more: Any) -> dict[str, list[float]]:
        losses = plain(*arguments, **more)
        found.update(losses)
        return losses

    monkeypatch.setattr(reconstruct, "reconstruct", noted)
    return found
