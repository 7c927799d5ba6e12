"""What is said at the start of how failed messages end."""

from __future__ import annotations

import pytest

from taskiq import InMemoryBroker
from taskiq.receiver.endings import log_policies
from tests.support.brokers import QueueBroker


def test_what_a_broker_cannot_do_for_failed_messages_is_said_at_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = QueueBroker()
    log_policies(broker)
    assert caplog.text == ""

    @broker.task(max_deliveries=3, on_failure="dead_letter")
    async def limited() -> None: ...

    log_policies(broker)
    assert "QueueBroker has no queue for dead letters" in caplog.text
    assert "does not count deliveries: max_deliveries of " in caplog.text


def test_where_dead_letters_go_is_said_at_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log_policies(InMemoryBroker().with_dead_letters())
    assert caplog.messages == ["Dead letters go to memory."]
