"""What tests of the receiver share."""

from __future__ import annotations

import pytest


@pytest.fixture
def without_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "taskiq.receiver.restart.random.uniform",
        lambda _low, high: high,
    )
