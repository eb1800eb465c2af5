"""What several tests share; making a model takes a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tiny_quantized import Tiny

# No property test depends on speed: a slow or busy machine is no fault of what is tested.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole workflows first: they take longest, and no worker is to be left with one at the end."""
    items.sort(key=lambda item: "workflow" not in item.path.parts)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Two blocks, class token, ten classes."""
    from tiny_quantized import Tiny  # imports PPQ, which takes seconds that other tests need not wait

    return Tiny.make(tmp_path_factory.mktemp("tiny"), num_classes=10)
