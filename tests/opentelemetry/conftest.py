"""Fixtures of these tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.opentelemetry.telemetry import Telemetry, current_name

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def telemetry(caplog: pytest.LogCaptureFixture) -> Iterator[Telemetry]:
    """Telemetry of its own; the test may not leave a trace of itself behind."""
    yield Telemetry()
    assert current_name() is None
    complaints = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.name.startswith("opentelemetry")
    ]
    assert complaints == []
