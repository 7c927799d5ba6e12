"""What the tests of batches are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from taskiq import InMemoryBroker

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def broker() -> Iterator[InMemoryBroker]:
    broker = InMemoryBroker()
    yield broker
    broker.executor.shutdown()
